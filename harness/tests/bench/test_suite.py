"""A timed run of the scenarios: its processor time, its failures, and its limit."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from harness.bench.suite import run_suite
from harness.errors import SetupError


@pytest.fixture
def scenarios(tmp_path: Path) -> Path:
    """An empty folder of scenarios, in a project without the harness."""
    folder = tmp_path / "project" / "scenarios"
    folder.mkdir(parents=True)
    (folder.parent / "pytest.ini").write_text("[pytest]\n")
    return folder


def test_a_run_is_timed(scenarios: Path, tmp_path: Path) -> None:
    (scenarios / "test_busy.py").write_text(
        "import time\ndef test_busy():\n    while time.process_time() < 1.3: pass\n"
    )
    run = run_suite(scenarios, 1, [], tmp_path / "log")
    assert run.wall_s > 1
    assert run.cpu_s > 1
    assert run.python_s > 1
    assert "1 passed" in (tmp_path / "log").read_text()


def test_a_run_with_a_failure_is_an_error(scenarios: Path, tmp_path: Path) -> None:
    (scenarios / "test_fails.py").write_text("def test_fails(): assert 0\n")
    with pytest.raises(SetupError, match=r"^with -n 0, pytest exited with 1: =+ 1 failed.* \(log: .*/log\)"):
        run_suite(scenarios, 0, [], tmp_path / "log")


def test_a_run_that_hangs_is_ended(scenarios: Path, tmp_path: Path) -> None:
    (scenarios / "test_hangs.py").write_text(
        "import threading\ndef test_hangs(): threading.Event().wait(600)\n"
    )
    with pytest.raises(SetupError, match=r"^the scenarios with -n 0: pytest printed nothing for 1 s"):
        run_suite(scenarios, 0, [], tmp_path / "log", silence_s=1.0)
    assert [
        one for one in psutil.process_iter(["cmdline"]) if str(scenarios) in (one.info["cmdline"] or [])
    ] == []
