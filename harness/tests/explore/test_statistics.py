from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from harness.explore.statistics import (
    MOST_VALIDATIONS,
    Decision,
    Reliability,
    SequentialTest,
    for_search,
    for_validation,
)


@pytest.mark.parametrize(
    ("failures", "attempts", "text"),
    [
        (19, 20, "19 of 20 (76 to 99 %)"),
        (20, 20, "20 of 20 (84 to 100 %)"),
        (0, 20, "0 of 20 (0 to 16 %)"),
        (10, 20, "10 of 20 (30 to 70 %)"),
        (1, 1, "1 of 1 (21 to 100 %)"),
        (0, 0, "0 of 0 (0 to 100 %)"),
        (500, 1000, "500 of 1000 (47 to 53 %)"),
    ],
)
def test_a_reliability_is_printed_with_its_wilson_interval(failures: int, attempts: int, text: str) -> None:
    assert str(Reliability(failures, attempts)) == text


def test_the_interval_contains_the_truth_as_often_as_it_says() -> None:
    rng = random.Random(1)
    for truth in (0.05, 0.3, 0.5, 0.95):
        hits = 0
        for _ in range(1000):
            seen = Reliability(sum(rng.random() < truth for _ in range(40)), 40)
            low, high = seen.interval
            hits += low <= truth <= high
        assert hits >= 910


def test_more_failures_than_attempts_are_refused() -> None:
    with pytest.raises(ValueError, match="3 failures of 2 attempts"):
        Reliability(3, 2)


def test_twenty_equal_results_are_clear_and_nineteen_are_not() -> None:
    assert Reliability(20, 20).is_clear
    assert Reliability(0, 20).is_clear
    assert not Reliability(19, 19).is_clear
    assert not Reliability(10, 20).is_clear


def test_the_number_of_attempts_needed_makes_it_clear() -> None:
    assert Reliability(0, 0).attempts_needed() == 20
    assert Reliability(12, 12).attempts_needed() == 8
    assert Reliability(20, 20).attempts_needed() == 0
    more = Reliability(10, 20).attempts_needed()
    assert Reliability((20 + more) // 2, 20 + more).is_clear
    assert not Reliability((19 + more) // 2, 19 + more).is_clear


def decision(test: SequentialTest, reliability: float, rng: random.Random, most: int = 3000) -> Decision:
    seen = Reliability(0, 0)
    while (found := test.decide(seen)) is Decision.OPEN and seen.attempts < most:
        seen = seen.with_attempt(rng.random() < reliability)
    return found


def test_a_failure_that_always_comes_needs_few_attempts() -> None:
    search, validation = for_search(Reliability(12, 12)), for_validation(Reliability(12, 12))
    assert search.decide(Reliability(1, 1)) is Decision.OPEN
    assert search.decide(Reliability(3, 3)) is Decision.YES
    assert search.decide(Reliability(0, 1)) is Decision.NO
    assert validation.decide(Reliability(5, 5)) is Decision.OPEN
    assert validation.decide(Reliability(7, 7)) is Decision.YES


ORIGINALS = [Reliability(20, 20), Reliability(12, 20), Reliability(6, 40)]


@pytest.mark.parametrize("original", ORIGINALS)
def test_a_lost_failure_is_validated_in_less_than_one_of_twenty_minimisations(original: Reliability) -> None:
    """A program that fails half as often passes one validation in 100; there are at most five."""
    test, rng = for_validation(original), random.Random(2)
    wrong = sum(decision(test, test.too_little, rng) is Decision.YES for _ in range(2000))
    assert wrong / 2000 * MOST_VALIDATIONS < 0.05


@pytest.mark.parametrize("original", ORIGINALS)
@pytest.mark.parametrize("kind", [for_search, for_validation])
def test_a_step_that_has_no_effect_is_dropped_in_most_cases(
    original: Reliability, kind: Callable[[Reliability], SequentialTest]
) -> None:
    test, rng = kind(original), random.Random(3)
    dropped = sum(decision(test, original.estimate, rng) is Decision.YES for _ in range(500))
    assert dropped / 500 > 0.78


def test_a_program_that_never_fails_is_refused_soon() -> None:
    test = for_search(Reliability(5, 20))
    attempts = next(n for n in range(1, 100) if test.decide(Reliability(0, n)) is Decision.NO)
    assert attempts <= 12


def test_bounds_have_to_be_in_order() -> None:
    with pytest.raises(ValueError, match="not in order"):
        SequentialTest(0.5, 0.5, 0.05, 0.05)
