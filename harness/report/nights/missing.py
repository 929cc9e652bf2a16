"""What did not run in the newest night although it did before, and why.

That is: tests that are skipped now, tests and cells that are gone, runs that did not end, and guarantees that
nothing asserted.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta

from harness.guarantees import UNNAMED, in_order
from harness.report.nights import rows
from harness.report.nights.history import Entry, History, Place
from harness.report.nights.runs import conditions, time

#: A cell that ran at least so often in so many days is missed when it does not run.
_USUAL_NIGHTS, _USUAL_DAYS = 3, timedelta(days=14)
#: pytest's exit code when it has collected no tests.
_NO_TESTS = 5


@dataclass(frozen=True)
class NewSkips:
    """Tests that are skipped now with one reason, and were not before.

    :ivar last_run: the latest night in which one of them was judged.
    """

    reason: str
    places: tuple[Place, ...]
    last_run: Entry


@dataclass(frozen=True)
class Gone:
    """Tests that a run with the same options had before, and has no longer.

    :ivar now: the run that lacks them. :ivar before: the run that had them.
    """

    places: tuple[Place, ...]
    now: rows.Run
    before: rows.Run


@dataclass(frozen=True)
class GoneCell:
    """A QEMU, kernel and machine type on which nothing ran in the newest night.

    :ivar last: the latest result there. :ivar nights: the nights before it, within two weeks.
    """

    qemu: str
    arch: str
    kernel: str
    machine_type: str
    last: Entry
    nights: int


@dataclass(frozen=True)
class Incomplete:
    """A run that did not end, ended before all of its tests had run, or ended without a result.

    :ivar running: the tests that were running.
    """

    run: rows.Run
    results: int
    running: tuple[rows.Running, ...]


@dataclass(frozen=True)
class NotAsserted:
    """A guarantee that no test of the newest night asserted on a QEMU.

    :ivar why: the reasons. :ivar asserted: the latest night that asserted it; ``None`` if none did.
    """

    guarantee: str
    qemu: str
    why: str
    asserted: Entry | None


@dataclass(frozen=True)
class Missing:
    """What did not run."""

    skips: tuple[NewSkips, ...]
    gone: tuple[Gone, ...]
    gone_cells: tuple[GoneCell, ...]
    incomplete: tuple[Incomplete, ...]
    not_asserted: tuple[NotAsserted, ...]


def missing(history: History) -> Missing:
    """What did not run in the newest night."""
    cells = tuple(_gone_cells(history))
    return Missing(
        tuple(_new_skips(history)),
        tuple(_gone(history)),
        cells,
        tuple(_incomplete(history)),
        tuple(_not_asserted(history)),
    )


def _new_skips(history: History) -> Iterator[NewSkips]:
    by_reason: dict[str, list[tuple[Entry, Entry]]] = defaultdict(list)
    for entries in history.entries.values():
        last = entries[-1]
        if len(entries) > 1 and not last.judged and history.is_recent(last.run) and entries[-2].judged:
            by_reason[last.result.cause or "no reason given"].append((entries[-2], last))
    for reason, found in by_reason.items():
        latest = max((before for before, _ in found), key=lambda entry: entry.run.begun)
        yield NewSkips(reason, tuple(now.place for _, now in found), latest)


def _gone(history: History) -> Iterator[Gone]:
    """The tests that are missing: of the run before with the same options, if their cell still runs."""
    ran = {entry.place for run in history.runs if history.is_recent(run) for entry in _of(history, run)}
    cells = {_cell(place) for place in ran}
    for run in history.runs:
        before = _run_before(history, run) if history.is_recent(run) and run.complete else None
        if before is None:
            continue
        lost = {entry.place for entry in _of(history, before)} - ran
        places = tuple(sorted(place for place in lost if _cell(place) in cells))
        if places and _is_whole(history, run):
            yield Gone(places, run, before)


def _is_whole(history: History, run: rows.Run) -> bool:
    """Whether all selected tests of a run have a result: otherwise it is named as incomplete."""
    return run.expected is None or len(_of(history, run)) >= run.expected


def _of(history: History, run: rows.Run) -> list[Entry]:
    return list(history.by_run.get(run.id, ()))


def _run_before(history: History, run: rows.Run) -> rows.Run | None:
    """The latest complete run before the newest night with the same options, to find what is missing."""
    alike = [
        other
        for other in history.runs
        if other.complete
        and not history.is_recent(other)
        and other.kind == run.kind
        and other.shard == run.shard
        and conditions(other) == conditions(run)
    ]
    return alike[-1] if alike else None


def _cell(place: Place) -> tuple[str, str, str, str]:
    return place.qemu, place.arch, place.kernel, place.machine_type


def _gone_cells(history: History) -> Iterator[GoneCell]:
    entries: dict[tuple[str, str, str, str], list[Entry]] = defaultdict(list)
    for place, some in history.entries.items():
        if place.arch:
            entries[_cell(place)] += some
    for cell, some in entries.items():
        last = max(some, key=lambda entry: entry.run.begun)
        if history.is_recent(last.run):
            continue
        since = history.newest - _USUAL_DAYS
        nights = {entry.night for entry in some if time(entry.run.begun) >= since}
        if len(nights) >= _USUAL_NIGHTS:
            yield GoneCell(*cell, last, len(nights))


def _incomplete(history: History) -> Iterator[Incomplete]:
    for run in history.runs:
        results = len(_of(history, run))
        unfinished = not run.complete or results < (run.expected or 0) or _has_no_result(run)
        if history.is_recent(run) and unfinished:
            yield Incomplete(run, results, tuple(history.running.get(run.id, ())))


def _has_no_result(run: rows.Run) -> bool:
    """Whether pytest ended otherwise than with "all passed" or "some failed", such as after an error in the
    collection. A part of a run may have no tests.
    """
    return run.exit_code not in (None, 0, 1) and not (run.shard is not None and run.exit_code == _NO_TESTS)


def _not_asserted(history: History) -> Iterator[NotAsserted]:
    asserted: dict[tuple[str, str], Entry] = {}
    recent: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    qemus = set()
    for entries in history.entries.values():
        for entry in entries:
            is_recent = history.is_recent(entry.run)
            if is_recent:
                qemus.add(entry.place.qemu)
            for guarantee in entry.result.guarantees:
                key = guarantee, entry.place.qemu
                if is_recent:
                    recent[key].append(entry)
                if entry.judged and (key not in asserted or asserted[key].run.begun < entry.run.begun):
                    asserted[key] = entry
    named = {guarantee for guarantee, qemu in (*recent, *asserted) if guarantee != UNNAMED and qemu}
    for guarantee in in_order(named):
        for qemu in sorted(qemus - {""}):
            found = recent.get((guarantee, qemu), [])
            before = asserted.get((guarantee, qemu))
            if any(entry.judged for entry in found) or not (found or _is_missed(history, before)):
                continue
            yield NotAsserted(guarantee, qemu, _reasons(found), before)


def _is_missed(history: History, before: Entry | None) -> bool:
    """Whether a guarantee is missing: without a test now, and asserted by the run before.

    That is the run with the same options.
    """
    if before is None:
        return False
    comparable = [_run_before(history, run) for run in history.runs if history.is_recent(run)]
    return any(run is not None and run.id == before.run.id for run in comparable)


def _reasons(skipped: Iterable[Entry]) -> str:
    counted = Counter(entry.result.cause or "no reason given" for entry in skipped)
    text = "; ".join(f"{number} skipped: {why}" for why, number in counted.items())
    return text or "none of its tests ran"
