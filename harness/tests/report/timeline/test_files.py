"""The image and the trace: both are read again as what they have to be."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from harness.report.timeline import files
from harness.report.timeline.model import Lane, LaneKind, Outcome, Span, Timeline
from harness.report.timeline.reading import timeline_of
from harness.report.timeline.svg import svg
from harness.report.timeline.trace_events import trace_events
from harness.tests.report.timeline import records
from harness.tests.report.timeline.trace_format import PHASES, problems, read

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def timeline(tmp_path: Path) -> Timeline:
    return timeline_of(records.write(tmp_path))


def test_the_trace_has_the_structure_that_its_format_asks_for(timeline: Timeline) -> None:
    document = read(trace_events(timeline))
    assert problems(document) == []
    phases = {event["ph"] for event in document["traceEvents"]}
    assert phases == PHASES
    processes = {e["args"]["name"] for e in document["traceEvents"] if e["name"] == "process_name"}
    assert processes == {"host", "source"}


def test_an_arrow_of_the_trace_goes_from_device_del_to_its_events(timeline: Timeline) -> None:
    bound = [event for event in read(trace_events(timeline))["traceEvents"] if "bind_id" in event]
    assert [(event["ph"], event["name"]) for event in bound] == [
        ("b", "device_del share0"),
        ("n", "DEVICE_DELETED /machine/peripheral/share0/virtio-backend"),
        ("n", "DEVICE_DELETED share0"),
    ]
    assert len({event["bind_id"] for event in bound}) == 1


def first(events: list[dict[str, Any]], **wanted: object) -> dict[str, Any]:
    """The first event with these fields."""
    return next(event for event in events if wanted.items() <= event.items())


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda events: events.remove(first(events, ph="e")), "no end"),
        (lambda events: events.reverse(), "earlier"),
        (lambda events: events[-1].update(pid=99), "process has no name"),
        (lambda events: first(events, ph="b").update(tid=99), "thread has no name"),
        (lambda events: first(events, flow_out=True).pop("bind_id"), "flow"),
        (lambda events: first(events, ph="b").update(ph="B"), "the phase 'B'"),
        (lambda events: first(events, ph="b").update(ts="0"), "ts is '0'"),
        (lambda events: first(events, ph="n").update(ts=float("nan")), "ts is nan"),
        (lambda events: first(events, ph="n").pop("tid"), "tid is None"),
        (lambda events: first(events, ph="e").pop("cat"), "cat is None"),
        (lambda events: first(events, ph="e").update(id2={"local": "9.9"}), "outside of the track"),
        (lambda events: first(events, ph="e").update(id2={"global": "1.0"}), "id2 is {'global'"),
        (lambda events: first(events, ph="e").update(id="1.0"), "id is '1.0'"),
        (lambda events: first(events, ph="e").update(bind_id="0x1", flow_in=True), "at the phase e"),
        (lambda events: first(events, name="thread_sort_index").update(args={}), "names something"),
        (lambda events: first(events, ph="e").update(name="x"), "ends before"),
        (lambda events: first(events, ph="C").update(args={"value": "3"}), "not a number"),
        (lambda events: first(events, ph="M").update(args={}), "names something"),
        (lambda events: events.append(events.pop(0)), "after the first event"),
    ],
)
def test_a_broken_trace_is_noticed(timeline: Timeline, change: Any, problem: str) -> None:
    document = read(trace_events(timeline))
    change(document["traceEvents"])
    assert any(problem in line for line in problems(document))


def test_what_is_no_json_is_noticed() -> None:
    with pytest.raises(ValueError, match="NaN is no JSON"):
        read('{"traceEvents": [{"ts": NaN}]}')


def test_overlapping_spans_are_on_tracks_of_their_own() -> None:
    spans = (Span(1, "a", 0.0, 2.0, Outcome.OK), Span(2, "b", 1.0, 3.0, Outcome.OK))
    document = read(trace_events(Timeline("t", "", "", 3.0, (Lane(LaneKind.QMP, "m", spans),))))
    assert problems(document) == []
    tracks = {event["name"]: event["id2"]["local"] for event in document["traceEvents"] if event["ph"] == "b"}
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
    assert problems(read(trace.read_text())) == []
