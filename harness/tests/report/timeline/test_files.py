"""The image and the trace: both are read again as what they have to be."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from harness.report.timeline import files
from harness.report.timeline.model import Lane, LaneKind, Outcome, Span, Timeline
from harness.report.timeline.reading import timeline_of
from harness.report.timeline.svg import svg
from harness.report.timeline.trace_events import trace_events
from harness.tests.report.timeline import records

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def timeline(tmp_path: Path) -> Timeline:
    return timeline_of(records.write(tmp_path))


def problems(document: dict[str, Any]) -> list[str]:
    """What of the Trace Event Format a document breaks, as far as a viewer needs it."""
    found = []
    open_spans: dict[tuple[str, str, int], list[str]] = defaultdict(list)
    flows: dict[str, list[str]] = defaultdict(list)
    named = {event["pid"] for event in document["traceEvents"] if event["name"] == "process_name"}
    before = 0.0
    for event in document["traceEvents"]:
        phase, name = event["ph"], event["name"]
        if event["pid"] not in named:
            found.append(f"{name}: its process has no name")
        if phase == "M":
            continue
        if event["ts"] < before:
            found.append(f"{name}: earlier than the event before it")
        before = event["ts"]
        if phase in "ben":
            track = open_spans[event["cat"], event["id"], event["pid"]]
            if phase == "b":
                track.append(name)
            elif not track:
                found.append(f"{name}: outside of the track's span")
            elif phase == "e" and track.pop() != name:
                found.append(f"{name}: ends before a span that began later")
            if "bind_id" in event:
                flows[event["bind_id"]].append("out" if event.get("flow_out") else "in")
        elif phase == "C" and not all(isinstance(value, float) for value in event["args"].values()):
            found.append(f"{name}: not a number")
    found += [f"{names}: no end" for names in open_spans.values() if names]
    found += [f"flow {flow}: {ends}" for flow, ends in flows.items() if ends[0] != "out" or len(ends) < 2]
    return found


def test_the_trace_has_the_structure_that_its_format_asks_for(timeline: Timeline) -> None:
    document = json.loads(trace_events(timeline))
    assert problems(document) == []
    phases = {event["ph"] for event in document["traceEvents"]}
    assert phases == {"M", "b", "e", "n", "C"}
    processes = {e["args"]["name"] for e in document["traceEvents"] if e["name"] == "process_name"}
    assert processes == {"host", "source"}


def test_an_arrow_of_the_trace_goes_from_device_del_to_its_events(timeline: Timeline) -> None:
    bound = [event for event in json.loads(trace_events(timeline))["traceEvents"] if "bind_id" in event]
    assert [(event["ph"], event["name"]) for event in bound] == [
        ("b", "device_del share0"),
        ("n", "DEVICE_DELETED /machine/peripheral/share0/virtio-backend"),
        ("n", "DEVICE_DELETED share0"),
    ]
    assert len({event["bind_id"] for event in bound}) == 1


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda events: events.remove(next(e for e in events if e["ph"] == "e")), "no end"),
        (lambda events: events.reverse(), "earlier"),
        (lambda events: events[-1].update(pid=99), "no name"),
        (lambda events: next(e for e in events if "flow_out" in e).pop("bind_id"), "flow"),
    ],
)
def test_a_broken_trace_is_noticed(timeline: Timeline, change: Any, problem: str) -> None:
    document = json.loads(trace_events(timeline))
    change(document["traceEvents"])
    assert any(problem in line for line in problems(document))


def test_overlapping_spans_are_on_tracks_of_their_own() -> None:
    spans = (Span(1, "a", 0.0, 2.0, Outcome.OK), Span(2, "b", 1.0, 3.0, Outcome.OK))
    document = json.loads(trace_events(Timeline("t", "", "", 3.0, (Lane(LaneKind.QMP, "m", spans),))))
    assert problems(document) == []
    tracks = {event["name"]: event["id"] for event in document["traceEvents"] if event["ph"] == "b"}
    assert tracks["a"] != tracks["b"]


def test_the_image_shows_each_lane_counter_arrow_and_the_failure(timeline: Timeline) -> None:
    root = ET.fromstring(svg(timeline))
    texts = ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]
    for lane in timeline.lanes:
        assert lane.title in texts
    assert "source: fds (23 to 24)" in texts
    assert any(text.startswith("failed at 1.300 s: </script><b>&amp; it\ufffd failed") for text in texts)
    titles = ["".join(title.itertext()) for title in root.iter(f"{SVG}title")]
    assert "device_del share0 → DEVICE_DELETED share0: 0.150 s" in titles
    classes = [element.get("class", "") for element in root.iter()]
    assert classes.count("arrow") == len(timeline.arrows) == 2


def test_every_span_is_inside_the_image_at_its_time(timeline: Timeline) -> None:
    root = ET.fromstring(svg(timeline))
    places = {}
    for group in root.iter(f"{SVG}g"):
        if group.get("class", "").startswith("span"):
            title, box = group.find(f"{SVG}title"), group.find(f"{SVG}rect")
            assert title is not None
            assert box is not None
            x, width = (float(box.get(name, "").rstrip("%")) for name in ("x", "width"))
            assert 0 <= x <= x + width <= 100
            places["".join(title.itertext()).partition("\n")[0]] = x
    assert places["device_add share0"] < places["query-migrate"] < places["sleep 9"]


def test_very_many_short_spans_are_drawn_as_few() -> None:
    spans = tuple(Span(n, "query-status", n / 100, n / 100 + 0.001, Outcome.OK) for n in range(20_000))
    broken = Span(20_001, "device_del", 200.0, 200.1, Outcome.FAIL)
    text = svg(Timeline("t", "", "", 201.0, (Lane(LaneKind.QMP, "m", (*spans, broken)),)))
    root = ET.fromstring(text)
    drawn = [group.get("class") for group in root.iter(f"{SVG}g") if "span" in group.get("class", "")]
    assert len(drawn) < 3000
    assert drawn[-1] == "span fail"
    assert "× query-status" in text


def test_an_empty_record_gives_an_image_and_a_trace(tmp_path: Path) -> None:
    empty = timeline_of(records.Writer().write(tmp_path))
    image, trace = files.write(empty, tmp_path / "new" / "folder")
    ET.fromstring(image.read_text())
    assert problems(json.loads(trace.read_text())) == []
