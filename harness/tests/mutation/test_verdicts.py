"""The verdicts on faults and controls, and the order of the findings."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import pytest

from harness import layout
from harness.errors import SetupError
from harness.mutation import runner, verdicts
from harness.mutation.catalogue import Catalogue
from harness.mutation.detection import Detection
from harness.mutation.figures import figures
from harness.mutation.qtests import QtestResult
from harness.mutation.verdicts import Controls, Failure, Finding, expression, judge
from harness.report.summary import Outcome, Run
from harness.tests import forked
from harness.tests.mutation.results import result, run

CATALOGUE = Catalogue()
#: Whether an outcome counts as a failure on a QEMU without a fault.
OUTCOMES = {
    Outcome.PASSED: False,
    Outcome.KNOWN: False,
    Outcome.SKIPPED: False,
    Outcome.FAILED: True,
    Outcome.FIXED: True,
}


@pytest.mark.parametrize(
    ("fault", "guarantee", "files", "verdict"),
    [
        ("f", "no leak", ["test_leak.py"], "caught"),
        ("f", "no leak", ["test_crash.py", "test_leak.py"], "caught"),
        ("f", "no leak", ["test_crash.py"], "caught by another guarantee"),
        ("f", "no leak", [], "missed"),
        ("", "", [], "passed"),
        ("", "", ["test_leak.py"], "false positive"),
    ],
)
def test_verdicts(fault: str, guarantee: str, files: list[str], verdict: str) -> None:
    failures = tuple(Failure(file, "test", "why") for file in files)
    assert Finding(fault, guarantee, "7.2-src", 1, failures).verdict == verdict


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_the_outcomes_that_make_a_false_positive(outcome: Outcome) -> None:
    found = judge("", "", "7.2", run(test_a=Outcome.PASSED, test_b=outcome))
    assert found.verdict == ("false positive" if OUTCOMES[outcome] else "passed")
    assert found.ran == (1 if outcome in (Outcome.KNOWN, Outcome.SKIPPED) else 2)


def test_a_failure_has_the_name_that_a_fault_uses() -> None:
    found = judge("f", "no leak", "7.2-src", run(test_a=Outcome.PASSED, test_b=Outcome.FAILED), real=True)
    assert found.failures == (Failure("test_leak.py", "test_b[pc]", "leak: fds"),)
    assert (found.ran, found.real, found.qemu) == (2, True, "7.2-src")


def test_an_error_of_the_host_does_not_catch_a_fault() -> None:
    """Nor does it hide another failure. In a control it is a failure like any other."""
    full = result("test_leak.py::test_a[pc]", Outcome.FAILED).model_copy(
        update={"why": "harness.errors.SetupError: cannot write the verdict; free some space"}
    )
    found = judge("f", "no leak", "7.2-src", Run(results=(full,)))
    assert (found.verdict, found.detail, found.good) == ("no result", full.why, False)
    caught = judge(
        "f",
        "no leak",
        "7.2-src",
        Run(results=(full, result("test_leak.py::test_b[pc]", Outcome.FAILED))),
    )
    assert (caught.verdict, [one.name for one in caught.failures]) == ("caught", ["test_b[pc]"])
    assert judge("", "", "7.2-src", Run(results=(full,))).verdict == "false positive"


def test_pytest_s_expression() -> None:
    assert expression(["a.py::test_x", "b.py::test_y[long_tag]"]) == "test_x or (test_y and long_tag)"
    assert expression(["a.py::test_x[two flushes, or not]"]) == "(test_x and two and flushes)"


def test_pytest_understands_the_expression_of_all_faults(tmp_path: Path) -> None:
    scenarios = [scenario for name in CATALOGUE.names() for scenario in CATALOGUE.load(name).caught_by]
    (tmp_path / "test_it.py").write_text("def test_links(): pass\n")
    options = (str(tmp_path), "--collect-only", "-q", "-p", "no:cacheprovider")
    for chosen in (expression(scenarios), expression(["f.py::test_links[]"]) + " and not (a b)"):
        given = (*options, "-k", chosen)
        done = forked.run(forked.run_pytest, given, folder=tmp_path, environment=os.environ)
        assert (done.returncode == 4) == ("a b" in chosen), done.stderr


class Asked:
    """Takes the place of pytest: a test fails where there is a fault, and passes in a control."""

    def __init__(self) -> None:
        self.qemus: list[str] = []
        self.alone: list[bool] = []

    def __call__(self, qemu: str, selection: list[str], *_: object, alone: bool) -> Run:
        self.qemus.append(qemu)
        self.alone.append(alone)
        assert ("--maxfail=1" in selection) == ("+" in qemu)
        return run(test_a=Outcome.FAILED if "+" in qemu else Outcome.PASSED)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    made = Asked()
    monkeypatch.setattr(runner, "run_scenarios", made)
    return made


def test_what_a_default_run_has_is_run_as_a_default_run_runs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither --thorough nor a machine type is given, and a control is a whole default run."""
    selections: dict[str, list[str]] = {}

    def run_scenarios(qemu: str, selection: list[str], *_: object, alone: bool) -> Run:
        selections[qemu] = selection
        return run(test_a=Outcome.PASSED)

    monkeypatch.setattr(runner, "run_scenarios", run_scenarios)
    fault = CATALOGUE.load("tag-kept").model_copy(
        update={"machines": ["q35"], "caught_by": ["test_a.py::test_b"]}
    )
    with_table = {"tag-kept": ["test_c.py::test_d[pc]"]}
    run_all = functools.partial(
        verdicts.run_all, at_once=1, report=lambda _: None, controls=Controls(("7.2-src",), 1)
    )
    list(run_all({"tag-kept": fault}, "7.2-src", tmp_path, by_default=with_table))
    files = runner.paths(["test_a.py", "test_c.py"])
    assert selections["7.2-src+tag-kept"] == [*files, "-k", "test_b or (test_d and pc)", "--maxfail=1"]
    assert selections["7.2-src"] == [str(layout.scenarios_folder())]
    list(run_all({"tag-kept": fault}, "7.2-src", tmp_path))
    thorough = [*runner.paths(["test_a.py"]), "-k", "test_b", "--machine", "q35", "--thorough"]
    assert selections["7.2-src+tag-kept"] == [*thorough, "--maxfail=1"]
    assert selections["7.2-src"] == thorough


