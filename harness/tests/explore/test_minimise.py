from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from harness.explore.attempt import Attempt, Ending, Failure
from harness.explore.generate import states
from harness.explore.minimise import Minimised, minimise
from harness.explore.program import AlphabetName, Program, ProgramCell, ShareKind, text
from harness.tests.explore.fakes import Check, FakeAlphabet, FakeRun, program, sequence, serial

SIGNATURE = "fake | it broke"


def small(
    given: Program, *checks: Check, budget_s: float = 60, taken: list[Program] | None = None
) -> tuple[Minimised, FakeRun]:
    run = FakeRun(checks)
    found = minimise(
        given,
        SIGNATURE,
        serial(run),
        {AlphabetName.RAW: FakeAlphabet()},
        budget_s,
        on_best=(taken if taken is not None else list[Program]()).append,
    )
    return found, run


LONG = program(
    "plug:1 write:1:page plug:0 stop cont write:0:page write:1:byte system_reset unplug:0 plug:0 unplug:1 "
    "stop write:0:byte cont unplug:0"
)


@pytest.mark.parametrize(
    ("bug", "smallest"),
    [
        (("plug", "unplug"), "plug(0); unplug(0)"),
        (("unplug", "plug"), "plug(0); unplug(0); plug(0)"),
        (("stop", "write"), "plug(0); stop; write(0, byte)"),
        (("plug",), "plug(0)"),
        (("write", "system_reset", "unplug"), "plug(0); write(0, byte); system_reset; unplug(0)"),
    ],
)
def test_a_planted_bug_becomes_its_shortest_program(bug: Sequence[str], smallest: str) -> None:
    found, run = small(LONG, sequence(*bug))
    assert str(found.program) == smallest
    assert found.program.shares == (ShareKind(),)
    assert found.complete
    assert str(found.reliability) == "20 of 20 (84 to 100 %)"
    assert found.failure is not None
    for tried in run.programs:
        states(FakeAlphabet(), tried)


def test_no_decision_is_made_twice() -> None:
    found, run = small(LONG, sequence("stop", "write"))
    # Programs that pass are decided by two attempts.
    passing = Counter(text(one) for one in run.programs if not sequence("stop", "write")(one))
    assert set(passing.values()) <= {1, 2}
    assert found.attempts == len(run.programs)


@pytest.mark.parametrize("reliability", [0.5, 0.2])
def test_a_bug_that_comes_now_and_then_is_minimised(reliability: float) -> None:
    wrong, longer, measured = 0, 0, 0
    for seed in range(10):
        found, _ = small(LONG, sequence("stop", "write", reliability=reliability, seed=seed))
        names = [step.do for step in found.program.steps]
        wrong += names[-2:] != ["stop", "write"] and "stop" not in names
        longer += len(names) > 4
        assert found.reproduced
        low, high = found.reliability.interval
        measured += low < reliability < high
    assert wrong == 0
    assert longer <= 3
    assert measured >= 7


def test_a_step_that_makes_the_failure_frequent_is_not_dropped() -> None:
    """Without ``stop`` the program fails as well, in one of ten attempts only."""
    rng = random.Random(4)

    def check(one: Program) -> Failure | None:
        often = sequence("stop", "write")(one)
        seldom = sequence("write")(one) if rng.random() < 0.1 else None
        return often or seldom

    found, _ = small(LONG, check)
    assert "stop" in str(found.program)
    assert found.reliability.interval[0] > 0.5


def test_another_failure_never_takes_over() -> None:
    """A crash that smaller programs show is kept with its program."""
    crash = sequence("write", "system_reset", message="it crashed")

    def broke(one: Program) -> Failure | None:
        return None if len(one.steps) < 15 and crash(one) else sequence("unplug", "plug", "unplug")(one)

    def crashed(one: Program) -> Failure | None:
        return crash(one) if len(one.steps) < 15 else None

    found, _ = small(LONG, broke, crashed)
    assert str(found.program) == "plug(0); unplug(0); plug(0); unplug(0)"
    assert list(found.others) == ["fake | it crashed"]
    other, attempt = found.others["fake | it crashed"]
    assert crash(other)
    assert attempt.failure is not None


