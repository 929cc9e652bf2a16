from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import SetupError
from harness.explore.attempt import Attempt, Ending, Failure
from harness.explore.replay import Replay, discard, keep_shortest, replay
from harness.tests.explore.fakes import FakeRun, program, sequence, serial

BROKEN = program("plug:0 unplug:0 plug:0")


def test_a_program_that_always_fails() -> None:
    found = replay(BROKEN, serial(FakeRun([sequence("plug", "unplug")])), 500)
    assert str(found.reliability) == "20 of 20 (84 to 100 %)"
    assert list(found.lines()) == [
        "failed 20 of 20 (84 to 100 %)",
        "  20 of 20 (84 to 100 %) at step 1: fake: it broke",
        "    signature: fake | it broke",
    ]


def test_it_is_not_run_more_often_than_asked_for() -> None:
    run = FakeRun([sequence("plug", "unplug", reliability=0.5)])
    found = replay(BROKEN, serial(run), 10)
    assert len(found.attempts) == len(run.programs) == 10
    assert 0 < found.reliability.failures < 10


def test_a_passing_program_stops_when_that_is_clear() -> None:
    assert list(replay(BROKEN, serial(FakeRun([])), 100).lines()) == ["failed 0 of 20 (0 to 16 %)"]


def test_failures_are_grouped_by_signature() -> None:
    run = FakeRun(
        [
            sequence("plug", message="at 12", reliability=0.2),
            sequence("plug", "unplug", message="it hangs"),
        ]
    )
    found = replay(BROKEN, serial(run), 100, enough=lambda _: False)
    assert list(found.failures) == ["fake | it hangs", "fake | at N"]
    assert found.reliability_of("fake | it hangs").attempts == 100
    assert found.reliability.failures == 100


def test_errors_are_counted_apart() -> None:
    endings = iter([Ending.PASSED, Ending.ERROR, Ending.PASSED, Ending.ERROR, Ending.PASSED])
    found = replay(BROKEN, serial(lambda _: Attempt(next(endings), error="no memory")), 3)
    assert str(found.reliability) == "0 of 3 (0 to 56 %)"
    assert list(found.lines())[1:] == [
        "  2 attempts do not count: an error of the host or the harness",
        "    the last one: no memory",
    ]


def test_errors_without_end_stop_it() -> None:
    with pytest.raises(SetupError, match="5 attempts in a row ended with an error: no memory"):
        replay(BROKEN, serial(lambda _: Attempt(Ending.ERROR, error="no memory")))


@pytest.mark.parametrize(
    ("steps", "reliability", "deterministic"),
    [
        ("plug:0 hold:0 unplug:0", 1.0, True),
        ("plug:0 hold:0 unplug:0", 0.9, False),
        ("plug:0 unplug:0", 1.0, False),
    ],
)
def test_a_race_that_a_hold_decides_is_deterministic(
    steps: str, reliability: float, deterministic: bool
) -> None:
    run = FakeRun([sequence("plug", "unplug", reliability=reliability)])
    found = replay(program(steps), serial(run))
    assert found.is_deterministic == deterministic
    assert (", deterministic" in next(found.lines())) == deterministic


def test_artefacts_are_removed(tmp_path: Path) -> None:
    made = [Attempt(Ending.FAILED, artifacts=tmp_path / name) for name in "ab"]
    for attempt in made:
        assert attempt.artifacts is not None
        attempt.artifacts.mkdir()
    discard([made[0], Attempt(Ending.PASSED)])
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_the_shortest_failure_of_each_signature_is_kept(tmp_path: Path) -> None:
    def attempt(name: str, message: str, seconds: float) -> Attempt:
        (tmp_path / name).mkdir()
        return Attempt(Ending.FAILED, Failure("fake", message), "", seconds, tmp_path / name)

    made = [attempt("a", "x", 3.0), attempt("b", "x", 2.0), attempt("c", "x", 4.0), attempt("d", "y", 5.0)]
    keep_shortest(Replay(BROKEN, made))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "d"]


def test_nothing_was_run() -> None:
    assert list(Replay(BROKEN).lines()) == ["failed 0 of 0 (0 to 100 %)"]
