from __future__ import annotations

from pathlib import Path

import pytest

from harness.bench import CONTESTS, race, rows
from harness.errors import GuestError
from harness.matrix import Matrix, Selection
from harness.reaper import RunFolder


def test_everybody_takes_a_turn_in_every_round() -> None:
    turns: list[str] = []

    def turn(name: str, seconds: float) -> float:
        turns.append(name)
        return seconds

    told: list[str] = []
    table = race({"slow": lambda: turn("slow", 5.0), "fast": lambda: turn("fast", 0.5)}, 3, told.append)
    assert turns == ["slow", "fast"] * 3
    assert told == ["round 1 of 3 …", "round 2 of 3 …", "round 3 of 3 …"]
    assert [(row.name, row.rounds, row.median_s, row.ratio) for row in table] == [
        ("slow", 3, 5.0, 1.0),
        ("fast", 3, 0.5, 10.0),
    ]


def test_the_median_is_what_counts_and_the_spread_is_told() -> None:
    (_, row) = rows({"first": [2.0, 2.0, 2.0], "second": [1.0, 9.0, 0.5]})
    assert (row.median_s, row.min_s, row.max_s, row.ratio) == (1.0, 0.5, 9.0, 2.0)


def test_a_turn_that_fails_gives_no_table() -> None:
    def fails() -> float:
        raise GuestError("it never booted")

    with pytest.raises(GuestError):
        race({"one": fails}, 2, lambda _: None)


@pytest.mark.qemu
def test_a_bare_script_boots_a_guest_and_leaves_nothing() -> None:
    cell = Matrix(Selection(accel="tcg")).cell("default", "default", "pc")
    run = RunFolder()
    try:
        assert CONTESTS["start"](cell, run)["bare script, booted"]() > 0
        assert run.processes() == []
        assert not list(Path(run.path).glob("bare*"))
    finally:
        run.close()
