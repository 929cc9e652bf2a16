"""Whether the host was busier in some nights than in others: then it may be the host, and not QEMU."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from harness.report import permutation
from harness.report.nights.history import Entry
from harness.report.permutation import middle

#: A difference is named when it is as unlikely as this, if the loads came from the same distribution.
_UNLIKELY = 0.05


@dataclass(frozen=True)
class Load:
    """The host's load average in two groups of results, as medians.

    :ivar p: the p-value of the hypothesis that both groups had the same load.
    """

    first: float
    second: float
    p: float

    @property
    def differs(self) -> bool:
        """Whether the host's load in some nights differs by more than chance."""
        return self.p <= _UNLIKELY


def compared(first: Iterable[Entry], second: Iterable[Entry]) -> Load | None:
    """The host's loads of two groups of results; ``None`` if a group has none."""
    loads = [[entry.result.load for entry in group] for group in (first, second)]
    known = [[load for load in group if load is not None] for group in loads]
    if not all(known):
        return None
    return Load(middle(known[0]), middle(known[1]), permutation.two_samples(*known))
