"""Failures that are new, or go on; and what was fixed: known bugs, and failures that ended.

Failures with one cause are one report, however many tests show it: the same signature on the same QEMU, with
the same first bad and last good night.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from harness.report.host_errors import is_of_the_host
from harness.report.nights import changes, flaky
from harness.report.nights.changes import Difference
from harness.report.nights.failed import last_good, sign, streak
from harness.report.nights.history import Entry, History
from harness.report.nights.runs import time
from harness.report.reliability import Reliability
from harness.report.summary import Outcome


@dataclass(frozen=True)
class Regression:
    """A failure of one test or more.

    :ivar entries: the latest result of each test, all with the same signature.
    :ivar first_bad: the first result of the first of these tests with this failure.
    :ivar last_good: the latest result of that test before it; ``None`` if the test never passed.
    :ivar good_nights: how many results before it did not fail, without a failure between them.
    :ivar not_run: how many nights between the two skipped the test.
    :ivar before: another signature with which it had failed until then, if it did.
    """

    entries: tuple[Entry, ...]
    first_bad: Entry
    last_good: Entry | None
    good_nights: int
    not_run: int
    before: str
    bad_nights: int

    @property
    def signature(self) -> str:
        """What the failures of a regression have in common."""
        return self.first_bad.signature

    @property
    def cause(self) -> str:
        """The first line of a regression's root cause, as it was last seen."""
        return self.entries[0].result.cause or self.signature

    @property
    def changed(self) -> tuple[Difference, ...]:
        """What changed between the last good night and the first bad one of a regression."""
        return changes.between(self.last_good, self.first_bad) if self.last_good is not None else ()

    @property
    def reliability(self) -> Reliability:
        """How often a regression failed when it was run again, the first failure included.

        In its latest night.
        """
        failures = sum(entry.failures for entry in self.entries)
        return Reliability(failures, sum(entry.attempts for entry in self.entries))

    @property
    def is_confirmed(self) -> bool | None:
        """Whether a regression failed each time that it was run again; ``None`` when it was not."""
        if not any(entry.confirmations for entry in self.entries):
            return None
        return self.reliability.failures == self.reliability.attempts

    @property
    def is_of_the_host(self) -> bool:
        """Whether the host or the harness is at fault for a regression, rather than QEMU."""
        return is_of_the_host(self.cause)

    @property
    def certainty(self) -> tuple[bool, float, int]:
        """What regressions are sorted by: those that are certainly QEMU's come last."""
        share = self.reliability.interval[0] if self.is_confirmed is not None else 0.0
        return not self.is_of_the_host, share, len(self.entries)


@dataclass(frozen=True)
class Fix:
    """A known bug, or failures that probably had one cause, that tests no longer show.

    :ivar bug: the ledger's id; empty for failures that are none.
    :ivar signatures: of failures, the most frequent one first; empty for a known bug.
    :ivar entries: the first result of each test without it. :ivar last_bad: the last one of a test with it.
    """

    bug: str
    signatures: tuple[str, ...]
    entries: tuple[Entry, ...]
    last_bad: Entry | None

    @property
    def cause(self) -> str:
        """The first line of the failure that is fixed, as a test last showed it."""
        shown = self.last_bad.result.cause if self.last_bad is not None else None
        return shown or next(iter(self.signatures), "")

    @property
    def changed(self) -> tuple[Difference, ...]:
        """What changed between the last night with a failure and the first in which it is fixed."""
        return changes.between(self.last_bad, self.entries[0]) if self.last_bad is not None else ()


@dataclass(frozen=True)
class Failures:
    """What failed, and what was fixed.

    :ivar new: failures that began now, the most certain first. :ivar standing: those that began earlier.
    :ivar fixed: known bugs that are gone. :ivar ended: other failures that ended.
    :ivar met: known bugs that a test did not meet before.
    """

    new: tuple[Regression, ...]
    standing: tuple[Regression, ...]
    fixed: tuple[Fix, ...]
    ended: tuple[Fix, ...]
    met: tuple[Fix, ...]


def failures(history: History, since: datetime | None) -> Failures:
    """The regressions of the newest night, and what was fixed.

    :param since: what began then or later is new; by default what began in the newest night.
    """

    def is_new(entry: Entry) -> bool:
        return history.is_recent(entry.run) if since is None else time(entry.run.begun) >= since

    found: list[Regression] = []
    fixed: list[tuple[Entry | None, Entry]] = []
    for entries in history.entries.values():
        judged = [entry for entry in entries if entry.judged]
        # A test that is no longer run says nothing about the newest night.
        if not judged or (since is None and not history.is_recent(judged[-1].run)):
            continue
        if judged[-1].failed:
            regression = _regression(entries, judged)
            if regression is not None:
                found.append(regression)
        else:
            fixed += [
                (before, after)
                for before, after in _turns(judged)
                if is_new(after) and not _came_and_went(before, judged[: judged.index(after)])
            ]
    groups = sorted(_grouped(found), key=lambda one: one.certainty, reverse=True)
    return Failures(
        tuple(one for one in groups if is_new(one.first_bad)),
        tuple(one for one in groups if not is_new(one.first_bad)),
        *(tuple(fixes) for fixes in _fixes(fixed)),
    )


