"""Filling the table: what is measured, what is not measured again, and what an interrupted run keeps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.errors import SetupError
from harness.mutation import detection, measurement, runner
from harness.mutation.catalogue import Fault
from harness.mutation.detection import Detection
from harness.mutation.measurement import Measurement, units
from harness.report.summary import Outcome, Run
from harness.tests.mutation.results import result, run

FILES = {"test_leak.py": "h1", "test_crash.py": "h2"}


def fault(title: str = "a title", caught_by: str = "test_leak.py::test_a[x]") -> Fault:
    edit = {"file": "hw/9p.c", "patch": title}
    content = {"guarantee": "no leak", "title": title, "caught_by": [caught_by], "edit": [edit]}
    return Fault.model_validate(content)


class Runs:
    """Takes the place of pytest: ``test_a`` fails where there is a fault, ``test_b`` everywhere."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[str]]] = []
        self.on_fault: Callable[[], None] = lambda: None

    def __call__(self, qemu: str, selection: list[str], *_: object, alone: bool) -> Run:
        assert alone
        assert selection[-1] == "--thorough"
        self.asked.append((qemu, [Path(one).name for one in selection[:-1]]))
        if "+" not in qemu:
            return run(
                test_a=Outcome.PASSED, test_b=Outcome.FAILED, test_c=Outcome.SKIPPED, test_d=Outcome.KNOWN
            )
        self.on_fault()
        return run(test_a=Outcome.FAILED, test_b=Outcome.FAILED, test_c=Outcome.SKIPPED, test_d=Outcome.KNOWN)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    made = Runs()
    monkeypatch.setattr(runner, "run_scenarios", made)
    return made


def start(
    tmp_path: Path, reported: list[str] | None = None, hashes: dict[str, str] | None = None
) -> Measurement:
    path = tmp_path / "t.json"
    data = detection.read(path, missing_is_empty=True)
    report = (reported if reported is not None else []).append
    return Measurement(data, path, "7.2-src", tmp_path, report, hashes or FILES)


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ("caught-by", ("test_crash.py::test_a",)),
        ("guarantee", ("test_leak.py", "test_crash.py::test_a")),
        ("all", ("test_crash.py", "test_leak.py")),
    ],
)
def test_the_units_of_a_scope(scope: str, expected: tuple[str, ...]) -> None:
    assert units(fault(caught_by="test_crash.py::test_a[x]"), scope, FILES) == expected
    assert scope in measurement.SCOPES


def test_a_file_includes_its_tests() -> None:
    assert units(fault(), "guarantee", FILES) == ("test_leak.py",)


def test_a_fault_is_measured_once_and_read_from_the_table_afterwards(tmp_path: Path, runs: Runs) -> None:
    reported: list[str] = []
    control, found = start(tmp_path, reported).measure({"one": fault()}, "all")
    every = ["test_crash.py", "test_leak.py"]
    assert runs.asked == [("7.2-src", every), ("7.2-src+one", every)]
    assert (control.verdict, control.ran, control.fault) == ("false positive", 3, "")
    assert [one.name for one in control.failures] == ["test_b[pc]"]
    assert (found.verdict, found.ran) == ("caught", 2)
    assert [one.name for one in found.failures] == ["test_a[pc]"], (
        "a scenario that fails without a fault catches none"
    )
    assert "no fault: false positive: test_leak.py::test_b[pc]: leak: fds" in reported
    assert list(start(tmp_path).measure({"one": fault()}, "all")) == [control, found]
    assert list(start(tmp_path).measure({"one": fault()}, "caught-by")) == [control, found]
    assert len(runs.asked) == 2, "nothing was measured again"


def test_only_changed_files_and_faults_are_measured_again(tmp_path: Path, runs: Runs) -> None:
    list(start(tmp_path).measure({"one": fault()}, "all"))
    runs.asked.clear()
    changed = FILES | {"test_leak.py": "another"}
    list(start(tmp_path, hashes=changed).measure({"one": fault()}, "all"))
    assert runs.asked == [("7.2-src", ["test_leak.py"]), ("7.2-src+one", ["test_leak.py"])]
    runs.asked.clear()
    list(start(tmp_path, hashes=changed).measure({"one": fault("another title")}, "all"))
    assert runs.asked == [("7.2-src+one", ["test_crash.py", "test_leak.py"])]


