"""What things take, measured side by side: every candidate once a round, so that a noisy host hits them all.

Absolute times say as much about the host as about the harness; the ratios are what to compare.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

#: Returns the seconds that one turn took.
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


def race(candidates: Mapping[str, Turn], rounds: int, report: Callable[[str], None]) -> list[Row]:
    """Let each candidate take its turn, ``rounds`` times in a row of all.

    :param report: told of each round.
    :raises HarnessError: when a turn fails; there is no result then.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(1, rounds + 1):
        report(f"round {number} of {rounds} …")
        for name, turn in candidates.items():
            times[name].append(turn())
    return rows(times)


def rows(times: Mapping[str, Sequence[float]]) -> list[Row]:
    """The table: the first candidate is what the others are compared to."""
    first = statistics.median(next(iter(times.values())))
    return [
        Row(name, len(took), median := statistics.median(took), min(took), max(took), first / median)
        for name, took in times.items()
    ]
