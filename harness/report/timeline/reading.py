"""Makes the timeline of a test from its folder."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.artifacts import CELL, HISTORY, MachineArtifacts
from harness.history import Entry, Kind, as_mapping, read
from harness.report.timeline import counters, holds, qmp_log
from harness.report.timeline.arrows import arrows
from harness.report.timeline.model import Instant, Lane, LaneKind, Outcome, Span, Timeline

#: Characters of a label, and of one line of a detail.
_LABEL, _DETAIL = 80, 600
#: Arguments of a QMP command that say what it is about, in the order of their use in a label.
_ABOUT = ("id", "path", "name", "job-id", "tag", "command-line", "uri", "fdname")
_GUEST = "guest:"


def timeline_of(folder: Path) -> Timeline:
    """The timeline of the test that is recorded in ``folder``.

    :raises UsageError: when there is no history, or it cannot be read.
    """
    entries = read(folder / HISTORY)
    end_s = max((entry.t_s for entry in entries), default=0.0)
    ends = {entry.op: entry for entry in entries if entry.op is not None}
    lanes = _Lanes(entries, ends, end_s)
    for entry in entries:
        lanes.add(entry)
    remarks = [remark for launch in _launches(entries) for remark in lanes.add_log(folder, launch)]
    test = next((as_mapping(e.value).get("id") for e in entries if e.f == "test"), None)
    opened = next((as_mapping(e.value).get("wall") for e in entries if e.f == "opened"), None)
    return Timeline(
        test=str(test or folder.name),
        about=_about(folder / CELL),
        begun=str(opened or ""),
        duration_s=max(end_s, lanes.end_s),
        lanes=lanes.made(holds.spans(entries, end_s)),
        counters=tuple(counters.counters(entries, ends)),
        arrows=tuple(arrows(entries, ends)),
        failed=_failure(entries),
        remarks=tuple(remarks),
    )


@dataclass
class _Lanes:
    """The lanes while they are filled."""

    entries: Sequence[Entry]
    ends: Mapping[int, Entry]
    end_s: float

    def __post_init__(self) -> None:
        self._spans: dict[tuple[LaneKind, str], list[Span]] = defaultdict(list)
        self._instants: dict[tuple[LaneKind, str], list[Instant]] = defaultdict(list)
        #: Keys of what only a log has.
        self._extra = 0

    def add(self, entry: Entry) -> None:
        """Read a history's entry into its lane, as a span or instant.

        The end of an operation is part of its span.
        """
        if entry.op is not None or entry.f.startswith("hold:"):
            return
        place = _place(entry)
        if entry.kind is Kind.INVOKE:
            self._spans[place].append(_span(entry, self.ends.get(entry.seq), self.end_s))
        elif entry.f == "explore:step":
            self._spans[place].append(self._step(entry))
        elif entry.f == "machine:launch":
            self._spans[place].append(self._life(entry))
        else:
            self._instants[place].append(_instant(entry))

    def _step(self, entry: Entry) -> Span:
        """Read the span of a program's step into its lane: it lasts until the next one."""
        later = (e for e in self.entries[entry.seq + 1 :] if e.f in ("explore:step", "test:failed", "closed"))
        end = next(later, None)
        label = str(as_mapping(entry.value).get("step", "step"))
        failed = end is not None and end.f == "test:failed"
        outcome = Outcome.FAIL if failed else Outcome.OK if end else Outcome.OPEN
        return Span(entry.seq, label, entry.t_s, end.t_s if end else self.end_s, outcome)

    def _life(self, launch: Entry) -> Span:
        """Read the span of a QEMU process's life into its lane."""
        ends = (e for e in self.entries[launch.seq + 1 :] if e.actor == launch.actor and e.f in _LIFE_ENDS)
        end = next(ends, None)
        code = as_mapping(end.value).get("returncode") if end else None
        killed = isinstance(code, int) and code < 0
        outcome = Outcome.OPEN if end is None else Outcome.FAIL if killed else Outcome.OK
        value = as_mapping(launch.value)
        name = f"QEMU, process {value.get('pid', '?')}"
        end_s = end.t_s if end else self.end_s
        ended = "" if end is None else f"\nended: {_text(end.value)}"
        return Span(launch.seq, name, launch.t_s, end_s, outcome, str(value.get("binary", "")) + ended)

    def add_log(self, folder: Path, launch: Entry) -> Iterator[str]:
        """Read what a machine's ``qmp.ndjson`` has and the history lacks into the lanes; yields remarks."""
        where = as_mapping(launch.value).get("artifacts")
        path = MachineArtifacts(folder / str(where)).qmp
        log = qmp_log.read(path) if isinstance(where, str) else None
        if log is None:
            yield f"{launch.actor}: there is no {path.name}"
            return
        own = [entry for entry in self.entries if entry.actor == launch.actor and entry.seq > launch.seq]
        offset_s = log.offset_s(own)
        if offset_s is None:
            if log.exchanges:
                yield f"{launch.actor}: no message of {path.name} is in the history, so its times are unknown"
            return
        self._add_exchanges(launch.actor, log, own, offset_s)
        for event in log.events_beside(own):
            self._extra -= 1
            detail = f"only in {path.name}\n{_text(event.message)}"
            instant = Instant(self._extra, event.name, event.t_s + offset_s, detail, event=True)
            self._instants[LaneKind.EVENTS, launch.actor].append(instant)
            self.end_s = max(self.end_s, instant.t_s)

    def _add_exchanges(
        self, machine: str, log: qmp_log.QmpLog, own: Sequence[Entry], offset_s: float
    ) -> None:
        spans = self._spans[LaneKind.QMP, machine]
        invoked = [e.seq for e in own if e.kind is Kind.INVOKE and e.f.startswith("qmp:")]
        known = dict(zip(invoked, log.commands, strict=False))
        for index, span in enumerate(spans):
            exchange = known.get(span.key)
            if exchange is not None and exchange.answered_s is not None:
                took_ms = (exchange.answered_s - exchange.sent_s) * 1000
                note = f"QEMU answered {took_ms:.1f} ms after the message was sent"
                spans[index] = replace(span, detail=f"{span.detail}\n{note}".strip())
        negotiation = [e for e in log.exchanges if e.command == "qmp_capabilities"]
        for exchange in (*negotiation, *log.commands[len(invoked) :]):
            self._extra -= 1
            spans.append(_exchange_span(self._extra, exchange, offset_s, self.end_s))
            self.end_s = max(self.end_s, spans[-1].end_s)

    def made(self, held: Iterable[Lane]) -> tuple[Lane, ...]:
        """The lanes that were read, in the order of their display: host, holds, then each machine's."""
        order = {actor: n for n, actor in enumerate(dict.fromkeys(_machine(e.actor) for e in self.entries))}
        kinds = list(LaneKind)
        places = sorted(
            {*self._spans, *self._instants}, key=lambda at: (order.get(at[1], 0), kinds.index(at[0]))
        )
        made = [
            Lane(
                kind,
                machine,
                tuple(sorted(self._spans[kind, machine], key=lambda span: (span.begin_s, -span.end_s))),
                tuple(sorted(self._instants[kind, machine], key=lambda instant: instant.t_s)),
            )
            for kind, machine in places
        ]
        hosts = [lane for lane in made if not lane.machine]
        return (*hosts, *held, *(lane for lane in made if lane.machine))


