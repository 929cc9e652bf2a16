from __future__ import annotations

import pytest

from harness.bench.timing import measure, rows
from harness.errors import GuestError


def test_every_candidate_runs_once_a_round() -> None:
    turns: list[str] = []

    def turn(name: str, seconds: float) -> float:
        turns.append(name)
        return seconds

    reported: list[str] = []
    table = measure(
        {"slow": lambda: turn("slow", 5.0), "fast": lambda: turn("fast", 0.5)}, 3, reported.append
    )
    assert turns == ["slow", "fast"] * 3
    assert reported == ["round 1 of 3 …", "round 2 of 3 …", "round 3 of 3 …"]
    assert [(row.name, row.rounds, row.median_s, row.ratio) for row in table] == [
        ("slow", 3, 5.0, 1.0),
        ("fast", 3, 0.5, 10.0),
    ]


def test_the_ratio_is_that_of_the_medians() -> None:
    (_, row) = rows({"first": [2.0, 2.0, 2.0], "second": [1.0, 9.0, 0.5]})
    assert (row.median_s, row.min_s, row.max_s, row.ratio) == (1.0, 0.5, 9.0, 2.0)


def test_a_turn_that_fails_is_an_error() -> None:
    def fails() -> float:
        raise GuestError("it did not boot")

    with pytest.raises(GuestError):
        measure({"one": fails}, 2, lambda _: None)
