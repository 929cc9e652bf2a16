from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.background import Background
from harness.deadline import wait_until
from harness.errors import SetupError
from harness.explore.alphabet import Run
from harness.explore.attempt import Ending
from harness.explore.program import Program
from harness.explore.workers import Workers
from harness.reaper import RunFolder, start_time
from harness.tests.explore.fakes import FakeSetup, program


def titled(title: str) -> Program:
    return program("plug:0").model_copy(update={"title": title})


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    """Two, which many programs are run in, as in an exploration."""
    with Workers(FakeSetup(), 2) as made:
        yield made


def test_results_come_in_the_order_of_the_programs(workers: Workers) -> None:
    titles = ["wait 0.5", *(f"fail {number}" for number in range(10))]
    found = list(workers(map(titled, titles)))
    assert [made.title for made, _ in found] == titles
    assert [attempt.failure.message for _, attempt in found[1:] if attempt.failure] == list(
        map(str, range(10))
    )


def test_they_run_at_the_same_time(workers: Workers) -> None:
    list(workers([titled("pid"), titled("pid")]))
    began = time.monotonic()
    list(workers([titled("wait 1"), titled("wait 1")]))
    assert time.monotonic() - began < 1.8


def test_no_program_is_taken_before_a_worker_is_free() -> None:
    """While the second worker starts, the first ends its attempt."""
    taken = []

    def programs() -> Iterator[Program]:
        for number in range(10):
            taken.append(number)
            yield titled("pid")

    with Workers(FakeSetup(), 2) as workers:
        next(workers(programs()))
        assert len(taken) <= 4


def test_what_runs_when_the_caller_stops_is_not_given_to_the_next(workers: Workers) -> None:
    results = workers(titled(title) for title in ("pid", "wait 0.5", "wait 0.5", "pid"))
    next(results)
    assert [attempt.ending for _, attempt in workers([titled("fail now")])] == [Ending.FAILED]


def test_errors_of_a_worker_are_errors_of_the_attempt(workers: Workers) -> None:
    found = [attempt for _, attempt in workers(map(titled, ("raise no luck", "die", "fail it")))]
    assert [attempt.ending for attempt in found] == [Ending.ERROR, Ending.ERROR, Ending.FAILED]
    assert [attempt.error for attempt in found] == [
        "RuntimeError: no luck",
        "a worker process ended with -9",
        "",
    ]


def test_an_attempt_that_hangs_is_ended_with_what_it_started() -> None:
    with Workers(FakeSetup(), 1, limit_s=0.5) as workers:
        ((_, hung),) = workers([titled("wait 60")])
        assert hung == type(hung)(Ending.ERROR, error="the attempt did not end within 0.5 s")
        assert [attempt.ending for _, attempt in workers([titled("pid")])] == [Ending.PASSED]


@contextlib.contextmanager
def interrupted_when(condition: Callable[[], bool]) -> Iterator[None]:
    """Ctrl-C, once ``condition`` is true."""

    def interrupt() -> None:
        wait_until(condition, what="the moment of Ctrl-C", timeout_s=60)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    going = Background(interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        going.wait(timeout_s=60)


def test_closing_ends_an_attempt_and_its_processes() -> None:
    workers = Workers(FakeSetup(), 2)
    ((_, first),) = workers([titled("pid")])
    pid, folder = first.error.split()
    results = workers(map(titled, ("wait 60", "wait 60", "pid")))
    with pytest.raises(KeyboardInterrupt), interrupted_when(lambda: workers.busy == 2):
        for _ in results:
            pass  # pragma: no cover
    workers.close()
    assert not start_time(int(pid))
    assert not Path(folder).exists()


_PARENT = """
from harness.explore.workers import Workers
from harness.tests.explore.fakes import FakeSetup
from harness.tests.explore.test_workers import titled
workers = Workers(FakeSetup(), 2)
for _, attempt in workers([titled("pid")]):
    print(attempt.error, flush=True)
list(workers(map(titled, ("wait 60", "wait 60"))))
"""


def test_a_worker_does_not_outlive_a_killed_parent() -> None:
    parent = subprocess.Popen([sys.executable, "-c", _PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        pid, folder = parent.stdout.readline().split()
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    wait_until(
        lambda: not start_time(int(pid)) and not Path(folder).exists(), what="the end of it", timeout_s=20
    )


def no_setup(_folder: RunFolder) -> Run:
    raise SetupError("no such thing", details="more")


def test_a_worker_that_cannot_start_says_why() -> None:
    with Workers(no_setup, 2) as workers, pytest.raises(SetupError) as raised:
        list(workers([titled("pid")]))
    assert raised.value.message == "a worker process cannot start: no such thing"
