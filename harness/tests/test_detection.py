from __future__ import annotations

import ast
import io
from pathlib import Path

import pytest

from harness import detection
from harness.deadline import wait_until
from harness.detection import Failure, Finding, expression, read
from harness.errors import SetupError
from harness.guarantees import GUARANTEES
from harness.provision.faults import Catalogue, Fault
from harness.reaper import start_time

JUNIT = """<?xml version="1.0"?><testsuites><testsuite>
<testcase classname="scenarios.test_leak" name="test_a[pc]"/>
<testcase classname="scenarios.test_leak" name="test_b[pc]">
<failure message="leak: fds&#10;more">x</failure></testcase>
<testcase classname="scenarios.test_crash" name="test_c[pc]"><error message="died">x</error></testcase>
<testcase classname="scenarios.test_crash" name="test_d[pc]"><skipped message="no"/></testcase>
</testsuite></testsuites>"""
CATALOGUE = Catalogue()


def test_a_report_is_read() -> None:
    ran, failures = read(JUNIT)
    assert ran == 3
    assert failures == (
        Failure("test_leak.py", "test_b[pc]", "leak: fds"),
        Failure("test_crash.py", "test_c[pc]", "died"),
    )


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
    assert Finding(fault, guarantee, 1, failures).verdict == verdict


def test_pytest_s_expression() -> None:
    assert expression(["a.py::test_x", "b.py::test_y[long_tag]"]) == "test_x or (test_y and long_tag)"


def test_a_run_without_a_result_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # One level down: pytest is started beside it, and reads conftest.py in each folder ``test*`` there, of
    # which the tests that ran before have left some (pytest: ``_pytest/config``, ``_set_initial_conftests``).
    monkeypatch.setattr(detection, "scenarios_folder", lambda: tmp_path / "scenarios")
    with pytest.raises(SetupError, match=r"against QEMU 7.2-src gave no result \(pytest exited with 4\)"):
        list(
            detection.look_for_all(
                {"f": CATALOGUE.load("tag-kept")}, "7.2-src", tmp_path, at_once=1, report=lambda _: None
            )
        )


def test_a_run_that_says_nothing_is_ended_with_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what ignores an interrupt, and what it has started. It is silent from when that has begun."""

    class Silence:
        @classmethod
        def after(cls, _timeout_s: float) -> Silence:
            return cls()

        @property
        def expired(self) -> bool:
            return (tmp_path / "child").exists()

    monkeypatch.setattr(detection, "Deadline", Silence)
    monkeypatch.setattr(detection, "_END_S", 1.0)
    script = "trap '' INT; echo begun; sleep 1000 & echo $! > new; mv new child; wait; wait"
    with pytest.raises(
        SetupError, match=r"^the scenarios: pytest said nothing for 2 s, and was ended"
    ) as told:
        detection.run_pytest(["sh", "-c", script], tmp_path, what="the scenarios", silence_s=2.0)
    assert "begun" in told.value.details
    child = int((tmp_path / "child").read_text())
    wait_until(lambda: start_time(child) == 0, what="the end of what it has started", timeout_s=60)


def test_what_a_run_says_is_kept_and_shown_as_it_comes(tmp_path: Path) -> None:
    """The process goes on only when its first word was shown."""

    class Shown(io.BytesIO):
        def flush(self) -> None:
            (tmp_path / "shown").touch()

    script = "echo out; until [ -e shown ]; do sleep 0.05; done; echo err >&2; exit 3"
    shown = Shown()
    done = detection.run_pytest(["sh", "-c", script], tmp_path, what="it", show=shown)
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")
    assert shown.getvalue() == b"out\nerr\n"


def test_control_comes_first_and_each_fault_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def run(scenarios: list[str], machines: list[str], qemu: str, *_: object) -> tuple[int, tuple[()]]:
        asked.append((qemu, len(scenarios)))
        return 1, ()

    monkeypatch.setattr(detection, "_run", run)
    chosen = {name: CATALOGUE.load(name) for name in ("tag-kept", "vmsd-dropped")}
    told: list[str] = []
    found = list(detection.look_for_all(chosen, "7.2-src", tmp_path, at_once=1, report=told.append))
    assert [one.fault for one in found] == ["", "tag-kept", "vmsd-dropped"]
    assert [qemu for qemu, _ in asked] == ["7.2-src", "7.2-src+tag-kept", "7.2-src+vmsd-dropped"]
    assert told == ["no fault: silent", "tag-kept: missed", "vmsd-dropped: missed"]


@pytest.mark.parametrize("name", CATALOGUE.names())
def test_every_fault_names_scenarios_that_exist(name: str) -> None:
    for scenario in CATALOGUE.load(name).caught_by:
        file, _, test = scenario.partition("::")
        tree = ast.parse((detection.scenarios_folder() / file).read_text())
        tests = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert test.partition("[")[0] in tests, f"{name}: there is no {scenario}"


def test_the_catalogue_has_faults_of_every_guarantee() -> None:
    """The seven of the series, and what has to hold beside them."""
    broken = {CATALOGUE.load(name).guarantee for name in CATALOGUE.names()}
    assert broken == set(GUARANTEES)
    assert len(CATALOGUE.names()) >= 30


def test_each_guarantee_has_one_sample() -> None:
    samples = [fault for name in CATALOGUE.names() if (fault := CATALOGUE.load(name)).sample]
    assert sorted(fault.guarantee for fault in samples) == sorted(GUARANTEES)


def test_no_two_faults_are_the_same() -> None:
    loaded: list[Fault] = [CATALOGUE.load(name) for name in CATALOGUE.names()]
    assert len({fault.key for fault in loaded}) == len(loaded)
