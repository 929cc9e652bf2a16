"""What a run leaves in a history: complete, killed, with a full disk; and what is refused before it runs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.plugin import recording
from harness.plugin.outcomes import COLLECTOR
from harness.report.nights import rows
from harness.report.nights.store import Store
from harness.tests.plugin import inner
from harness.tests.plugin.conftest import Pytest

_CASES = """
import os, signal
from pathlib import Path
import pytest
from harness.errors import Violation

@pytest.fixture(autouse=True)
def axes(qemu_name, kernel_name, machine_name): pass

def test_passes(testbed): pass
def test_fails(testbed): raise Violation("migrate was accepted after 3 s\\nmore")
def test_dies(testbed): testbed.dies()
def test_skips(testbed): pytest.skip("no file: URIs")
@pytest.mark.xfail(reason="R1: a bug", strict=True)
def test_known(testbed): assert 0
def test_flaky(testbed):
    if not Path("seen").exists():
        Path("seen").touch()
        raise Violation("only the first time")
@pytest.mark.parametrize("way", ["of-itself"])
def test_with_a_parameter(testbed, way): pass
def test_killed(testbed):
    if Path("kill").exists():
        os.kill(os.getpid(), signal.SIGKILL)
"""
_FULL = """
from harness.errors import SetupError
from harness.report.nights.recorder import Recorder

