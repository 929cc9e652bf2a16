"""Whether figures differ by more than chance (permutation tests), and the median that stands for them.

If nothing has changed, every order of the figures was as likely as the one that was seen. How many orders
differ as much is counted exactly, so there is no seed and no sample. Nothing is assumed about the figures'
distribution. They are replaced by their ranks, so that one run on a busy host counts no more than any other.

Sources: R. A. Fisher, "The Design of Experiments", 1935, for the test; F. Wilcoxon, "Individual Comparisons
by Ranking Methods", 1945, and H. B. Mann and D. R. Whitney, "On a Test of Whether one of Two Random Variables
is Stochastically Larger than the Other", 1947, for the statistics.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import accumulate
from statistics import NormalDist, median

#: The probability that a report of figures that did not change names one of them, over all of its series.
WRONG = 0.05
#: Up to this product of two sizes the orders are counted, which takes some milliseconds. Beyond it the normal
#: distribution is used, whose tails are larger than the exact ones: it names fewer differences.
_COUNTED = 2_500
_NORMAL = NormalDist()


def midranks(values: Sequence[float]) -> list[float]:
    """The rank of each value for a permutation test, from 1; equal values have the mean of their ranks."""
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    start = 0
    while start < len(order):
        end = start
        while end < len(order) and values[order[end]] == values[order[start]]:
            end += 1
        for index in order[start:end]:
            ranks[index] = (start + 1 + end) / 2
        start = end
    return ranks


def rank_sum(total: float, size: int, all_: int) -> float:
    """The p-value (two-sided) of a sum of ``size`` of the ranks 1 to ``all_``.

    It is the share of all choices of so many ranks whose sum is at least as far from the middle. Equal values
    make it somewhat too large, never too small by more than their rounding to the next whole sum.
    """
    size, total = (size, total) if 2 * size <= all_ else (all_ - size, all_ * (all_ + 1) / 2 - total)
    other = all_ - size
    above_least = total - size * (size + 1) / 2
    nearest_end = min(above_least, size * other - above_least)
    if size * other > _COUNTED:
        deviation = math.sqrt(size * other * (all_ + 1) / 12)
        return min(1.0, 2 * _NORMAL.cdf((nearest_end - size * other / 2) / deviation))
    return min(1.0, 2 * _shares(size, other)[math.ceil(nearest_end)])


@cache
def _shares(size: int, other: int) -> list[float]:
    """For each u, the share of choices of ``size`` ranks whose sum is at most u above the least one.

    The number of choices with a given sum is a coefficient of the Gaussian binomial, the product of
    (1 - q^(other + i)) / (1 - q^i) for i from 1 to ``size``.
    """
    ways = [1] + [0] * (size * other)
    for factor in range(1, size + 1):
        for index in range(len(ways) - 1, other + factor - 1, -1):
            ways[index] -= ways[index - other - factor]
        for index in range(factor, len(ways)):
            ways[index] += ways[index - factor]
    choices = math.comb(size + other, size)
    return [total / choices for total in accumulate(ways)]


def two_samples(a: Sequence[float], b: Sequence[float]) -> float:
    """The p-value of a permutation test that both samples come from the same distribution; two-sided."""
    ranks = midranks([*a, *b])
    return rank_sum(sum(ranks[: len(a)]), len(a), len(ranks))


def pairs(differences: Iterable[float]) -> float:
    """The p-value of a permutation test that pairs differ upwards as often, and as far, as downwards.

    It is two-sided.

    Without a difference each sign is as likely as the other. The statistic is Wilcoxon's signed rank sum.
    """
    given = [value for value in differences if value]
    ranks = midranks([abs(value) for value in given])
    up = sum(rank for rank, value in zip(ranks, given, strict=True) if value > 0)
    most = len(ranks) * (len(ranks) + 1) / 2
    nearest_end = math.ceil(min(up, most - up))
    ways = [1] + [0] * nearest_end
    for rank in range(1, min(len(ranks), nearest_end) + 1):
        for index in range(nearest_end, rank - 1, -1):
            ways[index] += ways[index - rank]
    return min(1.0, 2 * sum(ways) / math.ldexp(1, len(ranks)))


def runs_needed(series: int) -> int:
    """The fewest runs of each of two QEMUs with which a permutation test can show that one test differs.

    That is one of ``series`` tests.
    """
    runs = 2
    while 2 / math.comb(2 * runs, runs) > WRONG / max(1, series):
        runs += 1
    return runs


def middle(values: Iterable[float]) -> float:
    """The median that stands for figures, which one unusual value does not move."""
    return float(median(values))
