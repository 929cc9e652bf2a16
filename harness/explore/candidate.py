"""What is known about one candidate (a commit, a release), from runs of a program that may be flaky.

One failure shows that a candidate is bad. That it is good is shown by passes alone: by so many in a row that
a bad candidate would seldom show them. How many these are follows from the runs on a candidate that is known
to be bad. This assumes that the program fails as often on every bad candidate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from harness.errors import SetupError, UsageError
from harness.explore.observations import Answer, Observation, Observations

#: Runs a candidate; one attempt.
Ask = Callable[[str], Observation]
Report = Callable[[str], None]

#: The candidate that is known to be bad is run at least so often, and until it has failed so often.
RUNS, FAILURES = 10, 5
#: A program that has not failed after so many runs is taken not to fail.
RUNS_WITHOUT_FAILURE = 20
#: The most runs of one candidate.
MOST_RUNS = 200
#: A candidate that gave so many errors, or other failures, is given up.
_MOST_WITHOUT_ANSWER = 3


class BehaveAlike(UsageError):
    """The ends of a bisection behave alike."""


class Verdict(StrEnum):
    """The verdict on a candidate."""

    GOOD = "good"
    BAD = "bad"
    SKIPPED = "skipped"


@dataclass
class Tally:
    """The runs of one candidate.

    :ivar failed: runs with the failure that is searched for. :ivar passed: runs that passed.
    :ivar otherwise: runs with another failure. :ivar errors: runs in which the host or the harness failed.
    :ivar skip: why the candidate cannot be judged, such as that it does not build; empty if it can.
    """

    failed: int = 0
    passed: int = 0
    otherwise: int = 0
    errors: int = 0
    skip: str = ""

    @property
    def runs(self) -> int:
        """The runs of a candidate that count: that passed, or failed as searched for."""
        return self.failed + self.passed

    def __str__(self) -> str:
        if self.skip:
            return f"skipped: {self.skip}"
        more = (f", {self.otherwise} failed otherwise" if self.otherwise else "") + (
            f", {self.errors} errors" if self.errors else ""
        )
        return f"failed {self.failed} of {self.runs}{more}"


def chance_of_passes(known: Tally, passes: int) -> float:
    """How likely a program that failed as in ``known`` passes so many times in a row.

    Any reliability is taken to be as likely as another before the first run (Laplace's rule of succession).
    """
    chance = 1.0
    for passed in range(known.passed, known.passed + passes):
        chance *= (passed + 1) / (known.failed + passed + 2)
    return chance


def passes_needed(known: Tally, risk: float) -> int:
    """The number of passes in a row that a bad candidate shows with a probability of ``risk`` at most.

    :raises UsageError: when these are more than :data:`MOST_RUNS`.
    """
    for passes in range(1, MOST_RUNS + 1):
        if chance_of_passes(known, passes) <= risk:
            return passes
    raise UsageError(
        f"it fails too seldom ({known}): a candidate would need more than {MOST_RUNS} runs; "
        "make it fail more often (a hold, more load) or lower --confidence"
    )


class Judge:
    """Judges candidates, each once; the runs are kept in ``observations``.

    :param ask: makes one attempt.
    :param risk: the highest probability with which one bad candidate is taken for good.
    :param any_failure: count every failure, and not only the one that the bad candidate shows.
    :param name: what a candidate is called in messages.
    """

    def __init__(
        self,
        ask: Ask,
        observations: Observations,
        *,
        risk: float,
        any_failure: bool = False,
        name: Callable[[str], str] = str,
    ) -> None:
        self.name = name
        self._ask, self._observations = ask, observations
        self._risk, self._any_failure = risk, any_failure
        self.signature = ""
        self.known = Tally()
        self.tallies: dict[str, Tally] = {}

    def sample(self, candidate: str, runs: int) -> Tally:
        """Run a candidate of which nothing is known, until it fails or has passed so many times."""
        tally = self._begin(candidate)
        while not tally.skip and not tally.failed and tally.passed < runs:
            self._run(candidate, tally)
        return tally

    def measure(self, candidate: str) -> Tally:
        """Run a candidate that is said to be bad, and find out how often it fails, and how.

        :raises BehaveAlike: when it does not fail. :raises UsageError: when it cannot be judged.
        """
        tally = self._begin(candidate)
        while not tally.skip and not _is_clear(tally):
            self._run(candidate, tally)
        if tally.skip:
            raise UsageError(f"{self.name(candidate)} is said to be bad, but cannot be tested: {tally.skip}")
        if not tally.failed:
            raise BehaveAlike(
                f"{self.name(candidate)} is said to be bad, but does not fail (0 of {tally.runs} runs): "
                "good and bad behave alike"
            )
        self.known = tally
        passes_needed(tally, self._risk)
        return tally

    def require_good(self, candidate: str) -> None:
        """Run a candidate that is said to be good.

        :raises BehaveAlike: when it fails. :raises UsageError: when it cannot be judged.
        """
        verdict = self.verdict(candidate)
        tally = self.tallies[candidate]
        if verdict is Verdict.SKIPPED:
            raise UsageError(f"{self.name(candidate)} is said to be good, but cannot be tested: {tally.skip}")
        if verdict is Verdict.BAD:
            raise BehaveAlike(
                f"{self.name(candidate)} is said to be good, but fails ({tally}): good and bad behave alike"
            )

    def verdict(self, candidate: str) -> Verdict:
        """Run a candidate until it is clear what it is. :meth:`measure` comes first.

        :raises SetupError: when the host or the harness fails again and again.
        """
        tally = self._begin(candidate)
        needed = passes_needed(self.known, self._risk)
        while not tally.skip and not tally.failed and tally.passed < needed:
            self._run(candidate, tally)
        if tally.skip:
            return Verdict.SKIPPED
        return Verdict.BAD if tally.failed else Verdict.GOOD

    def risk_of(self, candidate: str) -> float:
        """The probability that a candidate which was found good is bad."""
        return chance_of_passes(self.known, self.tallies[candidate].passed)

    def _begin(self, candidate: str) -> Tally:
        return self.tallies.setdefault(candidate, Tally())

    def _run(self, candidate: str, tally: Tally) -> None:
        seen = self._observations.next(candidate) or self._observations.add(candidate, self._ask(candidate))
        match seen.answer:
            case Answer.GOOD:
                tally.passed += 1
            case Answer.SKIP:
                tally.skip = seen.why or "no reason given"
            case Answer.ERROR:
                self._count_error(candidate, tally, seen.why)
            case Answer.BAD if self._is_the_failure(seen.why):
                tally.failed += 1
            case Answer.BAD:
                tally.otherwise += 1
                if tally.otherwise >= _MOST_WITHOUT_ANSWER:
                    tally.skip = f"fails otherwise: {seen.why}"

    def _count_error(self, candidate: str, tally: Tally, why: str) -> None:
        tally.errors += 1
        if tally.errors >= _MOST_WITHOUT_ANSWER:
            last = why or "no reason given"
            raise SetupError(f"{self.name(candidate)}: {tally.errors} runs had no result; the last: {last}")

    def _is_the_failure(self, signature: str) -> bool:
        self.signature = self.signature or signature
        return self._any_failure or signature == self.signature


def _is_clear(tally: Tally) -> bool:
    """Whether a candidate that is said to be bad was run often enough."""
    if not tally.failed:
        return tally.runs >= RUNS_WITHOUT_FAILURE
    return (tally.runs >= RUNS and tally.failed >= FAILURES) or tally.runs >= MOST_RUNS
