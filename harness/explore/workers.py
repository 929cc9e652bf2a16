"""Processes that run programs at the same time, each in fresh guests.

Threads would not do: a testbed looks for what it left behind in its own process, which therefore runs one
attempt at a time. No worker outlives the process that started it, however that ends: each belongs to its run
folder, whose watcher kills it (:mod:`harness.reaper`). A worker has its own run folder for its guests.
"""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path

from harness.deadline import Deadline, wait_until
from harness.errors import HarnessError, SetupError, WaitTimeout
from harness.explore.alphabet import Run
from harness.explore.attempt import Attempt, Ending
from harness.explore.program import Program
from harness.reaper import RunFolder

#: Called once in a worker, with the worker's run folder; it is pickled.
Setup = Callable[[RunFolder], Run]
#: Seconds after which an attempt counts as hanging. Whatever waits in it has its own deadline.
ATTEMPT_LIMIT_S = 600.0
#: Seconds that a worker has to start: it finds the cell in the cache.
_START_LIMIT_S = 300.0
#: Seconds that idle workers, and the files of workers that were killed, have to go.
_END_S = 20.0


@dataclass
class _Worker:
    """One process.

    :ivar ticket: of the attempt that it makes now; ``None`` when it is idle.
    :ivar folder: its run folder.
    """

    process: subprocess.Popen[bytes]
    connection: Connection
    folder: Path
    ticket: int | None = None
    deadline: Deadline = field(default_factory=lambda: Deadline.after(0))


class Workers:
    """A number of processes that make attempts.

    :param setup: makes the function that makes one attempt.
    :param count: the number of processes.
    :param limit_s: seconds after which an attempt is ended and counts as an error of the harness.
    """

    def __init__(self, setup: Setup, count: int, *, limit_s: float = ATTEMPT_LIMIT_S) -> None:
        self._setup, self._count, self._limit_s = setup, count, limit_s
        self._workers: list[_Worker] = []
        self._tickets = itertools.count()
        self._folder = RunFolder()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, programs: Iterable[Program]) -> Iterator[tuple[Program, Attempt]]:
        """Make one attempt at each program in the processes; return them in the order of ``programs``.

        Programs are taken from ``programs`` when a worker is free. In that order a decision to stop does not
        favour attempts that end soon. What is still being made when the caller stops is not returned.

        :raises SetupError: when a worker cannot start.
        """
        given: dict[int, tuple[int, Program]] = {}  # by ticket
        ended: dict[int, tuple[Program, Attempt]] = {}
        left, numbers = iter(programs), itertools.count()
        next_out = 0
        while True:
            more = True
            # A worker is not kept idle by a slow attempt, nor does the rest run far ahead of it.
            while more and len(ended) <= 4 * self._count and (worker := self._idle()) is not None:
                program = next(left, None)
                more = program is not None
                if program is not None:
                    given[self._give(worker, program)] = next(numbers), program
            while next_out in ended:
                yield ended.pop(next_out)
                next_out += 1
            if not given and not more:
                return
            if not self.busy:
                continue
            # A worker may still make an attempt whose caller has stopped.
            for ticket, attempt in self._ended():
                if ticket in given:
                    number, program = given.pop(ticket)
                    ended[number] = program, attempt

    @property
    def busy(self) -> int:
        """The number of worker processes that make an attempt now."""
        return sum(worker.ticket is not None for worker in self._workers)

    def _idle(self) -> _Worker | None:
        """A worker without an attempt; it is started when there are fewer than there may be."""
        free = next((worker for worker in self._workers if worker.ticket is None), None)
        if free is None and len(self._workers) < self._count:
            free = self._start()
            self._workers.append(free)
        return free

    def _start(self) -> _Worker:
        ours, its = Pipe()
        package = Path(__file__).parents[2]
        process = subprocess.Popen(
            # -P: without it a folder called harness in the current folder would be imported instead.
            [sys.executable, "-P", "-m", __name__, str(its.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=(its.fileno(),),
            # Ctrl-C at the terminal is handled here.
            start_new_session=True,
            env={**self._folder.environment(), "PYTHONPATH": str(package)},
        )
        its.close()
        try:
            ours.send(self._setup)
            if not ours.poll(_START_LIMIT_S):
                raise SetupError(f"a worker process did not start within {_START_LIMIT_S:g} s")
            answer = ours.recv()
        except (EOFError, OSError):
            raise SetupError(f"a worker process ended at its start, with {process.wait()}") from None
        if isinstance(answer, str):
            raise SetupError(f"a worker process cannot start: {answer}")
        return _Worker(process, ours, answer)

    def _give(self, worker: _Worker, program: Program) -> int:
        worker.ticket, worker.deadline = next(self._tickets), Deadline.after(self._limit_s)
        with contextlib.suppress(OSError):  # It has ended: _ended() finds out.
            worker.connection.send(program)
        return worker.ticket

    def _ended(self) -> Iterator[tuple[int, Attempt]]:
        """Wait for the worker processes' next attempts to end."""
        busy = [worker for worker in self._workers if worker.ticket is not None]
        soonest = min(worker.deadline.remaining_s for worker in busy)
        ready = wait([worker.connection for worker in busy], soonest)
        for worker in busy:
            ticket = worker.ticket
            assert ticket is not None
            if worker.connection in ready:
                try:
                    attempt = worker.connection.recv()
                except (EOFError, OSError):
                    attempt = self._replace(worker, f"a worker process ended with {worker.process.wait()}")
                worker.ticket = None
                yield ticket, attempt
            elif worker.deadline.expired:
                attempt = self._replace(worker, f"the attempt did not end within {self._limit_s:g} s")
                yield ticket, attempt

    def _replace(self, worker: _Worker, why: str) -> Attempt:
        """End a worker process. Another one is started when it is needed."""
        self._workers.remove(worker)
        _end(worker)
        return Attempt(Ending.ERROR, error=why)

    def close(self) -> None:
        """End all worker processes with their guests, in the middle of an attempt, too."""
        for worker in self._workers:
            worker.connection.close()
        for worker in self._workers:
            if worker.ticket is not None:
                worker.process.kill()
        for worker in self._workers:
            _end(worker)
        self._workers.clear()
        self._folder.close()


def _end(worker: _Worker) -> None:
    """End a worker process: wait for an idle one, kill any other, wait until its watcher has cleaned up."""
    worker.connection.close()
    if worker.ticket is not None:
        worker.process.kill()
    try:
        worker.process.wait(_END_S)
    except subprocess.TimeoutExpired:
        worker.process.kill()
        worker.process.wait()
    with contextlib.suppress(WaitTimeout):
        wait_until(lambda: not worker.folder.exists(), what="the end of its guests", timeout_s=_END_S)


def _attempt(run: Run, program: Program) -> Attempt:
    try:
        return run(program)
    except HarnessError as exc:
        return Attempt(Ending.ERROR, error=exc.message)
    except Exception as exc:
        first = str(exc).partition("\n")[0]
        return Attempt(Ending.ERROR, error=f"{type(exc).__name__}: {first}")


def _serve(connection: Connection) -> None:
    """Make attempts in a worker process until the other end of the connection is closed."""
    folder = RunFolder()
    try:
        try:
            run: Run = connection.recv()(folder)
        except Exception as exc:
            connection.send(str(exc).partition("\n")[0] or type(exc).__name__)
            return
        connection.send(folder.path)
        with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
            while True:
                connection.send(_attempt(run, connection.recv()))
    finally:
        folder.close()


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])))
