from __future__ import annotations

import random

import pytest

from harness.report.reliability import Reliability


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