def test_the_kind_of_shares_and_the_cell_become_plain() -> None:
    odd = program("plug:0 plug:1 write:1:page unplug:1").model_copy(
        update={
            "shares": (
                ShareKind(),
                ShareKind(security_model="mapped-xattr", throttled=True),
                ShareKind(fsdev_of=1),
            ),
            "cell": ProgramCell(qemu="7.2", machine="q35", kernel="5.10"),
        }
    )
    found, _ = small(odd, sequence("plug", "write", "unplug"))
    assert found.program.shares == (ShareKind(),)
    assert found.program.cell == ProgramCell(qemu="7.2")


def test_a_kind_that_is_needed_stays() -> None:
    odd = program("plug:0 write:0:page unplug:0", shares=1).model_copy(
        update={"shares": (ShareKind(security_model="mapped-xattr", throttled=True),)}
    )
    throttled = sequence("unplug")

    def check(one: Program) -> Failure | None:
        return throttled(one) if one.shares[0].throttled else None

    found, _ = small(odd, check)
    assert found.program.shares == (ShareKind(throttled=True),)


def test_a_machine_type_that_is_needed_stays() -> None:
    given = program("plug:0", cell=ProgramCell(machine="q35"))

    def check(one: Program) -> Failure | None:
        return sequence("plug")(one) if one.cell.machine == "q35" else None

    assert small(given, check)[0].program.cell.machine == "q35"


def test_a_large_step_is_replaced_by_a_small_one() -> None:
    def check(one: Program) -> Failure | None:
        return sequence("plug", "system_reset")(one) or sequence("plug", "stop")(one)

    found, _ = small(program("plug:0 system_reset"), check)
    assert str(found.program) == "plug(0); stop"


def test_a_failure_that_does_not_come_again_leaves_the_program_alone() -> None:
    found, run = small(LONG)
    assert not found.reproduced
    assert found.program == LONG
    assert str(found.original) == "0 of 100 (0 to 4 %)"
    assert len(run.programs) == 100


def test_the_best_so_far_is_reported_at_once_and_kept_when_time_is_up() -> None:
    taken: list[Program] = []
    found, _ = small(LONG, sequence("stop", "write"), taken=taken)
    assert taken[-1] == found.program
    assert len(taken) > 1
    assert all(len(later.steps) <= len(earlier.steps) for earlier, later in itertools.pairwise(taken))
    nothing, _ = small(LONG, sequence("stop", "write"), budget_s=0.0)
    assert nothing.program == LONG
    assert not nothing.complete


def test_what_was_dropped_wrongly_comes_back() -> None:
    """Without ``stop`` the program fails in three of ten attempts: three in a row are possible."""
    wrong = 0
    for seed in range(30):
        rng = random.Random(seed)

        def check(one: Program, rng: random.Random = rng) -> Failure | None:
            seldom = sequence("write")(one) if rng.random() < 0.3 else None
            return sequence("stop", "write")(one) or seldom

        found, _ = small(LONG, check)
        wrong += found.reliability.failures / found.reliability.attempts < 0.5
    assert wrong <= 1


def test_only_the_artefacts_of_the_shortest_failing_attempt_are_left(tmp_path: Path) -> None:
    numbers = iter(range(10_000))

    def run(one: Program) -> Attempt:
        folder = tmp_path / str(next(numbers))
        folder.mkdir()
        failure = sequence("stop", "write")(one)
        ending = Ending.FAILED if failure else Ending.PASSED
        return Attempt(ending, failure, seconds=1 / int(folder.name or 1) if failure else 0, artifacts=folder)

    next(numbers)
    found = minimise(LONG, SIGNATURE, serial(run), {AlphabetName.RAW: FakeAlphabet()}, 60)
    assert found.example is not None
    assert [str(path) for path in tmp_path.iterdir()] == [str(found.example.artifacts)]


def test_what_comes_behind_the_failure_is_left_out_at_once() -> None:
    run = FakeRun([sequence("plug", "stop")])
    taken: list[Program] = []
    alphabets = {AlphabetName.RAW: FakeAlphabet()}
    minimise(LONG, SIGNATURE, serial(run), alphabets, 60, step=3, on_best=taken.append)
    assert len(run.programs[0].steps) == 4
    assert len(taken[0].steps) == 4
    # It is taken back when the failure does not come then.
    found = minimise(LONG, SIGNATURE, serial(run), alphabets, 60, step=1)
    assert str(found.program) == "plug(0); stop"
