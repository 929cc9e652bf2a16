from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.bench import measure, rows
from harness.bench.benchmarks import BENCHMARKS
from harness.bench.profile import TOTAL, stages
from harness.errors import GuestError, SetupError
from harness.history import History, Kind, read
from harness.matrix import Matrix, Selection
from harness.reaper import RunFolder
from harness.testbed import Cell


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


@pytest.fixture
def cell() -> Cell:
    return Matrix(Selection(accel="tcg")).cell("default", "default", "pc")


@pytest.fixture
def run() -> Iterator[RunFolder]:
    made = RunFolder()
    yield made
    made.close()


@pytest.mark.qemu
@pytest.mark.parametrize(
    ("benchmark", "name"),
    [
        ("start", "bare script, booted"),
        ("start", "labgrid, booted"),
        ("migrate", "restored guest"),
        ("qmp", "bare socket"),
        ("qmp", "harness"),
    ],
)
def test_a_turn_of_a_benchmark_leaves_nothing(benchmark: str, name: str, cell: Cell, run: RunFolder) -> None:
    if name.startswith("labgrid"):
        pytest.importorskip("labgrid", reason="labgrid is not installed: pip install -e '.[bench]'")
    assert BENCHMARKS[benchmark](cell, run)[name]() > 0
    assert run.processes() == []
    assert not [path for path in run.path.iterdir() if path.name.startswith(("bare", "labgrid", "qmp"))]


def test_the_stages_of_a_start_add_up(tmp_path: Path) -> None:
    history = History(tmp_path / "history.ndjson")
    history.note("source", "guest:started", "restored")
    history.note("source", "machine:launch", {})
    with history.operation("guest:source", "guest:restore"):
        with history.operation("source", "qmp:migrate-incoming"):
            history.append(Kind.EVENT, "source", "event:RESUME", {})
        history.note("guest:source", "ssh:connected", {"its banner": 0.0, "the key exchange": 0.0})
    history.close()
    found = stages(read(tmp_path / "history.ndjson"))
    total = found.pop(TOTAL)
    assert "the first command" in found
    assert sum(found.values()) == pytest.approx(total)


def test_a_booted_guest_has_no_stages(tmp_path: Path) -> None:
    history = History(tmp_path / "history.ndjson")
    history.note("source", "guest:started", {"cold": "--cold"})
    history.close()
    with pytest.raises(SetupError, match="no guest:started; only a restored guest has it"):
        stages(read(tmp_path / "history.ndjson"))
