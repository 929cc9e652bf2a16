"""Starting pytest on the scenarios, and reading its results."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import SetupError
from harness.mutation import runner
from harness.reaper import RunFolder
from harness.tests import forked


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
    monkeypatch.setattr(runner, "run_pytest", forked.in_place_of_run_pytest)
    return folder


def test_a_run_without_a_result_is_an_error(scenarios: Path, tmp_path: Path) -> None:
    run = RunFolder()
    try:
        with pytest.raises(SetupError, match=r"against QEMU nowhere gave no result \(pytest exited with 4\)"):
            runner.run_scenarios("nowhere", runner.paths(["nowhere.py"]), tmp_path, run, alone=False)
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
