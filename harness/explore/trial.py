"""One run of what is bisected against one QEMU: a scenario in pytest, or a program."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.artifacts import HISTORY
from harness.checkers import Record
from harness.errors import Unsupported, UsageError
from harness.explore.attempt import Attempt, Ending, Failure
from harness.explore.observations import Answer, Observation
from harness.explore.program import Program
from harness.history import as_mapping
from harness.layout import pytest_command, pytest_folder, scenarios_folder
from harness.matrix import DEFAULT
from harness.qemu.machine_types import MACHINE_TYPES
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


@dataclass(frozen=True)
class Scenario:
    """A scenario, or another test that asks for a guest, on one machine type and kernel.

    :ivar test: pytest's name of the function: a path, ``::`` and the function.
    :ivar parameters: the test's own parameters, without QEMU, kernel and machine type.
    """

    test: str
    parameters: tuple[str, ...] = ()
    machine: str = "pc"
    kernel: str = DEFAULT
    accel: str = "auto"

    def __str__(self) -> str:
        named = "-".join(self.parameters)
        return f"{self.test}[{named}]" if named else self.test

    def arguments(self) -> list[str]:
        """pytest's arguments that select the scenario."""
        accel = [] if self.accel == "auto" else ["--accel", self.accel]
        chosen = ["-k", " and ".join(self.parameters)] if self.parameters else []
        return [self.test, *chosen, "--machine", self.machine, "--kernel", self.kernel, *accel, "--thorough"]

    def is_of(self, result: Result) -> bool:
        """Whether a result is this scenario's; ``-k`` also selects parameters that contain the wanted one."""
        inside = f"-{(result.scenario or result.test).partition('[')[2].rstrip(']')}-"
        return all(f"-{parameter}-" in inside for parameter in self.parameters)


def scenario(text: str, machine: str = "pc", kernel: str = DEFAULT, accel: str = "auto") -> Scenario:
    """The scenario that the user names: ``file.py::test`` or ``file.py::test[parameter]``.

    :param text: the file is below the current folder, or one of the project's scenarios.
    :raises UsageError: when it names no function, or there is no such file.
    """
    path, colons, test = text.partition("::")
    function, _, parameters = test.rstrip("]").partition("[")
    if not colons or not function:
        raise UsageError(f"{text}: give one scenario, as file.py::test or file.py::test[parameter]")
    candidates = (Path(path), scenarios_folder() / Path(path).name)
    found = next((file for file in candidates if file.is_file()), None)
    if found is None:
        raise UsageError(f"{text}: no such file, neither here nor in {scenarios_folder()}")
    chosen = tuple(parameters.split("-")) if parameters else ()
    return Scenario(f"{found.absolute()}::{function}", chosen, machine, kernel, accel)


def test_of(folder: Path) -> str:
    """The id of the test whose scenario is run again: of the one that left a folder.

    :raises UsageError: when the folder has no record, or its record names no test.
    """
    entry = Record.load(folder).last("host", "test")
    test = as_mapping(entry.value).get("id") if entry is not None else None
    if not isinstance(test, str):
        raise UsageError(f"{folder}: its {HISTORY} names no test")
    return test


def recorded(test: str, qemus: Sequence[str], kernels: Sequence[str]) -> Scenario:
    """The scenario of a test's id, on the machine type and kernel that it was run with.

    :param qemus: the names of provisioned QEMUs. :param kernels: of kernels.
    :raises UsageError: when its file is gone, or the id does not name a cell.
    """
    before, _, inside = test.rstrip("]").partition("[")
    names, images = (_any_of([DEFAULT, *known]) for known in (qemus, kernels))
    cell = re.search(
        rf"(^|-)((?:{names})(?:\+[\w-]+?)?|/.*?)-(?P<kernel>{images})(?:-(?P<machine>{_any_of(MACHINE_TYPES)}))?"
        r"(?=-|$)",
        inside,
    )
    if cell is None:
        raise UsageError(f"{test}: its id names no QEMU and kernel")
    rest = "-".join(part.strip("-") for part in (inside[: cell.start()], inside[cell.end() :]) if part)
    return scenario(f"{before}[{rest}]" if rest else before, cell["machine"] or "pc", cell["kernel"])


def _any_of(names: Iterable[str]) -> str:
    return "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))


class ScenarioTrial:
    """Runs a scenario in a pytest of its own.

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
    """Runs a program, in the cell that it names but for the QEMU.

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
