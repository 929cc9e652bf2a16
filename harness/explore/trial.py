"""One run of what is bisected against one QEMU: a scenario in pytest, or a program."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from harness.errors import Unsupported, UsageError
from harness.explore.attempt import Attempt, Ending, Failure
from harness.explore.observations import Answer, Observation
from harness.explore.program import Program
from harness.explore.scenario import Scenario
from harness.layout import pytest_command, pytest_folder, scenarios_folder
from harness.reaper import RunFolder
from harness.report.host_errors import is_of_the_host
from harness.report.pytest_run import read_summary, run_pytest
from harness.report.summary import Outcome, Result

#: One run against a QEMU: a name or a path, as for ``--qemu``.
Trial = Callable[[str], Observation]
#: pytest's exit codes for "a usage error, or a test does not exist" and "nothing was selected".
_UNUSABLE = (4, 5)
_NOTHING_SELECTED = 5
#: Seconds without output. A test takes seconds, and the harness's deadlines end a QEMU that hangs.
_SILENCE_S = 900.0
#: The ledger of known bugs would make some failures expected ones, on some versions; a mark ``xfail`` of the
#: scenario's own, on all of them.
_NOTHING_IS_EXPECTED = (
    *("-p", "no:harness.plugin.known_bugs", "-p", "no:harness.plugin.ledger_check"),
    "--runxfail",
)


class ScenarioTrial:
    """Runs a scenario in a separate pytest process.

    :param run: a run folder; closing it ends what was started here.
    :param artifacts: the folder for artefacts (pytest's ``--artifacts``).
    """

    def __init__(self, of: Scenario, run: RunFolder, artifacts: Path) -> None:
        self._of, self._run, self._artifacts = of, run, artifacts

    def __call__(self, qemu: str) -> Observation:
        """Run the scenario once against one QEMU.

        :returns: a skip where this QEMU cannot run it, such as for want of the machine type.
        :raises UsageError: when there is no such test. :raises SetupError: when pytest gives no result.
        """
        into = Path(tempfile.mkdtemp(dir=self._run.path))
        argv = [*pytest_command(), *self._of.arguments(), "--qemu", qemu, "--summary", str(into), "-n", "0"]
        argv += ["-q", "-p", "no:cacheprovider", *_NOTHING_IS_EXPECTED, "--artifacts", self._folder()]
        what = f"{self._of} on QEMU {qemu}"
        done = run_pytest(
            argv,
            pytest_folder(scenarios_folder()),
            what=what,
            environment={**os.environ, **self._run.environment()},
            silence_s=_SILENCE_S,
        )
        if done.returncode in _UNUSABLE:
            line = _error(done.stderr + done.stdout)
            if done.returncode == _NOTHING_SELECTED or "not found" in line:
                raise UsageError(f"{self._of}: pytest finds no such test: {line}")
            return Observation(Answer.SKIP, line)
        return observation([one for one in read_summary(what, done, into).results if self._of.is_of(one)])

    def _folder(self) -> str:
        self._artifacts.mkdir(parents=True, exist_ok=True)
        return tempfile.mkdtemp(prefix="run-", dir=self._artifacts)


def _error(output: str) -> str:
    lines = output.strip().splitlines() or ["it printed nothing"]
    return next((line for line in lines if line.startswith("ERROR")), lines[-1])


def observation(results: Sequence[Result]) -> Observation:
    """What the trial of a scenario says about a QEMU, from its results; the first failure counts."""
    if not results:
        return Observation(Answer.ERROR, "pytest ran no such test")
    for result in results:
        if result.outcome is Outcome.FAILED:
            if is_of_the_host(result.why):
                return Observation(Answer.ERROR, result.why)
            return Observation(Answer.BAD, Failure(result.guarantee, result.why).signature)
    if all(result.outcome is Outcome.SKIPPED for result in results):
        return Observation(Answer.SKIP, results[0].why)
    return Observation(Answer.GOOD)


class ProgramTrial:
    """Runs a program in the cell that it names, with another QEMU.

    :param run: makes one attempt at a program in its cell.
    """

    def __init__(self, program: Program, run: Callable[[Program], Attempt]) -> None:
        self._program, self._run = program, run

    def __call__(self, qemu: str) -> Observation:
        """Run the program once against one QEMU.

        :returns: a skip where this QEMU cannot run it, such as for want of the machine type.
        """
        cell = self._program.cell.model_copy(update={"qemu": qemu})
        try:
            return of_attempt(self._run(self._program.model_copy(update={"cell": cell})))
        except (UsageError, Unsupported) as exc:
            return Observation(Answer.SKIP, exc.message)


def of_attempt(attempt: Attempt) -> Observation:
    """What the trial of a program says about its QEMU, from its attempt."""
    if attempt.ending is Ending.ERROR:
        return Observation(Answer.ERROR, attempt.error)
    if attempt.ending is Ending.FAILED:
        return Observation(Answer.BAD, attempt.failure.signature if attempt.failure else "")
    return Observation(Answer.GOOD)
