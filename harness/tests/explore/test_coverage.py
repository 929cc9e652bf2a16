from __future__ import annotations

from harness.explore.attempt import Attempt, Ending, Failure
from harness.explore.coverage import Counts, Coverage
from harness.explore.program import AlphabetName
from harness.tests.explore.fakes import FakeAlphabet, program

RAW = AlphabetName.RAW
PASSED = Attempt(Ending.PASSED)


def covered(*attempts: tuple[str, Attempt]) -> Coverage:
    found = Coverage({RAW: FakeAlphabet()})
    for text, attempt in attempts:
        found.add(program(text, shares=1), attempt)
    return found


def test_pairs_that_were_possible_and_never_made_are_counted() -> None:
    found = covered(("plug:0", PASSED))
    # At the start: plug, stop, reset. Plugged: unplug, two writes, stop, reset.
    assert found.counts(RAW) == Counts(states=2, reached=1, never=7)
    assert found.by_step(RAW) == {
        "plug": (1, 0),
        "stop": (0, 2),
        "system_reset": (0, 2),
        "unplug": (0, 1),
        "write": (0, 2),
    }


def test_a_pair_counts_once() -> None:
    assert covered(("plug:0", PASSED), ("plug:0", PASSED)).counts(RAW).reached == 1


def test_what_comes_after_a_failure_was_not_reached() -> None:
    failed = Attempt(Ending.FAILED, Failure("fake", "it broke", step=0))
    assert covered(("plug:0 unplug:0", failed)).counts(RAW) == Counts(states=1, reached=1, never=2)


def test_an_error_reaches_nothing() -> None:
    assert covered(("plug:0", Attempt(Ending.ERROR))).counts(RAW) == Counts()
