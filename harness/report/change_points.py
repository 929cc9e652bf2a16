"""Since when a series of figures is another one: steps and drifts, found by a permutation test.

A series is cut where the figures before and after differ most, by the p-value of their ranks
(:mod:`harness.report.permutation`). A change that ended again hardly shows at any one cut, so a stretch that
differs from both sides is looked for as well. The p-value is multiplied by the number of places that were
looked at, and compared with a level that is divided by the number of series. So a report of any number of
series that did not change names one of them with a probability of at most
:data:`harness.report.permutation.WRONG`. Each part is then searched again.

What was found is a *step*, to which a horizontal line on each side fits better, or a *drift*, to which a line
that begins to slope at some point fits better. Both have three parameters, so their squared residuals can be
compared as they are.

Sources: A. J. Scott and M. Knott, "A Cluster Analysis Method", 1974, for the search of parts (binary
segmentation); A. B. Olshen and others, "Circular binary segmentation", 2004, for stretches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate
from operator import sub

from harness.report.permutation import WRONG, middle, midranks, rank_sum

#: Fewer figures are no level of their own: two unusual ones in a row are a matter of luck in many series.
LEAST = 3
#: Hampel's filter: the running median over so many figures on each side replaces those that are further from
#: it than so many times the median distance. Steps and slopes stay as they are.
_SIDE, _FAR = 2, 5.0
#: Twice the difference of the logarithms of two likelihoods at which one place is clearly the better one: the
#: 95th percentile of the chi-squared distribution with two degrees of freedom.
_CLEARLY = 6.0


class Shape(StrEnum):
    """How a series changed."""

    STEP = "step"
    DRIFT = "drift"


@dataclass(frozen=True)
class Change:
    """A change of a series.

    :ivar start: the first figure on the level, or of the drift, that it ends.
    :ivar index: a step's first figure on the new level; the first figure of a drift.
    :ivar end: the index after the last figure that belongs to it.
    :ivar before: the median before a step; the fitted figure at a drift's beginning.
    :ivar after: the median after a step, up to the next change; the fitted figure at a drift's end.
    """

    shape: Shape
    start: int
    index: int
    end: int
    before: float
    after: float

    @property
    def factor(self) -> float | None:
        """A series after its change as a multiple of before; ``None`` when one of them is not above 0."""
        return self.after / self.before if self.before > 0 and self.after > 0 else None


def shortest(series: int) -> int:
    """The number of figures with which a change in the middle can be shown, if there are so many series."""
    length = 2 * LEAST
    while 2 / math.comb(length, length // 2) * (length - 2 * LEAST + 1) > WRONG / max(1, series) / 2:
        length += 1
    return length


def changes(values: Sequence[float], series: int) -> list[Change]:
    """The changes of a series, in order.

    :param series: the number of series that the report looks at.
    """
    level = WRONG / max(1, series) / 2  # One half for cuts, one for stretches.
    cuts = _cuts(values, 0, len(values), level)
    bounds = [0, *(cut.index for cut in cuts), len(values)]
    found = []
    for before, cut, after in zip(bounds, cuts, bounds[2:], strict=False):
        make = _drift if cut.shape is Shape.DRIFT else _step
        found.append(make(values, before, cut.index, after))
    return found


def as_step_at(values: Sequence[float], change: Change, index: int, others: int) -> Change | None:
    """A drift or a step as a step at ``index``; ``None`` if that fits clearly worse.

    One series says little of the exact place, and of the shape. If other series have a step there, so may
    this one: with their number the odds for it grow, and so the evidence that it takes to deny it.
    """
    if not change.start + LEAST <= index <= change.end - LEAST:
        return None
    fitted = _without_outliers(values[change.start : change.end])
    found = change.index - change.start
    error = _bent_line(fitted)[1] if change.shape is Shape.DRIFT else _step_error(fitted, found)
    other = _step_error(fitted, index - change.start)
    if other > error * math.exp((_CLEARLY + 2 * math.log(max(1, others))) / len(fitted)):
        return None
    return _step(values, change.start, index, change.end)


@dataclass(frozen=True)
class _Cut:
    shape: Shape
    index: int


def _cuts(values: Sequence[float], start: int, end: int, level: float) -> list[_Cut]:
    part = values[start:end]
    if len(part) < 2 * LEAST or min(part) == max(part):
        return []
    sums = [0.0, *accumulate(midranks(part))]
    cut = _best_cut(sums, level)
    if cut is not None:
        fitted = _without_outliers(part)
        begin, error = _bent_line(fitted)
        if error < _step_error(fitted, cut):
            return [*_cuts(values, start, start + begin, level), _Cut(Shape.DRIFT, start + begin)]
        inner = [cut]
    else:
        inner = _best_stretch(sums, level)
    found: list[_Cut] = []
    bounds = [0, *inner, len(part)]
    for number, first in enumerate(bounds[:-1]):
        if number:
            found.append(_Cut(Shape.STEP, start + first))
        if inner:
            found += _cuts(values, start + first, start + bounds[number + 1], level)
    return found


def _best_cut(sums: Sequence[float], level: float) -> int | None:
    """Where to cut a series for a step, if that is more than chance.

    :param sums: the sums of ranks before each position.
    """
    size = len(sums) - 1
    places = range(LEAST, size - LEAST + 1)
    p, cut = min((rank_sum(sums[place], place, size), place) for place in places)
    return cut if p * len(places) <= level else None


def _best_stretch(sums: Sequence[float], level: float) -> list[int]:
    """The bounds of a stretch inside of the series that differs from the rest; none if that may be chance."""
    size = len(sums) - 1
    found, places = (1.0, 0, 0), 0
    for length in range(LEAST, size - 2 * LEAST + 1):
        totals = list(map(sub, sums[LEAST + length : size - LEAST + 1], sums[LEAST:]))
        places += len(totals)
        # Of all stretches of a length, the one whose sum is furthest from the mean differs most.
        mean = length * (size + 1) / 2
        most, least = max(totals), min(totals)
        total = most if most - mean > mean - least else least
        first = LEAST + totals.index(total)
        found = min(found, (rank_sum(total, length, size), first, first + length))
    return list(found[1:]) if places and found[0] * places <= level else []


def _without_outliers(values: Sequence[float]) -> list[float]:
    smooth = [middle(values[max(0, place - _SIDE) : place + _SIDE + 1]) for place in range(len(values))]
    far = _FAR * middle(abs(value - usual) for value, usual in zip(values, smooth, strict=True))
    return [
        value if abs(value - usual) <= far else usual for value, usual in zip(values, smooth, strict=True)
    ]


def _step_error(values: Sequence[float], cut: int) -> float:
    """The squared residuals of a step: a horizontal line before the cut and one after it."""
    return _spread(values[:cut]) + _spread(values[cut:])


def _spread(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values)


def _bent_line(values: Sequence[float]) -> tuple[int, float]:
    """Where a drift begins best, and its squared residuals: the line before it is horizontal."""
    size, mean, total = len(values), sum(values) / len(values), _spread(values)
    best, least = 0, total
    beyond = along = 0.0  # The sums, over the positions after "begin", of values and of values times x.
    for begin in range(size - 2, -1, -1):
        beyond += values[begin + 1] - mean
        along += beyond
        rise = size - 1 - begin  # x is 0 up to "begin", and then 1, 2, … to this.
        across = rise * (rise + 1) * ((2 * rise + 1) / 6 - rise * (rise + 1) / 4 / size)
        error = total - along**2 / across
        if rise >= LEAST and error < least:
            best, least = begin, error
    return best, least


def _step(values: Sequence[float], start: int, index: int, end: int) -> Change:
    return Change(Shape.STEP, start, index, end, middle(values[start:index]), middle(values[index:end]))


def _drift(values: Sequence[float], start: int, index: int, end: int) -> Change:
    """A drift, with the figures of a line that a few unusual ones do not turn (Theil-Sen)."""
    part = values[index:end]
    slope = middle(
        (part[later] - part[earlier]) / (later - earlier)
        for earlier in range(len(part))
        for later in range(earlier + 1, len(part))
    )
    first = middle(value - slope * place for place, value in enumerate(part))
    return Change(Shape.DRIFT, start, index, end, first, first + slope * (len(part) - 1))