def _regression(entries: Sequence[Entry], judged: Sequence[Entry]) -> Regression | None:
    """The regression that a test's last result shows; ``None`` if it comes and goes: it is flaky."""
    if flaky.recurs(judged):
        return None
    bad_nights = streak(judged)
    first_bad, earlier = judged[-bad_nights], judged[:-bad_nights]
    good = last_good(earlier)
    otherwise = earlier[-1].signature if earlier and earlier[-1].failed else ""
    skipped = 0
    if good is not None:
        start, end = entries.index(good), entries.index(first_bad)
        skipped = sum(not entry.judged for entry in entries[start:end])
    return Regression((judged[-1],), first_bad, good, _good_nights(earlier), skipped, otherwise, bad_nights)


def _good_nights(judged: Sequence[Entry]) -> int:
    nights = 0
    for entry in reversed(judged):
        if entry.failed:
            break
        nights += 1
    return nights


def _grouped(found: Iterable[Regression]) -> Iterator[Regression]:
    groups: dict[tuple[str, ...], list[Regression]] = defaultdict(list)
    for one in found:
        good = one.last_good.night if one.last_good is not None else ""
        key = one.signature, one.first_bad.place.qemu, one.first_bad.night, good, one.before
        groups[key].append(one)
    for same in groups.values():
        longest = max(same, key=lambda one: one.good_nights)
        yield Regression(
            tuple(entry for one in same for entry in one.entries),
            longest.first_bad,
            longest.last_good,
            longest.good_nights,
            longest.not_run,
            longest.before,
            longest.bad_nights,
        )


def _turns(judged: Sequence[Entry]) -> Iterator[tuple[Entry | None, Entry]]:
    """The last turn of a test, from failing or to it: the result before, and the first after."""
    last = judged[-1]
    streak = 0
    for entry in reversed(judged):
        if _shows(entry) != _shows(last):
            break
        streak += 1
    before = judged[-streak - 1] if streak < len(judged) else None
    if before is not None or last.outcome is Outcome.FIXED:
        yield before, judged[-streak]


def _came_and_went(before: Entry | None, judged: Sequence[Entry]) -> bool:
    """Whether a failure that a test no longer shows comes and goes: the test was flaky, and is not fixed.

    A failure that came each time when the test was run again was another one.

    :param judged: the test's results until the failure.
    """
    if before is None or not before.failed or (before.confirmations and before.failures == before.attempts):
        return False
    return flaky.is_flaky(judged)


def _shows(entry: Entry) -> str:
    """The known bug that a result shows, or that it failed otherwise; empty for neither."""
    if entry.failed:
        return Outcome.FAILED
    return entry.result.bug or "?" if entry.outcome is Outcome.KNOWN else ""


def _fixes(turns: Iterable[tuple[Entry | None, Entry]]) -> tuple[list[Fix], list[Fix], list[Fix]]:
    """Known bugs that are gone, failures that ended, and known bugs that are new to a test."""
    groups: dict[tuple[object, ...], list[tuple[Entry | None, Entry]]] = defaultdict(list)
    for before, after in turns:
        groups[*_kind(before, after), after.place.qemu, after.night].append((before, after))
    found: tuple[list[Fix], list[Fix], list[Fix]] = ([], [], [])
    for (kind, bug, *_), same in groups.items():
        fix = _fix(str(bug), same)
        found[_KINDS.index(str(kind))].append(fix)
    return found


#: What can be said of a turn, in the order of :func:`_fixes`.
_KINDS = _GONE, _ENDED, _MET = ("gone", "ended", "met")


def _kind(before: Entry | None, after: Entry) -> tuple[str, str, tuple[str, ...]]:
    """What a test's turn is (new, fixed), its known bug, and what failures with its cause have in common."""
    if after.outcome is Outcome.KNOWN:
        return _MET, after.result.bug or "?", (after.result.cause or "",)
    if before is not None and before.failed:
        return _ENDED, "", sign(before)
    bug = (before.result.bug if before is not None else None) or after.result.bug
    return _GONE, bug or "?", ()


def _fix(bug: str, same: Sequence[tuple[Entry | None, Entry]]) -> Fix:
    bad = [] if bug else [before for before, _ in same if before is not None]
    signatures = [signature for signature, _ in Counter(entry.signature for entry in bad).most_common()]
    shown = next((entry for entry in bad if entry.signature == signatures[0]), same[0][0])
    return Fix(bug, tuple(signatures), tuple(after for _, after in same), shown)
