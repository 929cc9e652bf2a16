"""Writes a timeline as trace-event JSON, which https://ui.perfetto.dev opens.

Each machine is a process, and so is the host. Spans are *async* events (``b`` and ``e``), because spans of a
lane may overlap, which the format forbids for other ones ("Trace Event Format", Async Events; Perfetto,
"Visualizing external trace formats"). The row of a lane is one async track: its events have one ``cat`` and
``id2``, and the first of them is a span with the lane's title around all others, by which Perfetto names the
track (``src/trace_processor/importers/common/track_compressor.cc``, ``InternLegacyAsyncTrack``). The id is
``local``, so the track is of its process; Perfetto shows those with a global ``id`` in a group of their own,
"Global Legacy Events" (``ui/src/plugins/dev.perfetto.TraceProcessorTrack/slice_tracks.ts``).

An arrow is a flow with ``bind_id``, ``flow_out`` and ``flow_in``. The older flow events (``s`` and ``f``)
join slices of threads only, and Perfetto drops them at async events
(``src/trace_processor/importers/json/json_trace_parser.cc``, ``MaybeAddFlow``). Catapult's viewer, which was
``chrome://tracing``, opens the file as well, but reads flows of complete events (``X``) alone
(``tracing/tracing/extras/importer/trace_event_importer.html``), so it draws no arrows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from harness.report.timeline.model import Instant, Lane, Span, Timeline

_HOST = "host"


def trace_events(timeline: Timeline) -> str:
    """The trace-event JSON document. Times are microseconds since the test's history was opened."""
    about = {"test": timeline.test, "about": timeline.about, "begun": timeline.begun}
    document = {
        "traceEvents": list(_Events(timeline).all()),
        "displayTimeUnit": "ms",
        "otherData": {key: value for key, value in about.items() if value},
    }
    return json.dumps(document, ensure_ascii=False) + "\n"


class _Events:
    """The events of one timeline."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        machines = [lane.machine for lane in timeline.lanes] + [one.machine for one in timeline.counters]
        self._pids = {name: pid for pid, name in enumerate(dict.fromkeys(["", *machines]), start=1)}
        flows: dict[int, int] = {}
        for arrow in timeline.arrows:
            flows.setdefault(arrow.cause, len(flows) + 1)
        #: The flow of each cause and of each effect, by key.
        self._out = flows
        self._in = {arrow.effect: flows[arrow.cause] for arrow in timeline.arrows}

    def all(self) -> Iterator[dict[str, Any]]:
        """All trace events: names first, then in the order of time."""
        events: list[dict[str, Any]] = []
        for number, lane in enumerate(self._timeline.lanes, start=1):
            yield from self._names(lane, number)
            events += self._lane(lane, number)
        for counter in self._timeline.counters:
            pid = self._pids[counter.machine]
            events += (
                {"ph": "C", "name": counter.name, "pid": pid, "ts": _us(t_s), "args": {"value": number}}
                for t_s, number in counter.samples
            )
        # A stable sort: at one moment a track's outer span begins before, and ends after, what it contains.
        yield from sorted(events, key=lambda event: event["ts"])

    def _names(self, lane: Lane, number: int) -> Iterator[dict[str, Any]]:
        pid = self._pids[lane.machine]
        place = {"ph": "M", "pid": pid, "tid": number}
        yield {**place, "name": "process_name", "args": {"name": lane.machine or _HOST}}
        yield {**place, "name": "thread_name", "args": {"name": lane.title}}
        # Without these, a viewer sorts by name.
        yield {**place, "name": "process_sort_index", "args": {"sort_index": pid}}
        yield {**place, "name": "thread_sort_index", "args": {"sort_index": number}}

    def _lane(self, lane: Lane, number: int) -> Iterator[dict[str, Any]]:
        pid = self._pids[lane.machine]
        rows: list[list[Span]] = lane.rows()
        tracks: list[list[Span] | list[Instant]] = [*rows, *([list(lane.instants)] if lane.instants else [])]
        for row, items in enumerate(tracks):
            place = {"cat": lane.kind.value, "id2": {"local": f"{number}.{row}"}, "pid": pid, "tid": number}
            is_instants = row == len(rows)
            title = f"{lane.title}{' (moments)' if is_instants else ''}"
            yield {**place, "ph": "b", "name": title, "ts": 0.0}
            for item in items:
                yield from (
                    self._instant(place, item) if isinstance(item, Instant) else self._span(place, item)
                )
            yield {**place, "ph": "e", "name": title, "ts": _us(self._timeline.duration_s)}

    def _span(self, place: dict[str, Any], span: Span) -> Iterator[dict[str, Any]]:
        args = {"outcome": str(span.outcome), **({"detail": span.detail} if span.detail else {})}
        begin = {**place, "ph": "b", "name": span.name, "ts": _us(span.begin_s), "args": args}
        if span.key in self._out:
            begin |= {"bind_id": _flow(self._out[span.key]), "flow_out": True}
        yield begin
        yield {**place, "ph": "e", "name": span.name, "ts": _us(span.end_s)}

    def _instant(self, place: dict[str, Any], instant: Instant) -> Iterator[dict[str, Any]]:
        event = {**place, "ph": "n", "name": instant.name, "ts": _us(instant.t_s)}
        if instant.detail:
            event["args"] = {"detail": instant.detail}
        if instant.key in self._in:
            event |= {"bind_id": _flow(self._in[instant.key]), "flow_in": True}
        yield event


def _us(seconds: float) -> float:
    return round(seconds * 1e6, 1)


def _flow(number: int) -> str:
    """The id of a flow of trace events; Perfetto reads it as a hexadecimal number."""
    return f"0x{number:x}"