#: A machine that was discarded is followed by another one of its name.
_LIFE_ENDS = ("machine:exit", "machine:discarded")


def _machine(actor: str) -> str:
    return "" if actor == "host" else actor.removeprefix(_GUEST)


def _place(entry: Entry) -> tuple[LaneKind, str]:
    machine = _machine(entry.actor)
    if not machine:
        return LaneKind.HOST, ""
    if entry.actor.startswith(_GUEST):
        return LaneKind.GUEST, machine
    if entry.f.startswith("qmp:"):
        return LaneKind.QMP, machine
    # Other operations on a machine are the harness's, and last as long as several QMP commands.
    return (LaneKind.HOST, "") if entry.kind is Kind.INVOKE else (LaneKind.EVENTS, machine)


def _span(invoke: Entry, end: Entry | None, end_s: float) -> Span:
    outcome = Outcome.OPEN if end is None else Outcome(end.kind.value)
    detail = [_text(invoke.value)] if invoke.value else []
    if end is None:
        detail.append("no end in the record")
    elif end.value not in (None, {}):
        detail.append(f"{outcome}: {_text(end.value)}")
    until_s = end_s if end is None else end.t_s
    return Span(invoke.seq, _label(invoke), invoke.t_s, until_s, outcome, "\n".join(detail))


def _exchange_span(key: int, exchange: qmp_log.Exchange, offset_s: float, end_s: float) -> Span:
    begin_s = exchange.sent_s + offset_s
    answered = exchange.answered_s is not None and exchange.answer is not None
    refused = answered and "error" in as_mapping(exchange.answer)
    outcome = Outcome.FAIL if refused else Outcome.OK if answered else Outcome.OPEN
    until_s = max(begin_s, end_s) if exchange.answered_s is None else exchange.answered_s + offset_s
    detail = "\n".join(_text(one) for one in (exchange.arguments, exchange.answer) if one)
    return Span(key, exchange.command, begin_s, until_s, outcome, detail)


def _label(invoke: Entry) -> str:
    value = as_mapping(invoke.value)
    through, _, name = invoke.f.partition(":")
    if isinstance(value.get("command"), str):  # A shell command in a guest.
        return _cut(" ".join(value["command"].split()), _LABEL)
    if through != "qmp":
        to = value.get("to")
        return f"{invoke.f} to {to}" if to else invoke.f
    about = next((str(value[one]) for one in _ABOUT if one in value), "")
    return _cut(f"{name} {about}".strip(), _LABEL)


def _instant(entry: Entry) -> Instant:
    name = entry.f.removeprefix("event:")
    about = as_mapping(as_mapping(entry.value).get("data"))
    more = about.get("device") or about.get("path") or about.get("status") or ""
    label = f"{name} {more}".strip()
    detail = "" if entry.value is None else _text(entry.value)
    return Instant(entry.seq, _cut(label, _LABEL), entry.t_s, detail, event=entry.kind is Kind.EVENT)


def _failure(entries: Iterable[Entry]) -> Instant | None:
    found = next((entry for entry in entries if entry.f == "test:failed"), None)
    if found is None:
        return None
    error = as_mapping(found.value).get("error", "")
    text = error if isinstance(error, str) else " ".join(str(line) for line in error)
    return Instant(found.seq, text or "the test failed", found.t_s)


def _launches(entries: Iterable[Entry]) -> list[Entry]:
    """Read the last launch of each machine: the files of one that was discarded are elsewhere."""
    return list({entry.actor: entry for entry in entries if entry.f == "machine:launch"}.values())


def _about(path: Path) -> str:
    """Read QEMU, kernel, machine type and accelerator as one line; empty where not recorded."""
    try:
        cell = json.loads(path.read_text(encoding="utf-8"))
        qemu, kernel = cell["qemu"], cell["kernel"]
        return (
            f"QEMU {qemu['name']} ({qemu['version']}), Linux {kernel['version']}, "
            f"{cell['machine']['name']}, {cell['accel']['name']}"
        )
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _text(value: Any) -> str:
    return _cut(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), _DETAIL)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
