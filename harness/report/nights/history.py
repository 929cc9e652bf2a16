"""A history file as the reports over many nights need it: the results of each test in one place, in order.

What is compared over nights is a test on one QEMU *name*, architecture, kernel and machine type: a
:class:`Place`. Runs with other cells or options are in the same file without being taken for each other.
:mod:`harness.report.nights.runs` says which runs are one night.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from itertools import pairwise
from operator import attrgetter
from typing import TypeVar

from harness.report.nights import rows
from harness.report.nights.runs import NIGHTS, by_night, time
from harness.report.nights.store import Store
from harness.report.summary import Outcome

R = TypeVar("R", rows.Confirmation, rows.Measurement)


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

    :ivar night: the name of the run's night. :ivar measured: the measurements by name, with their units.
    """

    place: Place
    run: rows.Run
    night: str
    qemu: rows.Qemu | None
    cell: rows.Cell | None
    result: rows.Result
    confirmations: tuple[rows.Confirmation, ...] = ()
    measured: Mapping[str, rows.Measurement] = field(default_factory=dict)

    @property
    def outcome(self) -> Outcome:
        """The outcome of the first run of a night's result, which no confirmation changes."""
        return Outcome(self.result.outcome)

    @property
    def failed(self) -> bool:
        """Whether a night's result failed, and not as a known bug does."""
        return self.result.outcome == Outcome.FAILED

    @property
    def judged(self) -> bool:
        """Whether a night's result was not skipped."""
        return self.result.outcome != Outcome.SKIPPED

    @property
    def signature(self) -> str:
        """What failures with the same cause have in common; the cause where there is no signature."""
        return self.result.signature or self.result.cause or "a failure without a message"

    @property
    def failures(self) -> int:
        """How often a night's result failed: at first, and when it was run again."""
        return self.failed + sum(one.outcome == Outcome.FAILED for one in self.confirmations)

    @property
    def attempts(self) -> int:
        """How often the test of a night's result was run in its run."""
        return 1 + len(self.confirmations)


@dataclass(frozen=True)
class History:
    """All nights of a history file.

    :ivar runs: those of scenarios, the oldest first.
    :ivar entries: the results of each place, the oldest first.
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
    def nights(self) -> Mapping[int, str]:
        """The name of the night of each run, by the run's id."""
        return by_night(self.runs)

    def is_recent(self, run: rows.Run) -> bool:
        """Whether a run belongs to the newest night."""
        return self.nights[run.id] == self.nights[self.runs[-1].id]

    @cached_property
    def by_run(self) -> Mapping[int, Sequence[Entry]]:
        """The results of nights of each run, by the run's id."""
        found: dict[int, list[Entry]] = defaultdict(list)
        for entries in self.entries.values():
            for entry in entries:
                found[entry.run.id].append(entry)
        return found


def load(store: Store) -> History:
    """Read the results of all nights of a history file."""
    marks = ", ".join("?" * len(NIGHTS))
    runs = {run.id: run for run in store.select(rows.Run, f"kind IN ({marks})", NIGHTS)}
    qemus = {qemu.id: qemu for qemu in store.select(rows.Qemu)}
    cells = {cell.id: cell for cell in store.select(rows.Cell)}
    confirmations = _by_result(store.select(rows.Confirmation, order="result_id, number"))
    measurements = _by_result(store.select(rows.Measurement))
    nights = by_night(runs.values())
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
        run = runs[result.run_id]
        entries[place].append(Entry(place, run, nights[run.id], qemu, cell, result, again, measured))
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
    """The results of nights, the oldest first.

    A part of a run and the run that it was merged into are one.
    """
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
