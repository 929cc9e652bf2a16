from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from harness.plugin import schedule, workers
from harness.tests.plugin.conftest import Pytest

_CASES = """
import pytest

@pytest.fixture
def cell():
    pass

@pytest.fixture
def leak_hunt():
    pass

@pytest.fixture(autouse=True)
def order(request):
    with (request.config.rootpath / "order").open("a") as file:
        file.write(request.node.name + " ")

def test_quick(cell): pass
def test_slow(cell): pass
def test_hunt(cell, leak_hunt): pass
def test_unknown(cell): pass
def test_own(): pass
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "conftest.py").write_text(Path(__file__).with_name("inner.py").read_text())
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_cases.py").write_text(_CASES)
    (tmp_path / "cache").mkdir()
    known = {"test_cases.py::test_quick": 5.0, "test_cases.py::test_slow": 99.0}
    (tmp_path / "cache" / "durations.json").write_text(json.dumps(known))
    return tmp_path


def test_slow_ones_come_first(folder: Path, run_pytest: Pytest) -> None:
    done = run_pytest(folder, "--machine", "pc", "-n", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    order = (folder / "order").read_text().split()
    assert order == ["test_slow", "test_hunt", "test_unknown", "test_quick", "test_own"]


def test_alone_they_run_in_the_order_of_the_files(folder: Path, run_pytest: Pytest) -> None:
    assert run_pytest(folder).returncode == 0
    assert (folder / "order").read_text().split()[:2] == ["test_quick", "test_slow"]


@pytest.mark.parametrize("damage", ["", "{", "[1]", '{"test_cases.py::test_quick": "long"}'])
def test_a_damaged_record_is_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    (tmp_path / "durations.json").write_text(damage)
    assert schedule._read() == {}


def test_a_damaged_record_costs_nothing(folder: Path, run_pytest: Pytest) -> None:
    path = folder / "cache" / "durations.json"
    path.write_text("{")
    done = run_pytest(folder, "--machine", "pc", "-n", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(json.loads(path.read_text())) == 5


def test_what_was_not_run_keeps_its_duration(folder: Path, run_pytest: Pytest) -> None:
    assert run_pytest(folder, "-k", "quick").returncode == 0
    kept = json.loads((folder / "cache" / "durations.json").read_text())
    assert kept["test_cases.py::test_slow"] == 99.0
    assert kept["test_cases.py::test_quick"] != 5.0


@pytest.mark.parametrize(("cores", "gib", "expected"), [(2, 16, 6), (4, 16, 12), (8, 2, 2), (1, 0.1, 1)])
def test_workers_by_cores_and_memory(
    monkeypatch: pytest.MonkeyPatch, cores: int, gib: float, expected: int
) -> None:
    monkeypatch.setattr("harness.plugin.workers.cores", lambda: cores)
    monkeypatch.setattr("harness.plugin.workers.available_bytes", lambda: int(gib * (1 << 30)))
    assert workers.workers() == expected


@pytest.mark.parametrize("guests", [True, False])
def test_auto_starts_that_many_workers(folder: Path, run_pytest: Pytest, guests: bool) -> None:
    """In a run of the real plugin with guests; without, xdist starts one a core."""
    other = 1 if (os.cpu_count() or 1) > 1 else 2
    conftest = folder / "conftest.py"
    patch = f"from harness.plugin import workers\nworkers.workers = lambda: {other}\n"
    conftest.write_text(f"{conftest.read_text()}\n{patch}")
    done = run_pytest(folder, "-n", "auto", *(("--machine", "pc") if guests else ()))
    assert done.returncode == 0, done.stdout + done.stderr
    assert (f"{other} worker{'s' if other > 1 else ''} [" in done.stdout) is guests