def test_a_larger_scope_measures_only_what_a_smaller_one_left_out(tmp_path: Path, runs: Runs) -> None:
    list(start(tmp_path).measure({"one": fault()}, "caught-by"))
    list(start(tmp_path).measure({"one": fault()}, "guarantee"))
    list(start(tmp_path).measure({"one": fault()}, "all"))
    assert [of for qemu, of in runs.asked if "+" in qemu] == [
        ["test_leak.py::test_a"],
        ["test_leak.py"],
        ["test_crash.py"],
    ]
    every = ["test_crash.py", "test_leak.py"]
    assert [of for qemu, of in runs.asked if "+" not in qemu] == [every], (
        "the time of every scenario is needed"
    )
    known = detection.read(tmp_path / "t.json").qemus["7.2-src"]
    assert set(known.faults["one"].of) == {"test_leak.py", "test_crash.py"}


def test_an_interrupted_run_keeps_its_results(tmp_path: Path, runs: Runs) -> None:
    def interrupt() -> None:
        if len(runs.asked) == 3:
            raise KeyboardInterrupt

    runs.on_fault = interrupt
    faults = {"one": fault("1"), "two": fault("2")}
    with pytest.raises(KeyboardInterrupt):
        list(start(tmp_path).measure(faults, "all"))
    list(start(tmp_path).measure(faults, "all"))
    asked = [qemu for qemu, _ in runs.asked]
    assert asked == ["7.2-src", "7.2-src+one", "7.2-src+two", "7.2-src+two"]


def test_a_fault_without_a_result_does_not_stop_the_others(tmp_path: Path, runs: Runs) -> None:
    def fail() -> None:
        if len(runs.asked) == 2:
            raise SetupError("it does not start")

    runs.on_fault = fail
    reported: list[str] = []
    faults = {"one": fault("1"), "two": fault("2")}
    with pytest.raises(SetupError, match="no result, so nothing in the table, for: one"):
        list(start(tmp_path, reported).measure(faults, "all"))
    assert "one (1 of 2): no result: it does not start" in reported
    assert set(detection.read(tmp_path / "t.json").qemus["7.2-src"].faults) == {"two"}


def test_a_fault_whose_scenario_failed_because_of_the_host_is_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is not what a fault does: the table would say for ever that the scenario catches it."""

    def on(qemu: str, *_: object, **__: object) -> Run:
        full = result("test_leak.py::test_a[pc]", Outcome.FAILED).model_copy(
            update={"why": "harness.errors.SetupError: no space left"}
        )
        return Run(results=(full,)) if "+" in qemu else run(test_a=Outcome.PASSED)

    monkeypatch.setattr(runner, "run_scenarios", on)
    with pytest.raises(SetupError, match="no result, so nothing in the table, for: one"):
        list(start(tmp_path).measure({"one": fault()}, "all"))
    assert detection.read(tmp_path / "t.json").qemus["7.2-src"].faults == {}


def test_seconds_are_those_of_the_run_without_a_fault(tmp_path: Path, runs: Runs) -> None:
    list(start(tmp_path).measure({"one": fault()}, "all"))
    known = detection.read(tmp_path / "t.json").qemus["7.2-src"]
    assert known.scenarios == {"test_leak.py::test_a[pc]": 2.0, "test_leak.py::test_d[pc]": 2.0}
    assert known.false_positives == {"test_leak.py::test_b[pc]": "leak: fds"}
    assert known.at_once >= 1
    assert known.faults["one"].failed["test_leak.py::test_a[pc]"] == 2.0
    assert Detection().on("7.2-src").at_once == 1


@pytest.mark.parametrize(
    ("kept", "found", "expected"),
    [
        ((0.0, 1.0), (600.0, 100.0), 6.0),
        ((2800.0, 5.8), (40.0, 20.0), 5.6),  # A small run does not stand for all.
        ((2800.0, 5.8), (0.0, 2.0), 5.8),
        ((0.0, 1.0), (1.0, 5.0), 1.0),
    ],
)
def test_scenarios_that_ran_at_the_same_time(
    kept: tuple[float, float], found: tuple[float, float], expected: float
) -> None:
    assert measurement.parallelism(*kept, *found) == expected
