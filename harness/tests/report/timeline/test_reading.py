from __future__ import annotations

from pathlib import Path

import pytest

from harness.artifacts import QMP_LOG
from harness.errors import UsageError
from harness.report.timeline.model import Instant, Lane, LaneKind, Outcome, Span, Timeline
from harness.report.timeline.reading import timeline_of
from harness.tests.report.timeline import records


@pytest.fixture
def timeline(tmp_path: Path) -> Timeline:
    return timeline_of(records.write(tmp_path))


def lane(timeline: Timeline, title: str) -> Lane:
    (found,) = (lane for lane in timeline.lanes if lane.title == title)
    return found


def span(timeline: Timeline, title: str, name: str) -> Span:
    (found,) = (span for span in lane(timeline, title).spans if span.name == name)
    return found


def test_there_is_a_lane_for_everything_that_acts(timeline: Timeline) -> None:
    titles = [lane.title for lane in timeline.lanes]
    assert titles == ["host", "holds", "source: QMP", "source: events", "source: guest"]
    assert timeline.test == "scenarios/test_x.py::test_it[7.2-pc]"
    assert timeline.about == "QEMU 7.2 (7.2.22), Linux 6.1.0, pc, tcg"
    assert timeline.remarks == ()


def test_a_command_is_a_span_with_its_answer(timeline: Timeline) -> None:
    found = span(timeline, "source: QMP", "query-migrate")
    assert (found.begin_s, found.end_s, found.outcome) == (0.73, 0.74, Outcome.OK)
    assert "mounted" in found.detail
    assert "QEMU answered 10.0 ms after" in found.detail
    refused, accepted = (one for one in lane(timeline, "source: QMP").spans if "device_del" in one.name)
    assert (refused.outcome, accepted.outcome) == (Outcome.FAIL, Outcome.OK)


def test_what_never_ended_is_open_until_the_end(timeline: Timeline) -> None:
    found = span(timeline, "source: guest", "sleep 9")
    assert (found.outcome, found.end_s) == (Outcome.OPEN, timeline.duration_s)


def test_overlapping_spans_get_rows_of_their_own(timeline: Timeline) -> None:
    rows = lane(timeline, "source: guest").rows()
    assert [[span.name for span in row] for row in rows] == [["guest:restore", "sleep 9"], ["mount -t 9p"]]


def test_a_hold_lasts_from_the_catch_to_the_release_of_its_share(timeline: Timeline) -> None:
    found = span(timeline, "holds", "preadv read-me")
    assert (found.begin_s, found.end_s, found.outcome) == (0.7, 1.0, Outcome.OK)


def test_a_killed_process_ends_in_failure(timeline: Timeline) -> None:
    assert span(timeline, "source: events", "QEMU, process 7").outcome is Outcome.FAIL


def test_each_event_of_a_device_has_an_arrow_from_the_device_del_that_was_accepted(
    timeline: Timeline,
) -> None:
    items = {item.key: item for _, item in timeline.items()}
    found = [(items[arrow.cause], items[arrow.effect]) for arrow in timeline.arrows]
    assert [cause.begin_s for cause, _ in found if isinstance(cause, Span)] == [0.8, 0.8]
    assert [effect.t_s for _, effect in found if isinstance(effect, Instant)] == [0.9, 0.95]


def test_counters_are_those_that_were_observed(timeline: Timeline) -> None:
    assert {counter.title: counter.samples for counter in timeline.counters} == {
        "source: in flight, share0": ((0.72, 1.0),),
        "source: blocked-reasons": ((0.74, 1.0),),
        "source: threads": ((1.1, 6.0), (1.2, 6.0)),
        "source: fds": ((1.1, 23.0), (1.2, 24.0)),
    }


def test_a_row_of_no_blockers_is_left_out(tmp_path: Path) -> None:
    writer = records.Writer()
    writer.add(0.0, "note", "source", "machine:launch", {"artifacts": "."})
    writer.command(0.1, 0.2, "query-migrate")
    assert timeline_of(writer.write(tmp_path)).counters == ()


def test_the_log_adds_what_the_history_lacks_at_the_right_time(timeline: Timeline) -> None:
    negotiation = span(timeline, "source: QMP", "qmp_capabilities")
    assert (round(negotiation.begin_s, 6), round(negotiation.end_s, 6)) == (0.13, 0.14)
    (late,) = (one for one in lane(timeline, "source: events").instants if one.name == "GUEST_PANICKED")
    assert round(late.t_s, 6) == 1.32


@pytest.mark.parametrize(
    ("text", "remark"),
    [
        (None, "source: there is no qmp.ndjson"),
        ('{"t_s": 1, "dir": "out", "message": {"execute": "x"}}\n', "source: no message of qmp.ndjson is in"),
    ],
)
def test_a_log_that_does_not_help_is_named(tmp_path: Path, text: str | None, remark: str) -> None:
    writer = records.Writer()
    writer.add(0.0, "note", "source", "machine:launch", {"artifacts": "."})
    folder = writer.write(tmp_path)
    if text is not None:
        (folder / QMP_LOG).write_text(text)
    (found,) = timeline_of(folder).remarks
    assert found.startswith(remark)


def test_the_failure_is_where_the_test_noticed_it(timeline: Timeline) -> None:
    assert timeline.failed is not None
    assert (timeline.failed.t_s, timeline.failed.name) == (1.3, records.CAUSE)


def test_operations_of_the_harness_are_the_hosts(tmp_path: Path) -> None:
    writer = records.Writer()
    op = writer.add(0.1, "invoke", "source", "migrate", {"to": "destination-1"})
    writer.add(0.4, "info", "source", "migrate", None, op)
    writer.add(0.5, "note", "host", "explore:step", {"step": "plug 0"})
    writer.add(0.6, "note", "host", "explore:step", {"step": "mount 0"})
    writer.add(0.7, "note", "host", "test:failed", {"error": "x"})
    found = timeline_of(writer.write(tmp_path)).lanes
    assert [lane.kind for lane in found] == [LaneKind.HOST]
    assert [(span.name, span.end_s, span.outcome) for span in found[0].spans] == [
        ("migrate to destination-1", 0.4, Outcome.INFO),
        ("plug 0", 0.6, Outcome.OK),
        ("mount 0", 0.7, Outcome.FAIL),
    ]


def test_a_folder_without_a_history_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read this history"):
        timeline_of(tmp_path)
