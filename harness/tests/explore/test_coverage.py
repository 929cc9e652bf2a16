from __future__ import annotations

from harness.explore.attempt import Attempt, Ending, Failure
from harness.explore.coverage import BEGIN, Counts, Coverage
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


def test_pairs_of_consecutive_steps_are_counted_and_what_was_possible_instead() -> None:
    found = covered(("plug:0 stop", PASSED), ("plug:0 unplug:0", PASSED), ("stop", PASSED))
    pairs = found.pairs(RAW)
    assert {pair: times for pair, times in pairs.items() if times} == {
        (BEGIN, "plug"): 2,
        (BEGIN, "stop"): 1,
        ("plug", "stop"): 1,
        ("plug", "unplug"): 1,
    }
    assert pairs["plug", "write"] == pairs["stop", "cont"] == pairs["stop", "plug"] == 0
    assert ("plug", "plug") not in pairs, "there is only one share"
    assert ("cont", "stop") not in pairs, "no program has made a cont"


def test_the_pair_of_a_failure_counts_and_what_follows_does_not() -> None:
    failed = Attempt(Ending.FAILED, Failure("fake", "it broke", step=1))
    pairs = covered(("plug:0 stop cont", failed), ("plug:0 stop", Attempt(Ending.ERROR))).pairs(RAW)
    assert pairs["plug", "stop"] == 1
    assert not any(first == "stop" for first, _ in pairs)
