"""One run: how a scenario is named and run, and what its result says about a QEMU."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import SetupError, UsageError
from harness.explore import scenario as scenario_module
from harness.explore import trial
from harness.explore.attempt import Attempt, Ending, Failure
from harness.explore.observations import Answer, Observation
from harness.explore.program import AlphabetName, Program
from harness.explore.scenario import scenario
from harness.explore.tree_bisect import ask_trial
from harness.explore.trial import ProgramTrial, ScenarioTrial, observation
from harness.reaper import RunFolder
from harness.report.summary import Outcome, Result
from harness.tests import forked


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a scenario, in which nothing asks for a guest, so that no QEMU is needed."""
    folder = tmp_path / "project/scenarios"
    folder.mkdir(parents=True)
    (folder.parent / "pytest.ini").write_text("[pytest]\n")
    (folder.parent / "conftest.py").write_text('pytest_plugins = ["harness.plugin"]\n')
    (folder / "test_leak.py").write_text(
        """
import pytest
from harness.errors import SetupError, Violation

EXPECTED = pytest.param("expected", marks=pytest.mark.xfail(reason="a bug"))

@pytest.mark.parametrize("way", ["passes", "passes_too", "fails", EXPECTED, "full", "lacks"])
@pytest.mark.guarantee("no leak")
def test_way(way):
    if way in ("fails", "expected"):
        raise Violation("leak: fds +3.00 per cycle")
    if way == "full":
        raise SetupError("no space left")
    if way == "lacks":
        pytest.skip("this QEMU has no such property")
"""
    )
    for module in (scenario_module, trial):
        monkeypatch.setattr(module, "scenarios_folder", lambda: folder)
    return folder


def test_a_scenario_is_run_in_a_pytest_of_its_own(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder()
    try:

        def once(text: str) -> Observation:
            return ScenarioTrial(scenario(text), run, tmp_path / "artifacts")("7.2")

        assert once("test_leak.py::test_way[passes]") == Observation(Answer.GOOD)
        monkeypatch.setattr(trial, "run_pytest", forked.in_place_of_run_pytest)
        failed = once("test_leak.py::test_way[fails]")
        assert failed.answer is Answer.BAD
        assert "leak: fds +N per cycle" in failed.why
        expected = once("test_leak.py::test_way[expected]")
        assert expected.answer is Answer.BAD, "a failure that the scenario's own mark expects"
        assert once("test_leak.py::test_way[full]").answer is Answer.ERROR
        assert once("test_leak.py::test_way[lacks]") == Observation(
            Answer.SKIP, "this QEMU has no such property"
        )
        for unknown in ("test_leak.py::test_none", "test_leak.py::test_way[none]"):
            with pytest.raises(UsageError, match=r": pytest finds no such test: "):
                once(unknown)
    finally:
        run.close()


def result(outcome: Outcome, why: str = "", scenario: str = "a.py::test[pc-first]") -> Result:
    return Result(test="t", scenario=scenario, guarantee="no leak", qemu="7.2", outcome=outcome, why=why)


def test_what_results_say() -> None:
    passed, failed = result(Outcome.PASSED), result(Outcome.FAILED, "harness.errors.Violation: 7 left")
    skipped = result(Outcome.SKIPPED, "no property")
    assert observation([passed, skipped]).answer is Answer.GOOD
    assert observation([passed, failed]) == Observation(
        Answer.BAD, "no leak | harness.errors.Violation: N left"
    )
    assert observation([skipped]) == Observation(Answer.SKIP, "no property")
    assert observation([]).answer is Answer.ERROR
    inconclusive = result(Outcome.FAILED, "harness.errors.HarnessError: inconclusive: no_leak: why")
    assert observation([inconclusive]).answer is Answer.ERROR


def test_a_program_is_run_on_the_qemu_that_is_asked_about() -> None:
    program = Program(alphabet=AlphabetName.RAW, steps=())
    endings = {
        "a": Attempt(Ending.PASSED),
        "b": Attempt(Ending.FAILED, Failure("qemu_alive", "killed by signal 11")),
        "c": Attempt(Ending.ERROR, error="no space"),
    }
    once = ProgramTrial(program, lambda asked: endings[asked.cell.qemu])
    assert [once(name) for name in "abc"] == [
        Observation(Answer.GOOD),
        Observation(Answer.BAD, "qemu_alive | killed by signal N"),
        Observation(Answer.ERROR, "no space"),
    ]


def test_a_run_without_a_result_is_an_error_of_the_host() -> None:
    def silent(qemu: str) -> Observation:
        raise SetupError("pytest printed nothing for 900 s")

    assert ask_trial(silent)("7.2") == Observation(Answer.ERROR, "pytest printed nothing for 900 s")
