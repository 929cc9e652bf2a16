"""Compares two QEMUs, or two sets of runs: outcomes that changed, times and leak slopes that differ.

A single figure of each says nothing about a test's time: it does not show how much the time varies. Where
both sides were run several times, a permutation test decides (:mod:`harness.report.permutation`), with a
level that is divided by the number of tests. With fewer runs all tests together still show whether one side
is slower.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import quantiles

from rich.markup import escape
from rich.table import Table

from harness.report import permutation
from harness.report.permutation import WRONG, middle
from harness.report.summary import Outcome, Result, Run

#: Slopes of one run each differ by at least this, per cycle. Counts are exact, and vary little.
_SLOPE = 0.05
#: A difference is far out when it is so many times the distance of the quartiles beyond them (Tukey).
_FAR_OUT = 3.0
#: The most differences that are listed although they were not tested, and the fewest tests that they need.
_LISTED, _FEW = 5, 8


@dataclass(frozen=True)
class Pair:
    """The results of one scenario on both sides, one for each run. A side without it has none."""

    scenario: str
    a: tuple[Result, ...]
    b: tuple[Result, ...]

    @property
    def changed(self) -> bool:
        """Whether the outcomes of a scenario differ between A and B, or one of them has none."""
        before, after = ({(one.outcome, one.bug) for one in side} for side in (self.a, self.b))
        return before != after

    @property
    def worse(self) -> bool:
        """Whether a scenario fails on B and not on A."""
        return _fails(self.b) and not _fails(self.a)

    @property
    def seconds(self) -> tuple[list[float], list[float]]:
        """The times of the runs of a scenario that passed, of A and of B."""
        return _seconds(self.a), _seconds(self.b)

    @property
    def slopes(self) -> Iterator[tuple[str, list[float], list[float]]]:
        """Each count of a leak hunt that both sides have, with the slopes of A and of B (per cycle)."""
        names = {name for one in self.a for name in one.leaks} & {
            name for one in self.b for name in one.leaks
        }
        for name in sorted(names):
            before, after = (
                [one.leaks[name] for one in side if name in one.leaks] for side in (self.a, self.b)
            )
            yield name, before, after


@dataclass(frozen=True)
class Figures:
    """One figure of a scenario: a time or a slope, in each run of A and of B."""

    scenario: str
    name: str
    a: tuple[float, ...]
    b: tuple[float, ...]

    @property
    def p(self) -> float:
        """The p-value of the hypothesis that both sides of the comparison are alike."""
        return permutation.two_samples(self.a, self.b)

    @property
    def ratio(self) -> float:
        """The logarithm of B's median as a multiple of A's."""
        return math.log(middle(self.b) / middle(self.a))


@dataclass(frozen=True)
class Times:
    """What the times say.

    :ivar tests: the number of scenarios that passed on both sides. :ivar runs: the fewest runs of a side.
    :ivar needed: the number of runs of each side with which one scenario can be shown to differ.
    :ivar different: the scenarios whose times differ. :ivar untested: the largest differences, if there were
        too few runs.
    :ivar factor: B's time as a multiple of A's, in the median scenario. :ivar p: the p-value of all together.
    """

    tests: int
    runs: int
    needed: int
    different: tuple[Figures, ...]
    untested: tuple[Figures, ...]
    factor: float
    p: float

    def lines(self, a: str, b: str) -> Iterator[str]:
        """What the comparison can know of times, in words."""
        if not self.tests:
            yield "times: no scenario passed on both sides"
            return
        certain = "" if self.p <= WRONG else ", which may be chance"
        yield (
            f"times: the median of {_scenarios(self.tests)} takes {self.factor:.2f} times as long on {b} "
            f"as on {a} (p = {self.p:.2g}{certain})"
        )
        if self.runs < self.needed:
            runs = "one run" if self.runs == 1 else f"{self.runs} runs"
            yield (
                f"times: {runs} of each cannot show that a single scenario differs; "
                f"for {_scenarios(self.tests)} it takes {self.needed} (--rounds {self.needed})"
            )


def _scenarios(number: int) -> str:
    return "1 scenario" if number == 1 else f"{number} scenarios"


def pairs(a: Sequence[Run], b: Sequence[Run]) -> list[Pair]:
    """Pair the results of every scenario of both sides, those of A first.

    Where each side has one QEMU and kernel, these are compared with each other. Otherwise the results of a
    QEMU and kernel are compared with those of the same QEMU and kernel.

    :param a: the runs of one side, all with the same options.
    """
    one_each = all(len({result.column for run in side for result in run.results}) <= 1 for side in (a, b))

    def by_key(side: Sequence[Run]) -> dict[str, tuple[Result, ...]]:
        found: dict[str, tuple[Result, ...]] = {}
        for result in (result for run in side for result in run.results):
            name = result.scenario or result.test
            key = name if one_each else f"{name} on {result.column}"
            found[key] = (*found.get(key, ()), result)
        return found

    of_a, of_b = by_key(a), by_key(b)
    return [Pair(key, of_a.get(key, ()), of_b.get(key, ())) for key in dict.fromkeys([*of_a, *of_b])]


def times(found: Iterable[Pair]) -> Times:
    """What a comparison says of the times of all scenarios that passed on both sides."""
    both = [(pair.scenario, *pair.seconds) for pair in found]
    timed = [
        Figures(name, "seconds", tuple(a), tuple(b)) for name, a, b in both if a and b and min(*a, *b) > 0
    ]
    if not timed:
        return Times(0, 0, 0, (), (), 1.0, 1.0)
    runs = min(min(len(one.a), len(one.b)) for one in timed)
    needed = permutation.runs_needed(len(timed))
    ratios = [one.ratio for one in timed]
    return Times(
        len(timed),
        runs,
        needed,
        tuple(_different(timed)),
        tuple(_far_out(timed)) if runs < needed else (),
        math.exp(middle(ratios)),
        permutation.pairs(ratios),
    )


def slopes(found: Iterable[Pair]) -> list[Figures]:
    """The leak slopes that differ in a comparison: by the test where there are enough runs, else by size."""
    every = [Figures(pair.scenario, name, tuple(a), tuple(b)) for pair in found for name, a, b in pair.slopes]
    needed = permutation.runs_needed(len(every))
    tested = [one for one in every if min(len(one.a), len(one.b)) >= needed]
    by_size = [one for one in every if one not in tested and abs(middle(one.a) - middle(one.b)) >= _SLOPE]
    return [*_different(tested), *by_size]


def _different(figures: Sequence[Figures]) -> list[Figures]:
    level = WRONG / max(1, len(figures))
    return sorted((one for one in figures if one.p <= level), key=lambda one: one.p)


def _far_out(figures: Sequence[Figures]) -> list[Figures]:
    """The few scenarios whose ratio of times is far from that of the others. They may be chance."""
    if len(figures) < _FEW:
        return []
    low, _, high = quantiles([one.ratio for one in figures], n=4)
    reach = _FAR_OUT * (high - low)
    far = [one for one in figures if not low - reach <= one.ratio <= high + reach]
    return sorted(far, key=lambda one: abs(one.ratio), reverse=True)[:_LISTED]


def tables(found: Sequence[Pair], a: str, b: str) -> list[Table]:
    """The tables of a comparison. They list differences only."""
    changed = Table("scenario", escape(a), escape(b), "why", title="outcomes that changed")
    for pair in found:
        if pair.changed:
            changed.add_row(escape(pair.scenario), _outcomes(pair.a), _outcomes(pair.b), escape(_why(pair)))
    compared = times(found)
    different = Table("scenario", escape(a), escape(b), "times", title="times that differ")
    untested = Table(
        "scenario", escape(a), escape(b), "times", title="largest differences of time, not tested"
    )
    for table, listed in ((different, compared.different), (untested, compared.untested)):
        for one in listed:
            factor = f"{math.exp(one.ratio):.2f}"
            table.add_row(escape(one.scenario), f"{middle(one.a):.1f} s", f"{middle(one.b):.1f} s", factor)
    steeper = Table("scenario", "per cycle", escape(a), escape(b), title="leak slopes that differ")
    for one in slopes(found):
        steeper.add_row(escape(one.scenario), one.name, f"{middle(one.a):+.2f}", f"{middle(one.b):+.2f}")
    return [table for table in (changed, different, untested, steeper) if table.row_count]


def _fails(side: Iterable[Result]) -> bool:
    return any(one.outcome is Outcome.FAILED for one in side)


def _seconds(side: Iterable[Result]) -> list[float]:
    return [one.seconds for one in side if one.outcome is Outcome.PASSED]


def _why(pair: Pair) -> str:
    """The first reason that one of a compared scenario's results has, B's first."""
    return next((one.why for one in (*pair.b, *pair.a) if one.why), "")


def _outcomes(side: Sequence[Result]) -> str:
    """The outcome of all runs of one side of a comparison, or each with its number."""
    seen = Counter(f"{one.outcome} ({one.bug})" if one.bug else str(one.outcome) for one in side)
    if not seen:
        return "did not run"
    return next(iter(seen)) if len(seen) == 1 else ", ".join(f"{n} {text}" for text, n in seen.items())
