from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from harness.explore.statistics import (
    MOST_VALIDATIONS,
    Decision,
    SequentialTest,
    for_search,
    for_validation,
)
from harness.report.reliability import Reliability


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
