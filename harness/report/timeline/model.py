"""What a timeline consists of. All times are seconds since the test's history was opened.

A *span* has a beginning and an end, an *instant* is a point in time. ``key`` identifies a span or an instant
within its timeline: it is the ``seq`` of its history entry, or negative where the history has none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    """How a span ended; the first three are those of a history's operation."""

    OK = "ok"
    FAIL = "fail"
    INFO = "info"
    #: The record has no end.
    OPEN = "open"


class LaneKind(StrEnum):
    """What a lane shows."""

    HOST = "host"
    QMP = "QMP"
    EVENTS = "events"
    GUEST = "guest"
    HOLDS = "holds"


@dataclass(frozen=True)
class Span:
    """Something that took time.

    :ivar name: a short label. :ivar detail: further lines, such as arguments and answer.
    """

    key: int
    name: str
    begin_s: float
    end_s: float
    outcome: Outcome
    detail: str = ""


@dataclass(frozen=True)
class Instant:
    """Something that happened at one moment.

    :ivar event: whether it is an event of QEMU; otherwise it is a note of the harness.
    """

    key: int
    name: str
    t_s: float
    detail: str = ""
    event: bool = False


@dataclass(frozen=True)
class Lane:
    """A row of the timeline. Its spans may overlap, and are in the order of their beginnings.

    :ivar machine: the name of the machine; the empty string for a lane of the host.
    """

    kind: LaneKind
    machine: str = ""
    spans: tuple[Span, ...] = ()
    instants: tuple[Instant, ...] = ()

    @property
    def title(self) -> str:
        """What a lane of the timeline is called: ``source: QMP``."""
        return f"{self.machine}: {self.kind}" if self.machine else str(self.kind)

    def rows(self) -> list[list[Span]]:
        """The spans of a lane as rows in which none overlaps another."""
        rows: list[list[Span]] = []
        for span in self.spans:
            free = (row for row in rows if row[-1].end_s <= span.begin_s)
            row = next(free, None)
            if row is None:
                rows.append([span])
            else:
                row.append(span)
        return rows


@dataclass(frozen=True)
class Arrow:
    """A cause and its effect: the keys of a ``device_del`` and of an event about the device."""

    cause: int
    effect: int


@dataclass(frozen=True)
class Counter:
    """A number that was observed several times.

    :ivar machine: the machine that it is about. :ivar samples: times in seconds, and values.
    """

    machine: str
    name: str
    samples: tuple[tuple[float, float], ...]

    @property
    def title(self) -> str:
        """What a counter of the timeline is called: ``source: fds``."""
        return f"{self.machine}: {self.name}"


@dataclass(frozen=True)
class Timeline:
    """The timeline of one test.

    :ivar test: pytest's node id, or the folder's name where the record has none.
    :ivar about: QEMU, kernel, machine type, in one line. :ivar begun: ISO 8601.
    :ivar failed: when the test failed, and why.
    :ivar remarks: what of the record could not be read.
    """

    test: str
    about: str
    begun: str
    duration_s: float
    lanes: tuple[Lane, ...]
    counters: tuple[Counter, ...] = ()
    arrows: tuple[Arrow, ...] = ()
    failed: Instant | None = None
    remarks: tuple[str, ...] = ()

    def items(self) -> Iterator[tuple[Lane, Span | Instant]]:
        """Every span and instant of the timeline, with its lane."""
        for lane in self.lanes:
            for span in lane.spans:
                yield lane, span
            for instant in lane.instants:
                yield lane, instant
