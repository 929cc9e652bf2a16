"""What the Trace Event Format asks of a JSON document, as far as a viewer needs it.

The rules are those of "Trace Event Format" (the chapters JSON Object Format, Async Events, Counter Events,
Metadata Events and Flow Events), with what Perfetto adds: async events have a local ``id2``, which makes them
tracks of their process, and a flow joins begins and moments (``json_trace_parser.cc``, ``MaybeAddFlow``).
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NoReturn

#: The phases that the harness writes: metadata; begin, moments and end of an async event; counters.
PHASES = frozenset("MbenC")
_NAMES = ("process_name", "thread_name")
_PLACES = ("process_sort_index", "thread_sort_index")


def read(text: str) -> Any:
    """The document. ``NaN`` and ``Infinity``, which Python accepts, are no JSON.

    :raises ValueError: when it is no JSON.
    """

    def refuse(name: str) -> NoReturn:
        raise ValueError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def problems(document: dict[str, Any]) -> list[str]:
    """Each rule that a document breaks, with the event."""
    events = document["traceEvents"]
    broken = [f"{one.get('name')}: {what}" for one in events for what in _of_fields(one)]
    if broken:  # The other rules need the fields.
        return broken
    unit = [] if document.get("displayTimeUnit") in ("ms", "ns") else ["displayTimeUnit is not ms or ns"]
    return [*unit, *_of_names(events), *_of_order(events), *_of_pairs(events), *_of_flows(events)]


def _of_fields(event: dict[str, Any]) -> Iterator[str]:
    phase = event.get("ph")
    if phase not in PHASES:
        yield f"the phase {phase!r}"
        return
    if not isinstance(event.get("name"), str) or not event["name"]:
        yield "no name"
    numbers = ("pid",) if phase == "C" else ("pid", "tid")
    for field in numbers:
        if not isinstance(event.get(field), int):
            yield f"{field} is {event.get(field)!r}"
    if phase != "M" and not _is_number(event.get("ts")):
        yield f"ts is {event.get('ts')!r}"
    if phase in "ben":
        if not isinstance(event.get("cat"), str) or not event["cat"]:
            yield f"cat is {event.get('cat')!r}"
        local = event["id2"].get("local") if isinstance(event.get("id2"), dict) else None
        if not isinstance(local, str) or not local or "id" in event:
            yield f"id2 is {event.get('id2')!r}, id is {event.get('id')!r}"
    args = event.get("args", {})
    if phase == "M" and not _says_something(event.get("name"), args):
        yield "no metadata that names something"
    if phase == "C" and (not args or not all(map(_is_number, args.values()))):
        yield "not a number"


def _says_something(name: object, args: dict[str, Any]) -> bool:
    """Whether metadata names a process or a thread, or says where it is."""
    if name in _PLACES:
        return _is_number(args.get("sort_index"))
    return name in _NAMES and isinstance(args.get("name"), str) and bool(args["name"])


def _is_number(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return math.isfinite(value) and value >= 0


def _of_names(events: list[dict[str, Any]]) -> Iterator[str]:
    naming = [event for event in events if event["ph"] == "M"]
    named = {(event["name"], event["pid"], event["tid"]) for event in naming}
    processes = {pid for name, pid, _ in named if name == "process_name"}
    for event in events:
        if event["pid"] not in processes:
            yield f"{event['name']}: its process has no name"
        elif "tid" in event and ("thread_name", event["pid"], event["tid"]) not in named:
            yield f"{event['name']}: its thread has no name"


def _of_order(events: list[dict[str, Any]]) -> Iterator[str]:
    """Metadata first, then in the order of time."""
    before = -1.0
    for event in events:
        if event["ph"] == "M":
            if before >= 0:
                yield f"{event['name']}: after the first event"
        elif event["ts"] < before:
            yield f"{event['name']}: earlier than the event before it"
        else:
            before = event["ts"]


def _of_pairs(events: list[dict[str, Any]]) -> Iterator[str]:
    """Async events of a process with one ``cat`` and id are one track, on one thread; its spans nest."""
    tracks: dict[tuple[int, str, str], list[str]] = defaultdict(list)
    places: dict[tuple[int, str, str], int] = {}
    for event in events:
        if event["ph"] not in "ben":
            continue
        key, name = (event["pid"], event["cat"], event["id2"]["local"]), event["name"]
        if places.setdefault(key, event["tid"]) != event["tid"]:
            yield f"{name}: its track is of another thread"
        track = tracks[key]
        if event["ph"] == "b":
            track.append(name)
        elif not track:
            yield f"{name}: outside of the track's span"
        elif event["ph"] == "e" and track.pop() != name:
            yield f"{name}: ends before a span that began later"
    yield from (f"{names}: no end" for names in tracks.values() if names)


def _of_flows(events: list[dict[str, Any]]) -> Iterator[str]:
    """A flow goes out of a span once, and then into others; at the end of a span it would not be seen."""
    flows: dict[str, list[str]] = defaultdict(list)
    for event in events:
        if "bind_id" in event:
            flows[event["bind_id"]].append("out" if event.get("flow_out") else "in")
            if event["ph"] not in "bn":
                yield f"flow {event['bind_id']}: at the phase {event['ph']}"
    for flow, ends in flows.items():
        if not flow.startswith("0x") or ends[0] != "out" or set(ends[1:]) != {"in"}:
            yield f"flow {flow}: {ends}"