def test_each_fault_is_reported_at_once_and_each_control_runs_as_often_as_given(
    tmp_path: Path, asked: Asked
) -> None:
    chosen = {name: CATALOGUE.load(name) for name in ("tag-kept", "vmsd-dropped")}
    reported: list[str] = []
    found = verdicts.run_all(
        chosen,
        "7.2-src",
        tmp_path,
        at_once=1,
        report=reported.append,
        controls=Controls(("7.2-src", "7.2"), 2),
    )
    first = next(found)
    assert (first.fault, first.qemu) == ("tag-kept", "7.2-src")
    assert reported[:1] == ["tag-kept: caught"]
    assert [one.fault for one in found] == ["vmsd-dropped", "", "", "", ""]
    assert asked.qemus == [
        "7.2-src+tag-kept",
        "7.2-src+vmsd-dropped",
        *["7.2-src"] * 2,
        *["7.2"] * 2,
    ]
    assert asked.alone == [False, False, True, True, True, True], "nothing else runs during a control"
    assert reported[1:] == [
        "vmsd-dropped: caught by another guarantee",
        "no fault, QEMU 7.2-src, 1 of 2: passed",
        "no fault, QEMU 7.2-src, 2 of 2: passed",
        "no fault, QEMU 7.2, 1 of 2: passed",
        "no fault, QEMU 7.2, 2 of 2: passed",
    ]


def test_a_finding_has_the_result_of_qemu_s_own_tests(tmp_path: Path, asked: Asked) -> None:
    seen = []

    def run_qtests(name: str) -> QtestResult:
        seen.append(name)
        return QtestResult("passed")

    (found,) = verdicts.run_all(
        {"tag-kept": CATALOGUE.load("tag-kept")},
        "7.2-src",
        tmp_path,
        at_once=1,
        report=lambda _: None,
        controls=Controls(("7.2-src",), 0),
        run_qtests=run_qtests,
    )
    assert found.qtests == QtestResult("passed")
    assert seen == ["tag-kept"]


def test_pytest_without_a_result_is_a_finding_and_the_others_go_on(
    tmp_path: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_scenarios(qemu: str, *arguments: object, **named: object) -> Run:
        if qemu in ("7.2-src+tag-kept", "7.2-src"):
            raise SetupError("pytest exited with 4")
        if qemu == "7.2":
            return run(test_a=Outcome.SKIPPED, test_b=Outcome.KNOWN)
        return run(test_a=Outcome.FAILED)

    monkeypatch.setattr(runner, "run_scenarios", run_scenarios)
    reported: list[str] = []
    chosen = {name: CATALOGUE.load(name) for name in ("tag-kept", "vmsd-dropped")}
    controls = Controls(("7.2-src", "7.2"))
    found = list(
        verdicts.run_all(chosen, "7.2-src", tmp_path, at_once=1, report=reported.append, controls=controls)
    )
    assert [(one.verdict, one.good) for one in found] == [
        ("no result", False),
        ("caught by another guarantee", False),
        ("no result", False),
        ("no result", False),
    ]
    assert reported == [
        "tag-kept: no result (pytest exited with 4)",
        "vmsd-dropped: caught by another guarantee",
        "no fault, QEMU 7.2-src, 1 of 1: no result (pytest exited with 4)",
        "no fault, QEMU 7.2, 1 of 1: no result (each scenario was skipped or is a known bug)",
    ]
    assert figures(found, Detection(), [])[0].caught == 1
