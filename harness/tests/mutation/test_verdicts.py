"""What is said of a fault, and in which order."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.mutation import runner, verdicts
from harness.mutation.catalogue import Catalogue
from harness.mutation.peers import PeerFinding
from harness.mutation.verdicts import Controls, Failure, Finding, expression, judge
from harness.report.summary import Outcome, Run
from harness.tests.mutation.results import run

CATALOGUE = Catalogue()
#: Of each what a run of it says, and whether that makes a QEMU without a fault suspicious.
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
        ("", "", [], "silent"),
        ("", "", ["test_leak.py"], "alarm"),
    ],
)
def test_verdicts(fault: str, guarantee: str, files: list[str], verdict: str) -> None:
    failures = tuple(Failure(file, "test", "why") for file in files)
    assert Finding(fault, guarantee, "7.2-src", 1, failures).verdict == verdict


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_what_makes_a_control_an_alarm(outcome: Outcome) -> None:
    found = judge("", "", "7.2", run(test_a=Outcome.PASSED, test_b=outcome))
    assert found.verdict == ("alarm" if OUTCOMES[outcome] else "silent")
    assert found.ran == (1 if outcome in (Outcome.KNOWN, Outcome.SKIPPED) else 2)


def test_a_failure_is_named_as_faults_name_scenarios() -> None:
    found = judge("f", "no leak", "7.2-src", run(test_a=Outcome.PASSED, test_b=Outcome.FAILED), real=True)
    assert found.failures == (Failure("test_leak.py", "test_b[pc]", "leak: fds"),)
    assert (found.ran, found.real, found.qemu) == (2, True, "7.2-src")


def test_pytest_s_expression() -> None:
    assert expression(["a.py::test_x", "b.py::test_y[long_tag]"]) == "test_x or (test_y and long_tag)"


class Asked:
    """Plays the runs of pytest; one with a fault has a failure, the controls as many as ``alarms``."""

    def __init__(self, alarms: int = 0) -> None:
        self.qemus: list[str] = []
        self.alone: list[bool] = []
        self._alarms = alarms

    def __call__(self, qemu: str, selection: list[str], *_: object, alone: bool) -> Run:
        self.qemus.append(qemu)
        self.alone.append(alone)
        assert ("--maxfail=1" in selection) == ("+" in qemu)
        if "+" not in qemu and len(self.qemus) > self._alarms:
            return run(test_a=Outcome.PASSED)
        return run(test_a=Outcome.FAILED)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    made = Asked()
    monkeypatch.setattr(runner, "run_scenarios", made)
    return made


def test_each_fault_is_told_of_at_once_and_each_control_as_often_as_wanted(
    tmp_path: Path, asked: Asked
) -> None:
    chosen = {name: CATALOGUE.load(name) for name in ("tag-kept", "vmsd-dropped")}
    told: list[str] = []
    found = verdicts.look_for_all(
        chosen,
        "7.2-src",
        tmp_path,
        at_once=1,
        report=told.append,
        controls=Controls(("7.2-src", "7.2"), 2),
    )
    first = next(found)
    assert (first.fault, first.qemu) == ("tag-kept", "7.2-src")
    assert told[:1] == ["tag-kept: caught"]
    assert [one.fault for one in found] == ["vmsd-dropped", "", "", "", ""]
    assert asked.qemus == [
        "7.2-src+tag-kept",
        "7.2-src+vmsd-dropped",
        *["7.2-src"] * 2,
        *["7.2"] * 2,
    ]
    assert asked.alone == [False, False, True, True, True, True], "a control has the machine to itself"
    assert told[1:] == [
        "vmsd-dropped: caught by another guarantee",
        "no fault, QEMU 7.2-src, 1 of 2: silent",
        "no fault, QEMU 7.2-src, 2 of 2: silent",
        "no fault, QEMU 7.2, 1 of 2: silent",
        "no fault, QEMU 7.2, 2 of 2: silent",
    ]


def test_what_qemu_s_own_tests_say_stands_beside(tmp_path: Path, asked: Asked) -> None:
    seen = []

    def beside(name: str) -> PeerFinding:
        seen.append(name)
        return PeerFinding("passed")

    (found,) = verdicts.look_for_all(
        {"tag-kept": CATALOGUE.load("tag-kept")},
        "7.2-src",
        tmp_path,
        at_once=1,
        report=lambda _: None,
        controls=Controls(("7.2-src",), 0),
        beside=beside,
    )
    assert found.beside == PeerFinding("passed")
    assert seen == ["tag-kept"]
