"""Compares two runs: outcomes that changed, scenarios that got slower, leak slopes that differ."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from rich.markup import escape
from rich.table import Table

from harness.report.summary import Outcome, Result, Run

#: A test is slower by at least this factor and these seconds. Slopes differ by at least this, per cycle.
_SLOWER, _SLOWER_BY_S, _SLOPE = 1.5, 2.0, 0.05
_WORSE = (Outcome.FAILED,)


@dataclass(frozen=True)
class Pair:
    """The results of one scenario in both runs. One of the two may be missing."""

    scenario: str
    a: Result | None
    b: Result | None

    @property
    def changed(self) -> bool:
        """Whether the outcomes differ, or one of the runs has none."""
        return (
            self.a is None or self.b is None or (self.a.outcome, self.a.bug) != (self.b.outcome, self.b.bug)
        )

    @property
    def worse(self) -> bool:
        """Whether B fails where A does not."""
        after = self.b.outcome if self.b else None
        return after in _WORSE and (self.a is None or self.a.outcome is not after)

    @property
    def slower(self) -> bool:
        """Whether both passed, and B took longer by more than the usual variation of a test."""
        if self.a is None or self.b is None or {self.a.outcome, self.b.outcome} != {Outcome.PASSED}:
            return False
        more = self.b.seconds - self.a.seconds
        return more >= _SLOWER_BY_S and self.b.seconds >= _SLOWER * self.a.seconds

    @property
    def slopes(self) -> Iterator[tuple[str, float, float]]:
        """Each count of a leak hunt whose slopes differ, with the slopes of A and B (per cycle)."""
        if self.a is not None and self.b is not None:
            for name in self.a.leaks.keys() & self.b.leaks.keys():
                if abs(self.a.leaks[name] - self.b.leaks[name]) >= _SLOPE:
                    yield name, self.a.leaks[name], self.b.leaks[name]


def pairs(a: Run, b: Run) -> list[Pair]:
    """Pair the results of every scenario of both runs, those of A first.

    Where each run has one QEMU and kernel, these are compared with each other. Otherwise the results of a
    QEMU and kernel are compared with those of the same QEMU and kernel.
    """
    one_each = all(len({result.column for result in run.results}) <= 1 for run in (a, b))

    def by_key(run: Run) -> dict[str, Result]:
        return {
            (r.scenario or r.test) if one_each else f"{r.scenario or r.test} on {r.column}": r
            for r in run.results
        }

    of_a, of_b = by_key(a), by_key(b)
    return [Pair(key, of_a.get(key), of_b.get(key)) for key in dict.fromkeys([*of_a, *of_b])]


def tables(found: Iterable[Pair], a: str, b: str) -> list[Table]:
    """The tables to print. They list differences only."""
    listed = list(found)
    changed = Table("scenario", escape(a), escape(b), "why", title="outcomes that changed")
    slower = Table("scenario", escape(a), escape(b), title="slower")
    slopes = Table("scenario", "per cycle", escape(a), escape(b), title="leak slopes that differ")
    for pair in listed:
        if pair.changed:
            why = (pair.b.why if pair.b else "") or (pair.a.why if pair.a else "")
            changed.add_row(escape(pair.scenario), _outcome(pair.a), _outcome(pair.b), escape(why))
        if pair.slower and pair.a and pair.b:
            slower.add_row(escape(pair.scenario), f"{pair.a.seconds:.1f} s", f"{pair.b.seconds:.1f} s")
        for name, before, after in sorted(pair.slopes):
            slopes.add_row(escape(pair.scenario), name, f"{before:+.2f}", f"{after:+.2f}")
    return [table for table in (changed, slower, slopes) if table.row_count]


def _outcome(result: Result | None) -> str:
    if result is None:
        return "did not run"
    return f"{result.outcome} ({result.bug})" if result.bug else str(result.outcome)
