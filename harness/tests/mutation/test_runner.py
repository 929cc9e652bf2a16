"""Starting pytest on the scenarios, and reading its results."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from harness.deadline import wait_until
from harness.errors import SetupError
from harness.mutation import runner
from harness.reaper import RunFolder, start_time


@pytest.fixture
def scenarios(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of scenarios."""
    # One level down: pytest is started in its parent, and reads conftest.py in each folder ``test*`` there
    # (pytest: ``_pytest/config``, ``_set_initial_conftests``). Beside tmp_path there are such folders.
    folder = tmp_path / "project/scenarios"
    folder.mkdir(parents=True)
    (folder.parent / "pytest.ini").write_text("[pytest]\n")
    (folder.parent / "conftest.py").write_text('pytest_plugins = ["harness.plugin"]\n')
    monkeypatch.setattr(runner, "scenarios_folder", lambda: folder)
    return folder


def test_a_run_without_a_result_is_an_error(scenarios: Path, tmp_path: Path) -> None:
    run = RunFolder()
    try:
        with pytest.raises(SetupError, match=r"against QEMU 7.2-src gave no result \(pytest exited with 4\)"):
            runner.run_scenarios("7.2-src", runner.paths(["nowhere.py"]), tmp_path, run, alone=False)
    finally:
        run.close()


def test_pytest_collects_the_scenarios(scenarios: Path) -> None:
    (scenarios / "test_leak.py").write_text(
        """
import pytest
from harness.plugin.thorough import by_default

@pytest.mark.always
@pytest.mark.thorough("q35", "q35-pcie")
def test_plug(qemu_name, kernel_name, machine_name): pass
@pytest.mark.parametrize("way", by_default("b", of=["a", "b"]))
def test_way(qemu_name, way): pass
"""
    )
    ways = ["test_leak.py::test_way[a]", "test_leak.py::test_way[b]"]
    plugs = [f"test_leak.py::test_plug[{machine}]" for machine in ("pc", "q35", "q35-pcie")]
    assert set(runner.collected("--thorough")) == {*plugs, *ways}
    assert set(runner.collected()) == {plugs[0], ways[1]}
    assert set(runner.collected("-m", "always")) == {plugs[0]}
    assert runner.collected("-k", "nothing") == ()


def test_a_collection_that_fails_is_an_error(scenarios: Path) -> None:
    (scenarios / "test_leak.py").write_text("import nowhere_to_be_found")
    with pytest.raises(SetupError, match="the collection of the scenarios gave no result"):
        runner.collected()


def test_a_run_without_output_is_ended_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when it ignores SIGINT. The time without output is over as soon as the child runs."""

    class Silence:
        @classmethod
        def after(cls, _timeout_s: float) -> Silence:
            return cls()

        @property
        def expired(self) -> bool:
            return (tmp_path / "child").exists()

    monkeypatch.setattr(runner, "Deadline", Silence)
    monkeypatch.setattr(runner, "_END_S", 1.0)
    script = "trap '' INT; echo begun; sleep 1000 & echo $! > new; mv new child; wait; wait"
    with pytest.raises(
        SetupError, match=r"^the scenarios: pytest printed nothing for 2 s, and was ended"
    ) as caught:
        runner.run_pytest(["sh", "-c", script], tmp_path, what="the scenarios", silence_s=2.0)
    assert "begun" in caught.value.details
    child = int((tmp_path / "child").read_text())
    wait_until(lambda: start_time(child) == 0, what="the end of the child", timeout_s=60)


def test_output_is_kept_and_shown_while_it_is_written(tmp_path: Path) -> None:
    """The process waits until its first line was shown."""

    class Shown(io.BytesIO):
        def flush(self) -> None:
            (tmp_path / "shown").touch()

    script = "echo out; until [ -e shown ]; do sleep 0.05; done; echo err >&2; exit 3"
    shown = Shown()
    done = runner.run_pytest(["sh", "-c", script], tmp_path, what="it", show=shown)
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")
    assert shown.getvalue() == b"out\nerr\n"
