"""A machine's ``qmp.ndjson``, read onto the clock of the test's history.

The log's clock starts when the QMP client is made, the history's when the test begins. Both are monotonic.
The difference is the median of what messages show that are in both. An entry of the history is written when
a command is requested and when its answer has arrived in the harness; the log has the moments at which the
messages were sent and received.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from harness.history import Entry, Kind, as_mapping


@dataclass(frozen=True)
class Exchange:
    """A command and its answer, if there is one. Times are the log's, in seconds."""

    command: str
    arguments: Mapping[str, Any]
    sent_s: float
    answered_s: float | None
    answer: Mapping[str, Any] | None


@dataclass(frozen=True)
class LoggedEvent:
    """An event. ``t_s`` is when it arrived, by the log's clock, in seconds."""

    name: str
    t_s: float
    message: Mapping[str, Any]


@dataclass(frozen=True)
class QmpLog:
    """The exchanges and events of one machine, in the order in which they began."""

    exchanges: tuple[Exchange, ...]
    events: tuple[LoggedEvent, ...]

    def offset_s(self, entries: Sequence[Entry]) -> float | None:
        """What to add to a time of ``qmp.ndjson`` to get one of the history.

        ``None`` where nothing is in both.

        :param entries: the machine's entries.
        """
        sent = [e for e in entries if e.kind is Kind.INVOKE and e.f.startswith("qmp:")]
        differences = [
            invoke.t_s - exchange.sent_s
            for invoke, exchange in zip(sent, self.commands, strict=False)
            if invoke.f == f"qmp:{exchange.command}"
        ]
        arrived = {_identity(event.message): event.t_s for event in self.events}
        for entry in entries:
            at = arrived.get(_identity_in_history(entry))
            if at is not None:
                differences.append(entry.t_s - at)
        return median(differences) if differences else None

    @property
    def commands(self) -> tuple[Exchange, ...]:
        """The exchanges in ``qmp.ndjson`` without the negotiation, which the history does not have."""
        return tuple(e for e in self.exchanges if e.command != "qmp_capabilities")

    def events_beside(self, entries: Sequence[Entry]) -> list[LoggedEvent]:
        """The events in ``qmp.ndjson`` that ``entries`` lack."""
        known = {_identity_in_history(entry) for entry in entries}
        return [event for event in self.events if _identity(event.message) not in known]


def read(path: Path) -> QmpLog | None:
    """Read ``qmp.ndjson``; ``None`` where there is no file.

    A line that is no message is ignored: it was cut off.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    exchanges: list[Exchange] = []
    events: list[LoggedEvent] = []
    waiting: dict[Any, int] = {}
    for t_s, direction, message in _messages(lines):
        if direction == "out" and "execute" in message:
            waiting[message.get("id")] = len(exchanges)
            arguments = as_mapping(message.get("arguments"))
            exchanges.append(Exchange(str(message["execute"]), arguments, t_s, None, None))
        elif "event" in message:
            events.append(LoggedEvent(str(message["event"]), t_s, message))
        elif "return" in message or "error" in message:
            index = waiting.pop(message.get("id"), None)
            if index is not None:
                sent = exchanges[index]
                exchanges[index] = Exchange(sent.command, sent.arguments, sent.sent_s, t_s, message)
    return QmpLog(tuple(exchanges), tuple(events))


def _messages(lines: Sequence[str]) -> Iterator[tuple[float, str, Mapping[str, Any]]]:
    for line in lines:
        try:
            entry = json.loads(line)
            yield float(entry["t_s"]), str(entry["dir"]), as_mapping(entry["message"])
        except (ValueError, TypeError, KeyError):
            continue


def _identity(message: Mapping[str, Any]) -> tuple[str, str]:
    """What identifies an event in ``qmp.ndjson``: its name, QEMU's time, its data."""
    what = {"data": message.get("data", {}), "timestamp": message.get("timestamp", {})}
    return str(message["event"]), json.dumps(what, sort_keys=True)


def _identity_in_history(entry: Entry) -> tuple[str, str]:
    return entry.f.removeprefix("event:"), json.dumps(entry.value, sort_keys=True)
