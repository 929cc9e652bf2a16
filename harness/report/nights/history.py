"""A history file as the reports over many nights need it: the results of each test in one place, in order.

A *night* is a run of pytest's scenarios, or the parts of one that was split. What is compared over nights is
a test on one QEMU *name*, architecture, kernel and machine type: a :class:`Place`. Runs with other cells or
options are in the same file without being taken for each other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property, lru_cache
from itertools import pairwise
from operator import attrgetter
from typing import TypeVar

from harness.report.nights import rows
from harness.report.nights.store import Store
from harness.report.summary import Outcome

R = TypeVar("R", rows.Confirmation, rows.Measurement)
#: The kinds of runs that are nights.
NIGHTS = ("scenarios", "merge")
#: What ran with other options within so long before the newest run belongs to the newest night.
A_NIGHT = timedelta(hours=20)
#: Options that change where results go, or what is printed, and nothing that is run.
_RESULTS = ("--artifacts", "--summary", "--junit", "--record", "--durations-from", "--color", "-v", "-q")


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """What is compared over nights: a test, and what it runs on by name."""

    test: str
    qemu: str
    arch: str
    kernel: str
    machine_type: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A result, with the run that it is of and what it ran on.

    :ivar measured: the measurements by name, with their units.
    """

    place: Place
    run: rows.Run
    qemu: rows.Qemu | None
    cell: rows.Cell | None
    result: rows.Result
    confirmations: tuple[rows.Confirmation, ...] = ()
    measured: Mapping[str, rows.Measurement] = field(default_factory=dict)

    @property
    def outcome(self) -> Outcome:
        """The outcome of the first run, which no confirmation changes."""
        return Outcome(self.result.outcome)

    @property
    def failed(self) -> bool:
        """Whether it failed, and not as a known bug does."""
        return self.result.outcome == Outcome.FAILED

    @property
    def night(self) -> str:
        """What the entries of one night have in common, in order: the parts of a split run have their day."""
        return self.run.begun[:10] if self.run.shard else self.run.begun

    @property
    def judged(self) -> bool:
        """Whether it was not skipped."""
        return self.result.outcome != Outcome.SKIPPED

    @property
    def signature(self) -> str:
        """What failures with the same cause have in common; the cause where there is no signature."""
        return self.result.signature or self.result.cause or "a failure without a message"

    @property
    def failures(self) -> int:
        """How often it failed in this run: at first, and when it was run again."""
        return self.failed + sum(one.outcome == Outcome.FAILED for one in self.confirmations)

    @property
    def attempts(self) -> int:
        """How often it was run in this run."""
        return 1 + len(self.confirmations)


@dataclass(frozen=True)
class History:
    """All nights of a history file.

    :ivar runs: the nights, the oldest first. :ivar entries: the results of each place, the oldest first.
    :ivar running: for each incomplete run, the tests that were running.
    """

    runs: tuple[rows.Run, ...]
    entries: Mapping[Place, Sequence[Entry]]
    running: Mapping[int, Sequence[rows.Running]] = field(default_factory=dict)

    @cached_property
    def newest(self) -> datetime:
        """When the newest run began."""
        return max(time(run.begun) for run in self.runs)

    @cached_property
    def _recent(self) -> frozenset[int]:
        latest = {
            (run.kind, run.shard, conditions(run)): run.id
            for run in self.runs
            if time(run.begun) > self.newest - A_NIGHT
        }
        return frozenset(latest.values())

    def is_recent(self, run: rows.Run) -> bool:
        """Whether a run belongs to the newest night.

        That is the newest run, and the newest one with each other set of options if it began not long before.
        """
        return run.id in self._recent

    @cached_property
    def by_run(self) -> Mapping[int, Sequence[Entry]]:
        """The results of each run, by the run's id."""
        found: dict[int, list[Entry]] = defaultdict(list)
        for entries in self.entries.values():
            for entry in entries:
                found[entry.run.id].append(entry)
        return found


def conditions(run: rows.Run) -> frozenset[str]:
    """The options of a run, each with its value, without those that only say where results go.

    Runs with other conditions are of other tests, or of the same ones under another load.
    """
    return _conditions(run.options)


@lru_cache
def _conditions(options: tuple[str, ...]) -> frozenset[str]:
    found: list[str] = []
    for word in options:
        if found and not word.startswith("-") and found[-1].startswith("-") and " " not in found[-1]:
            found[-1] += f" {word}"
        else:
            found.append(word)
    return frozenset(one for one in found if not one.startswith(_RESULTS))


def time(text: str) -> datetime:
    """A time of the history file."""
    found = datetime.fromisoformat(text)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def load(store: Store) -> History:
    """Read all nights of a file."""
    marks = ", ".join("?" * len(NIGHTS))
    runs = {run.id: run for run in store.select(rows.Run, f"kind IN ({marks})", NIGHTS)}
    qemus = {qemu.id: qemu for qemu in store.select(rows.Qemu)}
    cells = {cell.id: cell for cell in store.select(rows.Cell)}
    confirmations = _by_result(store.select(rows.Confirmation, order="result_id, number"))
    measurements = _by_result(store.select(rows.Measurement))
    places: dict[tuple[str, int | None], Place] = {}
    entries: dict[Place, list[Entry]] = defaultdict(list)
    for result in store.select(rows.Result):
        if result.run_id not in runs:
            continue
        cell = cells.get(result.cell_id or 0)
        qemu = qemus.get(cell.qemu_id or 0) if cell else None
        key = result.test, result.cell_id
        place = places.setdefault(key, _place(result.test, cell, qemu))
        measured = {one.name: one for one in measurements.get(result.id, ())}
        again = tuple(confirmations.get(result.id, ()))
        entries[place].append(Entry(place, runs[result.run_id], qemu, cell, result, again, measured))
    return History(
        tuple(sorted(runs.values(), key=attrgetter("begun", "id"))),
        {place: _in_order(some) for place, some in entries.items()},
        _running(store),
    )


def _place(test: str, cell: rows.Cell | None, qemu: rows.Qemu | None) -> Place:
    if cell is None:
        return Place(test, "", "", "", "")
    return Place(test, qemu.name if qemu else "", cell.arch, cell.kernel, cell.machine_type)


def _in_order(entries: list[Entry]) -> list[Entry]:
    """The entries, the oldest first. A part of a run and the run that it was merged into are one."""
    ordered = sorted(entries, key=lambda entry: (entry.result.begun, entry.run.kind))
    return ordered[:1] + [
        entry
        for before, entry in pairwise(ordered)
        if (entry.result.begun, entry.result.seconds) != (before.result.begun, before.result.seconds)
    ]


def _by_result(found: Iterable[R]) -> dict[int, list[R]]:
    by_result: dict[int, list[R]] = defaultdict(list)
    for row in found:
        by_result[row.result_id].append(row)
    return by_result


def _running(store: Store) -> dict[int, list[rows.Running]]:
    found: dict[int, list[rows.Running]] = defaultdict(list)
    for running in store.select(rows.Running):
        found[running.run_id].append(running)
    return found
