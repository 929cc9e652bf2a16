"""Two runs side by side: what changed its verdict, what got slower, what leaks more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from rich.markup import escape
from rich.table import Table

from harness.report.summary import Outcome, Result, Run

#: A test is slower by this factor and by at least so many seconds; a slope differs by at least this, a cycle.
_SLOWER, _SLOWER_BY_S, _SLOPE = 1.5, 2.0, 0.05
_WORSE = (Outcome.FAILED,)


@dataclass(frozen=True)
class Pair:
    """The same scenario in both runs; one of the two may be missing."""

    scenario: str
    a: Result | None
    b: Result | None

    @property
    def changed(self) -> bool:
        """Whether the outcome is another, or there is one on one side only."""
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
        """Whether both passed, and B took longer by more than a test's usual scatter."""
        if self.a is None or self.b is None or {self.a.outcome, self.b.outcome} != {Outcome.PASSED}:
            return False
        more = self.b.seconds - self.a.seconds
        return more >= _SLOWER_BY_S and self.b.seconds >= _SLOWER * self.a.seconds

    @property
    def slopes(self) -> Iterator[tuple[str, float, float]]:
        """The counts of a leak hunt whose slopes differ."""
        if self.a is not None and self.b is not None:
            for name in self.a.leaks.keys() & self.b.leaks.keys():
                if abs(self.a.leaks[name] - self.b.leaks[name]) >= _SLOPE:
                    yield name, self.a.leaks[name], self.b.leaks[name]


def pairs(a: Run, b: Run) -> list[Pair]:
    """Every scenario of either run, A's first.

    Where each run is about one QEMU and kernel, those are compared; otherwise like with like.
    """
    alone = all(len({result.column for result in run.results}) <= 1 for run in (a, b))

    def by_key(run: Run) -> dict[str, Result]:
        return {
            (r.scenario or r.test) if alone else f"{r.scenario or r.test} on {r.column}": r
            for r in run.results
        }

    of_a, of_b = by_key(a), by_key(b)
    return [Pair(key, of_a.get(key), of_b.get(key)) for key in dict.fromkeys([*of_a, *of_b])]


def tables(found: Iterable[Pair], a: str, b: str) -> list[Table]:
    """For a person; only what differs."""
    listed = list(found)
    changed = Table("scenario", escape(a), escape(b), "why", title="verdicts that changed")
    slower = Table("scenario", escape(a), escape(b), title="slower")
    slopes = Table("scenario", "a cycle", escape(a), escape(b), title="leak slopes that differ")
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
