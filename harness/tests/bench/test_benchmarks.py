from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.bench.benchmarks import BENCHMARKS
from harness.bench.profile import TOTAL, stages
from harness.errors import SetupError
from harness.history import History, Kind, read
from harness.matrix import Matrix, Selection
from harness.reaper import RunFolder
from harness.testbed import Cell


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
