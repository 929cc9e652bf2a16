"""Every table that a command prints is whole: in a pipe, and on a terminal of 40 columns."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import pytest

import harness.cli
from harness.bench.endurance import Growth
from harness.bench.suite import SuiteRun
from harness.bench.timing import rows
from harness.cli import bench, endurance, faults
from harness.mutation import cover
from harness.mutation.catalogue import Catalogue
from harness.mutation.detection import Detection, Measured, OnQemu
from harness.mutation.figures import Figures
from harness.mutation.qtests import QtestResult
from harness.mutation.verdicts import Failure, Finding
from harness.report import summary, tables
from harness.report.nights.recorder import Lenient
from harness.report.summary import Outcome, Run, Shard
from harness.tests.checkers.record_writer import RecordWriter
from harness.tests.cli.conftest import Harness
from harness.tests.report.test_summary import result

NAME = "test_hostile_guest.py::test_a_forced_eject_with_a_request_in_flight[q35-pcie]"
FAULT = "second-reset-numbers-buses-again"


@pytest.fixture(params=["pipe", "narrow terminal"])
def output(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the output goes. In both cases COLUMNS is 40."""
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    if request.param == "narrow terminal":
        monkeypatch.setenv("FORCE_COLOR", "1")  # rich: the output is taken for a terminal
        monkeypatch.setenv("NO_COLOR", "1")
    return str(request.param)


def _findings() -> None:
    failure = Failure("test_hostile_guest.py", NAME, "killed by SIGSEGV")
    qtest = QtestResult("caught", "qos-test /x86_64/pc/i440FX-pcihost/virtio-9p-tests/local/config", "dead")
    tables.show(
        faults._findings_table([Finding(FAULT, "lifecycle", "7.2", 1, (failure,), False, qtest)], "7.2")
    )


def _figures() -> None:
    tables.show(faults._figures_table([Figures("planted", 160, 150, 140, 130, 120, 110, 100)]))


def _plan() -> None:
    measured = Measured(key="k", failed={NAME: 1.0})
    data = Detection(qemus={"7.2-src": OnQemu(scenarios={NAME: 1.0}, faults={FAULT: measured})})
    plan = cover.plan(data, [NAME], [], [])
    faults._show_plan(plan, cover.Unmeasured((FAULT,), (NAME,)), data, 90.0)


def _suite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "run_suite", lambda _folder, n, _options, _log: SuiteRun(n, 100.0, 50.0, 10.0))
    bench._suite([], as_json=False, history=Lenient(None))


PRINTED: dict[str, tuple[Callable[[], None], list[str]]] = {
    "faults run: findings": (
        _findings,
        [FAULT, NAME, "/x86_64/pc/i440FX-pcihost/virtio-9p-tests/local/config"],
    ),
    "faults run: figures": (_figures, ["planted"]),
    "faults cover": (_plan, [NAME, FAULT]),
    "bench start": (
        lambda: bench._print(rows({"labgrid-of-the-longest-name": [1.0]}), "start", shares=False),
        ["labgrid-of-the-longest-name"],
    ),
    "endurance": (
        lambda: endurance._print([Growth(0, "private_kib", 1000000.0, 2000000.0, 8.25)], "200 guests"),
        ["private_kib", "2e+06", "+8.25"],
    ),
}


@pytest.mark.parametrize("name", PRINTED)
def test_a_printed_table(name: str, output: str, capsys: pytest.CaptureFixture[str]) -> None:
    show, expected = PRINTED[name]
    show()
    assert_whole(capsys.readouterr().out, expected)


def test_bench_suite(
    output: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _suite(monkeypatch)
    assert_whole(capsys.readouterr().out, ["workers", "processor", "Python's", "20"])


def test_faults_list(output: str, harness: Harness) -> None:
    listed = harness("faults", "list").out
    assert_whole(listed, Catalogue().names())
    if output == "pipe":
        for name in Catalogue().names():
            (line,) = (line for line in listed.splitlines() if f"│ {name} " in line)
            assert Catalogue().load(name).title in line


def test_doctor(output: str, harness: Harness, cache_root: Path) -> None:
    found = {one["name"]: one["what"] for one in harness("doctor", "--json").json}
    shown = harness("doctor").out
    assert_whole(shown, [*found, *found["cache"].split()[:1]])


def test_check(output: str, harness: Harness, tmp_path: Path) -> None:
    folder = tmp_path / NAME
    folder.mkdir()
    RecordWriter(folder).launched().quit().closed(mounts=["/tmp/" + "x" * 60])
    assert_whole(harness("check", tmp_path).out, [NAME, "/tmp/" + "x" * 60])


def test_merge_and_compare(output: str, harness: Harness, tmp_path: Path) -> None:
    for name, outcome in (("a", Outcome.PASSED), ("b", Outcome.FAILED)):
        results = (result(NAME, scenario=NAME, outcome=outcome, why="killed by SIGSEGV"),)
        shard = Shard(index=1, count=1, collected="x", tests=1)
        summary.write(Run(results=results, shard=shard), tmp_path / name)
    assert_whole(harness("merge", tmp_path / "b").out, [NAME, "SIGSEGV"])
    assert_whole(harness("compare", tmp_path / "a", tmp_path / "b").out, [NAME, "SIGSEGV"])


def assert_whole(shown: str, expected: list[str]) -> None:
    assert "…" not in shown
    for word in expected:
        assert word in shown


def test_every_table_is_printed_by_report_tables() -> None:
    """``Console.print`` cuts words; only ``report/tables.py`` calls it."""
    package = Path(harness.cli.__file__).parents[1]
    modules = [path for path in package.rglob("*.py") if "tests" not in path.relative_to(package).parts]
    assert [
        str(path.relative_to(package))
        for path in modules
        if ".print" in (source := path.read_text())
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and node.attr == "print"
    ] == ["report/tables.py"]
