"""Times the candidates of a benchmark in turn, once each a round, so that load on the host affects all alike.

Absolute times depend on the host as much as on the harness. Compare the ratios.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

#: Runs a candidate once and returns the seconds that it took.
Turn = Callable[[], float]


@dataclass(frozen=True)
class Row:
    """One candidate's times in seconds; ``ratio`` is the first candidate's median over this one's."""

    name: str
    rounds: int
    median_s: float
    min_s: float
    max_s: float
    ratio: float


def measure(candidates: Mapping[str, Turn], rounds: int, report: Callable[[str], None]) -> list[Row]:
    """Run every candidate once, one after the other, and repeat that ``rounds`` times.

    :param report: is given a line for each round.
    :raises HarnessError: when a turn fails.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(1, rounds + 1):
        report(f"round {number} of {rounds} …")
        for name, turn in candidates.items():
            times[name].append(turn())
    return rows(times)


def rows(times: Mapping[str, Sequence[float]]) -> list[Row]:
    """Compute the table from the seconds of each candidate. The others are compared with the first."""
    first = statistics.median(next(iter(times.values())))
    return [
        Row(name, len(took), median := statistics.median(took), min(took), max(took), first / median)
        for name, took in times.items()
    ]
