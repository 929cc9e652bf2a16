"""Which scenario a user names, and which one left a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.explore.scenario import Scenario, recorded, scenario
from harness.report.summary import Outcome, Result

QEMUS, KERNELS = ("5.2", "7.2", "7.2-src", "10.0", "10.0.2"), ("6.1", "7.2", "sid")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of scenarios with one file."""
    (tmp_path / "test_leak.py").touch()
    monkeypatch.setattr("harness.explore.scenario.scenarios_folder", lambda: tmp_path)
    return tmp_path


def test_a_scenario_is_found_here_or_among_the_projects(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = scenario("test_leak.py::test_way[fails-q35]", "q35", "6.1")
    assert named == Scenario(f"{project}/test_leak.py::test_way", ("fails", "q35"), "q35", "6.1")
    monkeypatch.chdir(project)
    assert scenario("test_leak.py::test_way").test == f"{project}/test_leak.py::test_way"
    with pytest.raises(UsageError, match=r"^test_none\.py::test: no such file, neither here nor in "):
        scenario("test_none.py::test")
    with pytest.raises(UsageError, match=r"^test_leak\.py: give one scenario, as file\.py::test or "):
        scenario("test_leak.py")


@pytest.mark.parametrize(
    ("inside", "machine", "kernel", "parameters"),
    [
        ("[7.2-default-pc]", "pc", "default", ()),
        ("[default-default-q35-pcie]", "q35-pcie", "default", ()),
        ("[7.2-src+tag-kept-6.1-q35-ejected]", "q35", "6.1", ("ejected",)),
        ("[one_fsdev-10.0.2-default-pc-first]", "pc", "default", ("one_fsdev", "first")),
        ("[/tmp/a-b/qemu-system-x86_64-default-pc-9P2000.L]", "pc", "default", ("9P2000.L",)),
        ("[rng-11.1x-default-NOTSET]", "", "", ()),
    ],
)
def test_the_id_of_a_recorded_test(
    project: Path, inside: str, machine: str, kernel: str, parameters: tuple[str, ...]
) -> None:
    test = f"scenarios/test_leak.py::test_way{inside}"
    if not machine:
        with pytest.raises(UsageError, match="names no QEMU and kernel"):
            recorded(test, QEMUS, KERNELS)
        return
    found = recorded(test, QEMUS, KERNELS)
    assert (found.machine, found.kernel, found.parameters) == (machine, kernel, parameters)


def test_a_parameter_is_not_a_part_of_another() -> None:
    first = Scenario("a.py::test", ("first",))
    assert first.is_of(result())
    assert not first.is_of(result("a.py::test[pc-first_of_all]"))
    assert str(first) == "a.py::test[first]"


def result(scenario: str = "a.py::test[pc-first]") -> Result:
    return Result(test="t", scenario=scenario, guarantee="no leak", qemu="7.2", outcome=Outcome.PASSED)
