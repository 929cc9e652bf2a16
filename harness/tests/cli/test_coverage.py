"""``harness coverage``, without a QEMU: its arguments, and what it says of machines without counters."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.cli import coverage
from harness.history import History
from harness.provision import Provisioner, gcov
from harness.report import coverage as reached
from harness.report import summary
from harness.report.coverage import FileReport, Share
from harness.report.summary import Outcome, Run
from harness.tests.cli.conftest import Harness
from harness.tests.report.test_summary import result


def _machine(history: History, name: str, returncode: int, reason: str = "") -> None:
    if reason:
        history.note(name, "machine:expect-exit", {"reason": reason})
    history.event(name, "machine:exit", {"returncode": returncode})


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    """The artefacts of two tests, one of which killed a machine."""
    folder = tmp_path / "out/artifacts"
    for test in ("test_leak.t1", "test_leak.t2"):
        (folder / test).mkdir(parents=True)
        history = History(folder / test / "history.ndjson")
        _machine(history, "source", 0, "quit")
        _machine(history, "first", -9, "kill" if test == "test_leak.t1" else "")
        _machine(history, "second", -11, "kill")
        history.close()
    return folder


def test_machines_that_did_not_exit_are_counted(artifacts: Path) -> None:
    ends = coverage.ends_of(artifacts / "test_leak.t1/history.ndjson")
    assert ends == ["exited", "killed", "crashed"]
    assert coverage._ends(artifacts) == "machines: 6; without counters: 3 crashed, 1 killed"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, artifacts: Path) -> dict[str, Any]:
    """What pytest was started with; it runs nothing, and one of its tests failed."""
    seen: dict[str, Any] = {}
    kept = artifacts.rename(tmp_path / "kept")

    def run(argv: list[str], folder: Path, **more: Any) -> subprocess.CompletedProcess[str]:
        seen.update(argv=argv, **more)
        kept.rename(artifacts)
        results = (result("scenarios/test_leak.py::t1"), result("test_leak.py::t2", outcome=Outcome.FAILED))
        summary.write(Run(results=results), Path(argv[argv.index("--summary") + 1]))
        (Path(argv[argv.index("--summary") + 1]) / "complaints.txt").write_text("profiling: x\n" * 2)
        return subprocess.CompletedProcess(argv, seen.get("exit", 1), "", "")

    build = SimpleNamespace(root=tmp_path, source=tmp_path / "tree/source")
    install = SimpleNamespace(name="7.2-src+coverage")
    monkeypatch.setattr(Provisioner, "coverage_build", lambda self, name: build)
    monkeypatch.setattr(Provisioner, "qemu_release", lambda self, name: install)
    monkeypatch.setattr(coverage, "command_in", lambda root, program: ("gcov",))
    monkeypatch.setattr(coverage, "run_pytest", run)
    monkeypatch.setattr(reached, "gather", lambda *given: {})
    found = [FileReport("hw/9pfs/9p.c", Share(9, 10), Share(1, 2), Share(1, 1), unexplained=1)]
    monkeypatch.setattr(reached, "write", lambda *given: found)
    return seen


def test_a_run_and_its_report(harness: Harness, tmp_path: Path, started: dict[str, Any]) -> None:
    ended = harness("coverage", "--thorough", "--into", tmp_path / "out", "-n", "2", "-k", "leak")
    assert ended.status == 1, "a scenario failed"
    argv = started["argv"]
    assert "7.2-src+coverage" in argv
    assert argv[-4:] == ["-n", "2", "-k", "leak"]
    assert {"--thorough", "--keep-artifacts"} <= set(argv)
    assert any(word.endswith("/scenarios") for word in argv)
    assert started["environment"][gcov.PREFIX] == str(tmp_path / "out/counters")
    assert "9 of 10 (90.0 %)" in ended.out
    assert "machines: 6; without counters: 3 crashed, 1 killed" in ended.out
    assert ended.out.count("gcov: profiling: x") == 1
    assert [path.name for path in (tmp_path / "out/artifacts").iterdir()] == ["test_leak.t2"]


def test_a_path_is_given_as_it_is_meant_here(
    harness: Harness, tmp_path: Path, started: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "test_own.py").touch()
    harness("coverage", "--into", "out", "test_own.py::test_a[x]")
    assert started["argv"][-1] == f"{tmp_path}/test_own.py::test_a[x]"
    assert not any(word.endswith("/scenarios") for word in started["argv"])
    assert "--thorough" not in started["argv"]


def test_a_run_without_a_result(harness: Harness, tmp_path: Path, started: dict[str, Any]) -> None:
    started["exit"] = 4
    ended = harness("coverage", "--into", tmp_path / "out")
    assert (ended.status, ended.line) == (
        3,
        "harness: the scenarios against QEMU 7.2-src+coverage gave no result (pytest: 4)",
    )


def test_the_report_is_made_again(harness: Harness, tmp_path: Path, started: dict[str, Any]) -> None:
    ended = harness("coverage", "--no-run", "--into", tmp_path / "out")
    assert (ended.status, started) == (0, {})


def test_both_sets_are_run_and_shown_side_by_side(
    harness: Harness, tmp_path: Path, started: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, bool]] = []
    monkeypatch.setattr(
        coverage,
        "_run",
        lambda qemu, folder, options: seen.append((folder.name, "--thorough" in options)),
    )
    reports = {
        "default": [FileReport("hw/9pfs/9p.c", Share(8, 10), Share(1, 2), Share(1, 1), unexplained=2)],
        "thorough": [FileReport("hw/9pfs/9p.c", Share(9, 10), Share(2, 2), Share(1, 1), unexplained=1)],
    }
    monkeypatch.setattr(reached, "write", lambda into, data, facts: reports[into.name])
    ended = harness("coverage", "--both", "--into", tmp_path / "out", "-k", "leak")
    assert seen == [("default", False), ("thorough", True)]
    assert ended.status == 0
    row = next(line for line in ended.out.splitlines() if "9p.c" in line)
    cells = [cell.strip() for cell in row.strip("│ ").split("│")]
    assert cells[1:3] == ["8 of 10 (80.0 %)", "9 of 10 (90.0 %)"]
    assert cells[3:] == ["50.0 %", "100.0 %", "100.0 %", "100.0 %", "1"]
    assert harness("coverage", "--both", "--thorough").status == 2


def test_without_gcovr_nothing_is_built(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    ended = harness("coverage")
    assert ended.status == 2
    assert "pip install" in ended.line
