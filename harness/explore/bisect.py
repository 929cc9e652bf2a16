"""Bisection: the search for the first of many candidates that behaves otherwise than those before it.

It knows neither git nor QEMU. Candidates are in order; those of the beginning behave alike, and from one on
all others behave otherwise. A candidate that cannot be judged makes the answer a range if it is next to the
change. The answer has a confidence (:mod:`harness.explore.candidate`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from harness.errors import UsageError
from harness.explore.candidate import Ask, Judge, Report, Tally, Verdict
from harness.explore.observations import Observations

CONFIDENCE = 0.95
#: After a skip so many places are considered: the middle, the quarters, the eighths.
_PLACES = 7


class Find(StrEnum):
    """What is searched for: the first bad candidate after good ones, or the first good one after bad ones."""

    BUG = "bug"
    FIX = "fix"

    @property
    def first(self) -> str:
        """What the candidate that a bisection searches for is called."""
        return "first bad" if self is Find.BUG else "first good"


@dataclass(frozen=True)
class Found:
    """The result of a bisection.

    :ivar before: the last candidate that is known to behave as the first one does.
    :ivar among: the candidates of which one is the first that behaves otherwise, in order. The last of them
        is known to behave otherwise; the others could not be judged. One alone is the answer.
    :ivar confidence: a lower bound of the probability that this is right.
    :ivar signature: the failure that was searched for.
    :ivar reliability: the runs of the end that is bad.
    :ivar tallies: the runs of each candidate that was tried, in the order in which they were.
    """

    find: Find
    before: str
    among: tuple[str, ...]
    confidence: float
    signature: str
    reliability: Tally
    tallies: Mapping[str, Tally]

    @property
    def exact(self) -> bool:
        """Whether the answer of the bisection is one candidate, and not a range."""
        return len(self.among) == 1

    @property
    def errors(self) -> int:
        """The runs of a bisection in which the host or the harness failed. They were repeated."""
        return sum(tally.errors for tally in self.tallies.values())


def most_tests(candidates: int) -> int:
    """The number of candidates between the ends that a bisection judges when it skips none, at most."""
    return max(0, math.ceil(math.log2(max(1, candidates - 1))))


def search(
    candidates: Sequence[str],
    ask: Ask,
    *,
    find: Find = Find.BUG,
    observations: Observations | None = None,
    confidence: float = CONFIDENCE,
    any_failure: bool = False,
    report: Report = lambda _: None,
    name: Callable[[str], str] = str,
) -> Found:
    """Bisect: find the first candidate that behaves otherwise than the first one.

    The ends are verified first: the bad one, which says how often it fails, then the good one.

    :param candidates: in order, with both ends. For a bug the first is good and the last is bad; for a fix
        the first is bad and the last is good.
    :param ask: makes one run of a candidate.
    :param observations: what was run earlier, and where runs are kept.
    :param confidence: how certain the answer has to be, 0 to 1.
    :param any_failure: see :class:`harness.explore.candidate.Judge`.
    :param report: is given a line for each candidate that was judged.
    :param name: what a candidate is called in these lines and in errors.
    :raises UsageError: when the ends behave alike, or fail too seldom.
    :raises SetupError: when the host or the harness fails again and again.
    """
    if len(candidates) < 2:
        raise UsageError("there is nothing between good and bad to search")
    risk = (1 - confidence) / (most_tests(len(candidates)) + 1)
    judge = Judge(ask, observations or Observations(), risk=risk, any_failure=any_failure, name=name)
    bad, good = (candidates[-1], candidates[0]) if find is Find.BUG else (candidates[0], candidates[-1])
    report(f"{name(bad)}, which is said to be bad: {judge.measure(bad)}: {judge.signature}")
    judge.require_good(good)
    report(f"{name(good)}, which is said to be good: {judge.tallies[good]}")
    low, high = _narrow(candidates, judge, find, report)
    sure = [one for one, tally in judge.tallies.items() if tally.passed and not tally.failed]
    return Found(
        find=find,
        before=candidates[low],
        among=tuple(candidates[low + 1 : high + 1]),
        confidence=max(0.0, 1 - sum(judge.risk_of(one) for one in sure if not judge.tallies[one].skip)),
        signature=judge.signature,
        reliability=judge.known,
        tallies=judge.tallies,
    )


def _narrow(candidates: Sequence[str], judge: Judge, find: Find, report: Report) -> tuple[int, int]:
    """The last candidate like the first one, and the first candidate like the last one that were seen."""
    low, high = 0, len(candidates) - 1
    skipped: set[int] = set()
    while (here := _next(low, high, skipped)) is not None:
        verdict = judge.verdict(candidates[here])
        if verdict is Verdict.SKIPPED:
            skipped.add(here)
        elif (verdict is Verdict.BAD) == (find is Find.BUG):
            high = here
        else:
            low = here
        left = high - low - 1
        report(f"{judge.name(candidates[here])}: {verdict} ({judge.tallies[candidates[here]]}); {left} left")
    return low, high


def _next(low: int, high: int, skipped: set[int]) -> int | None:
    """The candidate to bisect at: the middle one, or where that was skipped one at a quarter, an eighth, ….

    Commits that do not build come in stretches, so that the neighbour of one is a bad choice.
    """
    possible = [index for index in range(low + 1, high) if index not in skipped]
    if not possible:
        return None
    for number in range(_PLACES):
        here = low + math.floor((high - low) * _spread(number))
        if low < here < high and here not in skipped:
            return here
    return min(possible, key=lambda index: (abs(2 * index - low - high), index))


def _spread(number: int) -> float:
    """Where a bisection looks: 1/2, 1/4, 3/4, 1/8, 5/8, …, evenly in the interval (van der Corput's)."""
    value, weight, rest = 0.0, 0.5, number + 1
    while rest:
        value += weight * (rest & 1)
        rest >>= 1
        weight /= 2
    return value
