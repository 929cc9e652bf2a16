"""Repeats the scenario of a failed test: each attempt is a separate pytest process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harness.deadline import Deadline
from harness.explore.alphabet import Run
from harness.explore.attempt import Attempt, Ending, Failure
from harness.explore.observations import Answer, Observation
from harness.explore.program import AlphabetName, Program
from harness.explore.scenario import Scenario
from harness.explore.trial import ScenarioTrial
from harness.reaper import RunFolder

#: What stands for the scenario where attempts are made at programs.
PLACEHOLDER = Program(alphabet=AlphabetName.GUEST, steps=())


@dataclass(frozen=True)
class ScenarioRuns:
    """Makes the function that runs a scenario once (:data:`harness.explore.workers.Setup`).

    :ivar qemu: a name or a path, as for ``--qemu``. :ivar artifacts: the folder for artefacts.
    """

    scenario: Scenario
    qemu: str
    artifacts: Path

    def __call__(self, folder: RunFolder) -> Run:
        """Called once in a worker: what repeats the scenario there."""
        trial = ScenarioTrial(self.scenario, folder, self.artifacts)

        def run(_program: Program) -> Attempt:
            took = Deadline.after(0)
            return attempt_of(trial(self.qemu), took.elapsed_s)

        return run


def attempt_of(seen: Observation, seconds: float = 0.0) -> Attempt:
    """The attempt that a run of a scenario was.

    A scenario that was skipped says nothing.
    """
    match seen.answer:
        case Answer.GOOD:
            return Attempt(Ending.PASSED, seconds=seconds)
        case Answer.BAD:
            guarantee, _, message = seen.why.partition(" | ")
            return Attempt(Ending.FAILED, Failure(guarantee, message, guarantee), seconds=seconds)
        case Answer.SKIP:
            return Attempt(Ending.ERROR, error=f"skipped: {seen.why}", seconds=seconds)
    return Attempt(Ending.ERROR, error=seen.why, seconds=seconds)