def add(self, result): raise SetupError("nights.sqlite: cannot write the history: database or disk is full")
Recorder.add = add
"""


def _cases(folder: Path, more: str = "") -> None:
    (folder / "test_leak.py").write_text(_CASES)
    (folder / "test_other.py").write_text("def test_without_a_guest(): pass\n")
    (folder / "conftest.py").write_text(Path(inner.__file__).read_text() + more)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_run_and_each_result_are_recorded(run_pytest: Pytest, tmp_path: Path, workers: str) -> None:
    _cases(tmp_path)
    argv = ["--machine", "pc", "--record", "nights.sqlite", "-n", workers]
    done = run_pytest(tmp_path, *argv)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "history: nights.sqlite" in done.stdout
    assert "new failure, 4 of 4" in done.stdout
    assert "new failure, 1 of 4 (flaky)" in done.stdout
    assert "flaky: another outcome when run again" in done.stdout
    with Store(tmp_path / "nights.sqlite", read_only=True) as history:
        (run,) = history.select(rows.Run)
        assert (run.kind, run.complete, run.exit_code, run.expected) == ("scenarios", True, 1, 8)
        assert run.options[-4:] == ("--machine", "pc", "-n", workers)
        assert "--record" not in run.options
        assert run.begun < (run.ended or "")
        assert history.select(rows.Running) == []
        (cell,) = history.select(rows.Cell)
        (qemu,) = history.select(rows.Qemu)
        assert (cell.kernel, cell.machine_type, cell.qemu_id) == ("6.1", "pc", qemu.id)
        results = {result.test.partition("::")[2]: result for result in history.select(rows.Result)}
        again = {
            name: [one.outcome for one in history.select(rows.Confirmation, "result_id = ?", [result.id])]
            for name, result in results.items()
        }
        passed_later = history.select(rows.Confirmation, "outcome = 'passed'")
        measured = {m.result_id for m in history.select(rows.Measurement, "name = 'qmp.median'")}
    assert {name: result.outcome for name, result in results.items()} == {
        "test_passes": "passed",
        "test_fails": "new failure",
        "test_dies": "new failure",
        "test_skips": "skipped",
        "test_known": "known bug",
        "test_flaky": "new failure",
        "test_with_a_parameter[of-itself]": "passed",
        "test_killed": "passed",
    }
    assert {name: outcomes for name, outcomes in again.items() if outcomes} == {
        "test_fails": ["new failure"] * 3,
        "test_dies": ["new failure"] * 3,
        "test_flaky": ["passed"] * 3,
    }
    assert all(Path(one.artefacts or "/gone").is_dir() for one in passed_later), "to see what differed"
    fails = results["test_fails"]
    assert fails.signature == "no leak | harness.errors.Violation: migrate was accepted after N s"
    assert fails.cause == "harness.errors.Violation: migrate was accepted after 3 s"
    assert fails.guarantees == ("no leak",)
    assert fails.load is not None
    assert fails.seconds > 0
    assert Path(fails.artefacts or "").is_dir()
    assert results["test_dies"].signature == "qemu_alive | QEMU was killed by SIGSEGV during the program"
    assert results["test_passes"].artefacts is None, "its folder is not kept"
    assert results["test_skips"].cause == "no file: URIs"
    workers_named = {result.worker for result in results.values()}
    assert workers_named <= ({"main"} if workers == "0" else {"gw0", "gw1"})
    assert {result.id for result in results.values()} == measured


def test_a_killed_run_is_incomplete_and_names_the_test_that_was_running(
    run_pytest: Pytest, tmp_path: Path
) -> None:
    _cases(tmp_path)
    (tmp_path / "kill").touch()
    done = run_pytest(tmp_path, "--machine", "pc", "--record", "nights.sqlite")
    assert done.returncode == -9
    with Store(tmp_path / "nights.sqlite", read_only=True) as history:
        (run,) = history.select(rows.Run)
        assert not run.complete
        assert [one.nodeid.partition("[")[0] for one in history.select(rows.Running)] == [
            "test_leak.py::test_killed"
        ]
        assert len(history.select(rows.Result)) == 7, "the results before it"


def test_a_full_disk_changes_no_outcome_and_is_said_once(run_pytest: Pytest, tmp_path: Path) -> None:
    _cases(tmp_path, _FULL)
    done = run_pytest(tmp_path, "--machine", "pc", "--record", "nights.sqlite", "--confirm", "0")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "3 failed, 4 passed, 1 skipped, 1 xfailed" in done.stdout
    assert done.stdout.count("the history lacks results of this run") == 1
    assert "disk is full" in done.stdout
    with Store(tmp_path / "nights.sqlite", read_only=True) as history:
        assert [run.complete for run in history.select(rows.Run)] == [False]


def test_what_cannot_be_a_history_is_refused_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database, however long it is" * 100)
    for given, message in (
        ("text", "not a SQLite file"),
        ("none/nights.sqlite", "the folder .* does not exist"),
        (".", "is a folder"),
    ):
        with pytest.raises(pytest.UsageError, match=f"--record .*{message}") as refused:
            recording.pytest_configure(_config(tmp_path, record=given))
        assert "\n" not in str(refused.value)


def test_nothing_is_opened_for_a_run_that_only_collects(tmp_path: Path) -> None:
    recording.pytest_configure(_config(tmp_path, record="nights.sqlite", collectonly=True))
    assert not (tmp_path / "nights.sqlite").exists()


def _config(folder: Path, *, record: str, collectonly: bool = False) -> pytest.Config:
    values = {"harness_record": record, "collectonly": collectonly}
    return cast(
        pytest.Config,
        SimpleNamespace(
            getoption=lambda name, default=None: values.get(name, default),
            invocation_params=SimpleNamespace(dir=folder),
            stash=pytest.Stash(),
        ),
    )


def test_workers_that_pytest_does_not_name_are_numbered() -> None:
    """At most as many tests run as there are workers, so a number is used again."""
    written: list[tuple[str, str]] = []
    recorder: Any = SimpleNamespace(begin_test=lambda test, worker: written.append((test, worker)))
    config: Any = SimpleNamespace(
        pluginmanager=SimpleNamespace(hasplugin=lambda name: name == "dsession"),
        stash={COLLECTOR: SimpleNamespace(result=lambda test: None)},
    )
    made = recording._Recording(config, recorder)
    made.pytest_runtest_logstart("a")
    made.pytest_runtest_logstart("b")
    made.pytest_runtest_logreport(cast(Any, SimpleNamespace(nodeid="a", when="teardown")))
    made.pytest_runtest_logstart("c")
    assert written == [("a", "1"), ("b", "2"), ("c", "1")]
