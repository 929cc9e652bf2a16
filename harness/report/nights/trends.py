"""Times and slopes that changed: which, since when, by how much, and what changed with them.

A series is what one test measured in one place, in runs with the same options. All series of a report share
its level (:mod:`harness.report.change_points`), so that nights that did not change give no false alarm. Steps
of many tests in the same night are one report: a host that became slower is not a fault of each test.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from harness.report.change_points import Change, Shape, as_step_at, changes, shortest
from harness.report.nights import changes as nights
from harness.report.nights.changes import Difference
from harness.report.nights.history import Entry, History, Place
from harness.report.nights.load import Load, compared
from harness.report.nights.runs import conditions, time
from harness.report.permutation import middle
from harness.report.summary import Outcome

#: So many of the last nights are looked at.
WINDOW = 60
#: The name of a test's duration, beside the names of its measurements.
SECONDS = "seconds"
#: The names of leak slopes begin with it.
_LEAK = "leak."
#: Noise may place a step beside its night, or make it look like a drift. So many tests in one night decide.
_MANY = 3


@dataclass(frozen=True)
class Series:
    """What one test measured, night by night."""

    place: Place
    name: str
    unit: str
    entries: tuple[Entry, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Moved:
    """A change of one series."""

    series: Series
    change: Change

    @property
    def first(self) -> Entry:
        """The first result that belongs to a trend's change."""
        return self.series.entries[self.change.index]

    @property
    def is_step(self) -> bool:
        """Whether the trend is a step, not a drift."""
        return self.change.shape is Shape.STEP

    @property
    def size(self) -> float:
        """How much the trend's figures changed, relative to before; infinite if that was nothing."""
        factor = self.change.factor
        return abs(math.log(factor)) if factor is not None else math.inf

    @property
    def up(self) -> bool:
        """Whether the figures of a trend became larger."""
        return self.change.after > self.change.before


@dataclass(frozen=True)
class Trend:
    """A step of one series or more in one night, or a drift of one.

    :ivar moved: the series; the one that changed most comes first.
    :ivar of: the number of series of the same name and QEMU that were looked at.
    :ivar changed: what changed between the night before a step and the step's first.
    :ivar load: of the host, before and since.
    """

    name: str
    unit: str
    qemu: str
    shape: Shape
    up: bool
    first: Entry
    moved: tuple[Moved, ...]
    of: int
    changed: tuple[Difference, ...]
    load: Load | None

    @property
    def factor(self) -> float | None:
        """The median of all series of a trend: how many times the figure before is the one after."""
        factors = [factor for one in self.moved if (factor := one.change.factor) is not None]
        return middle(factors) if factors else None


@dataclass(frozen=True)
class Trends:
    """:ivar found: the newest first. :ivar series: how many were looked at. :ivar nights: of the longest.
    :ivar needed: the number of nights with which the report can show a change in the middle.
    """

    found: tuple[Trend, ...]
    series: int
    nights: int
    needed: int


def trends(history: History, since: datetime | None = None) -> Trends:
    """The changes of all series that the newest night continues.

    :param since: leave out what began before.
    """
    looked_at = list(all_series(history))
    moved = [
        Moved(series, change) for series in looked_at for change in changes(series.values, len(looked_at))
    ]
    counted: dict[tuple[str, str], int] = defaultdict(int)
    for series in looked_at:
        counted[series.name, series.place.qemu] += 1
    found = [
        trend for trend in _grouped(moved, counted) if since is None or time(trend.first.run.begun) >= since
    ]
    found.sort(key=lambda trend: (trend.first.run.begun, len(trend.moved)), reverse=True)
    longest = max((len(series.values) for series in looked_at), default=0)
    return Trends(tuple(found), len(looked_at), longest, shortest(len(looked_at)))


def all_series(history: History) -> Iterator[Series]:
    """The series of all tests that ran in the newest night, each without those of other options."""
    for place, entries in history.entries.items():
        if history.is_recent(entries[-1].run):
            options = conditions(entries[-1].run)
            same = [entry for entry in entries if conditions(entry.run) == options][-WINDOW:]
            yield from _series(place, same)


def _series(place: Place, entries: Sequence[Entry]) -> Iterator[Series]:
    passed = [entry for entry in entries if entry.outcome is Outcome.PASSED]
    if passed:
        yield Series(place, SECONDS, "s", tuple(passed), tuple(entry.result.seconds for entry in passed))
    names: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        for name in entry.measured:
            # A test that failed has waited, or was cut short. A leak that made it fail has its slope.
            if not entry.failed or name.startswith(_LEAK):
                names[name].append(entry)
    for name, some in names.items():
        values = tuple(entry.measured[name].value for entry in some)
        yield Series(place, name, some[-1].measured[name].unit, tuple(some), values)


def _grouped(moved: Sequence[Moved], counted: Mapping[tuple[str, str], int]) -> Iterator[Trend]:
    alike: dict[tuple[str, str, bool], list[Moved]] = defaultdict(list)
    for one in moved:
        alike[one.series.name, one.series.place.qemu, one.up].append(one)
    for (name, qemu, _), some in alike.items():
        for group in _by_night(some):
            yield _trend(group, counted[name, qemu])


def _by_night(moved: Sequence[Moved]) -> Iterator[list[Moved]]:
    """Trends that are steps of the same night, together.

    One beside it, or a drift, joins them if it may be the same step.
    """
    left = list(moved)
    while left:
        steps = Counter(one.first.night for one in left if one.is_step).most_common(1)
        if not steps or steps[0][1] < _MANY:
            break
        night = steps[0][0]
        found = [_as_step_of(one, night, steps[0][1]) for one in left]
        group = [one for one in found if one is not None]
        yield group
        joined = {(one.series.place, one.change.start) for one in group}
        left = [one for one in left if (one.series.place, one.change.start) not in joined]
    nights_of: dict[str, list[Moved]] = defaultdict(list)
    for one in left:
        if one.is_step:
            nights_of[one.first.night].append(one)
        else:
            yield [one]
    yield from nights_of.values()


def _as_step_of(moved: Moved, night: str, others: int) -> Moved | None:
    """A trend's change as a step in ``night``, in which so many others have one, if it may be one."""
    if moved.is_step and moved.first.night == night:
        return moved
    nights_ = [entry.night for entry in moved.series.entries]
    if night not in nights_:
        return None
    found = as_step_at(moved.series.values, moved.change, nights_.index(night), others)
    return replace(moved, change=found) if found is not None else None


def _trend(group: Sequence[Moved], of: int) -> Trend:
    first = group[0]
    index = first.change.index
    entries = first.series.entries
    ordered = sorted(group, key=lambda one: one.size, reverse=True)
    return Trend(
        first.series.name,
        first.series.unit,
        first.series.place.qemu,
        first.change.shape,
        first.up,
        first.first,
        tuple(ordered),
        of,
        nights.between(entries[index - 1], entries[index]) if first.is_step else (),
        compared(entries[first.change.start : index], entries[index : first.change.end]),
    )
