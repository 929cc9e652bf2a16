from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from harness.report.change_points import Change, Shape, changes, shortest

NIGHTS, SERIES = 60, 400
Level = Callable[[int], float]


def noisy(level: Level, seed: int = 1, nights: int = NIGHTS) -> list[float]:
    """Figures with 5 % of noise, and some nights on a busy host."""
    rng = random.Random(seed)
    return [
        level(night) * rng.lognormvariate(0, 0.05) * (3 if rng.random() < 0.03 else 1)
        for night in range(nights)
    ]


def found(level: Level, seed: int = 1) -> list[Change]:
    return changes(noisy(level, seed), SERIES)


@pytest.mark.parametrize("seed", range(5))
def test_figures_that_did_not_change_give_no_change(seed: int) -> None:
    unchanged = [noisy(lambda night: 2.0, seed * SERIES + series, 30) for series in range(SERIES)]
    assert [values for values in unchanged if changes(values, SERIES)] == []


def test_alone_a_series_that_did_not_change_is_named_in_at_most_one_of_twenty_reports() -> None:
    rng = random.Random(1)
    named = [bool(changes([rng.random() for _ in range(30)], 1)) for _ in range(1000)]
    assert sum(named) <= 50


@pytest.mark.parametrize("seed", range(5))
def test_a_step_is_found_at_its_night(seed: int) -> None:
    (step,) = found(lambda night: 1.0 if night < 40 else 1.5, seed)
    assert (step.shape, step.end) == (Shape.STEP, NIGHTS)
    assert abs(step.index - 40) <= 1
    assert step.factor == pytest.approx(1.5, rel=0.05)


@pytest.mark.parametrize("seed", range(5))
def test_a_drift_is_told_from_a_step(seed: int) -> None:
    (drift,) = found(lambda night: 1 + 0.02 * max(0, night - 20), seed)
    assert drift.shape is Shape.DRIFT
    assert abs(drift.index - 20) <= 6
    assert drift.after == pytest.approx(1.8, rel=0.1)


def test_a_step_back_is_found_as_well() -> None:
    values = [1 + night % 7 / 100 + (25 <= night < 35) for night in range(NIGHTS)]
    there, back = changes([*values[:5], 9.0, *values[6:]], SERIES)
    assert (there.index, there.end, back.index) == (25, 35, 35)
    assert there.factor == pytest.approx(1 / (back.factor or 0), rel=0.1)


def test_one_night_on_a_busy_host_is_no_change() -> None:
    assert changes([1.0 + night % 7 / 100 for night in range(59)] + [40.0], 1) == []
    assert changes([1.0 + night % 7 / 100 for night in range(57)] + [40.0] * 2, SERIES) == []


def test_a_step_is_known_after_some_nights() -> None:
    def after(nights: int) -> list[Change]:
        return changes(
            [1.0 + night % 7 / 100 + (night >= NIGHTS - nights) for night in range(NIGHTS)], SERIES
        )

    assert after(3) == []
    (step,) = after(6)
    assert (step.shape, step.index) == (Shape.STEP, 54)


def test_a_count_that_is_otherwise_zero_has_no_factor() -> None:
    (step,) = changes([0.0] * 40 + [0.5] * 20, SERIES)
    assert (step.before, step.after, step.factor) == (0.0, 0.5, None)


def test_few_figures_show_nothing() -> None:
    assert changes([], 1) == changes([1.0], 1) == changes([1.0] * 3 + [9.0] * 3, 1) == []


@pytest.mark.parametrize("series", [1, 10, SERIES])
def test_the_shortest_series_is_the_shortest_that_can_show_a_change(series: int) -> None:
    length = shortest(series)

    def clearest(length: int) -> list[float]:
        return [float(night) + (100 if night >= length // 2 else 0) for night in range(length)]

    assert changes(clearest(length), series) != []
    assert changes(clearest(length - 1), series) == []
