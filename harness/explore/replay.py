"""Repeats a program in fresh guests, and says how often it fails, and how."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from harness.errors import SetupError
from harness.explore.attempt import Attempt, Ending
from harness.explore.program import Program
from harness.report.reliability import Reliability

#: Makes one attempt at each program; they come in that order (:class:`harness.explore.workers.Workers`).
Attempts = Callable[[Iterable[Program]], Iterator[tuple[Program, Attempt]]]
#: How often a program is run unless the user says otherwise.
TIMES = 20
#: After so many errors in a row the host or the harness is at fault, and no more attempts are made.
ERRORS_IN_A_ROW = 5


@dataclass
class Replay:
    """The attempts at one program.

    :ivar errors: the attempts that say nothing about QEMU, one line each. They count nowhere else.
    """

    program: Program
    attempts: list[Attempt] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def add(self, attempt: Attempt) -> None:
        """Add an attempt to those of the replay."""
        if attempt.ending is Ending.ERROR:
            self.errors.append(attempt.error)
        else:
            self.attempts.append(attempt)

    @property
    def failures(self) -> dict[str, list[Attempt]]:
        """The attempts of a replay that failed, by signature; the most frequent signature comes first."""
        found: dict[str, list[Attempt]] = {}
        for attempt in self.attempts:
            if attempt.failure is not None:
                found.setdefault(attempt.failure.signature, []).append(attempt)
        return dict(sorted(found.items(), key=lambda item: -len(item[1])))

    @property
    def reliability(self) -> Reliability:
        """How often the replayed program failed, with whatever signature."""
        return Reliability(sum(attempt.failure is not None for attempt in self.attempts), len(self.attempts))

    def reliability_of(self, signature: str) -> Reliability:
        """How often the replayed program failed with this signature."""
        return Reliability(len(self.failures.get(signature, ())), len(self.attempts))

    @property
    def is_deterministic(self) -> bool:
        """Whether it has a hold, and failed with one signature in each of at least :data:`TIMES` attempts.

        A hold keeps a request in flight until the program releases it, so there is no race to be won.
        """
        holds = any(step.do.startswith("hold") for step in self.program.steps)
        always = len(self.failures) == 1 and self.reliability.failures == len(self.attempts) >= TIMES
        return holds and always

    def lines(self) -> Iterator[str]:
        """The result of a replay, as it is printed."""
        yield f"failed {self.reliability}" + (", deterministic" if self.is_deterministic else "")
        for signature, attempts in self.failures.items():
            failure = attempts[0].failure
            assert failure is not None
            step = "the end" if failure.step is None else f"step {failure.step}"
            yield f"  {self.reliability_of(signature)} at {step}: {failure.checker}: {failure.message}"
            if failure.frames:
                yield f"    in {' < '.join(failure.frames)}"
            yield f"    signature: {signature}"
            if attempts[0].artifacts is not None:
                yield f"    artefacts: {shortest(attempts).artifacts}"
        if self.errors:
            yield f"  {len(self.errors)} attempts do not count: an error of the host or the harness"
            yield f"    the last one: {self.errors[-1]}"


def is_clear(found: Replay) -> bool:
    """Whether the reliability's interval is narrow, so that a replay can stop."""
    return found.reliability.is_clear


def replay(
    program: Program,
    attempts: Attempts,
    times: int = TIMES,
    *,
    enough: Callable[[Replay], bool] = is_clear,
    report: Callable[[Replay], None] = lambda _: None,
) -> Replay:
    """Run ``program`` until it was run ``times`` times, or the answer is clear.

    :param enough: whether the answer is clear; by default, when the reliability's interval is narrow.
    :param report: is called after each attempt.
    :raises SetupError: when attempt after attempt ends with an error of the host or the harness.
    """
    found, in_a_row = Replay(program), 0
    for _, attempt in attempts(itertools.repeat(program)):
        found.add(attempt)
        report(found)
        in_a_row = in_a_row + 1 if attempt.ending is Ending.ERROR else 0
        if in_a_row == ERRORS_IN_A_ROW:
            raise SetupError(f"{in_a_row} attempts in a row ended with an error: {attempt.error}")
        if len(found.attempts) >= times or enough(found):
            break
    return found


def shortest(attempts: Iterable[Attempt]) -> Attempt:
    """The attempt of a replay that took the least time."""
    return min(attempts, key=lambda attempt: attempt.seconds)


def keep_shortest(found: Replay) -> None:
    """Remove the artefacts of a replay's failed attempts but the shortest of each signature."""
    for attempts in found.failures.values():
        kept = shortest(attempts)
        discard(attempt for attempt in attempts if attempt is not kept)


def discard(attempts: Iterable[Attempt]) -> None:
    """Remove the artefacts of these attempts of a replay."""
    for attempt in attempts:
        if attempt.artifacts is not None:
            shutil.rmtree(attempt.artifacts, ignore_errors=True)
