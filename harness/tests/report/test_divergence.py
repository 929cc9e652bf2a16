"""What differed between two records of one test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.report.divergence import divergence
from harness.report.summary import Again, Outcome, differences
from harness.tests.report.test_summary import result
from harness.tests.report.timeline.records import Writer

Story = Callable[[Writer], object]


def _passed(w: Writer) -> None:
    """Polls, unplugs, and gets the event."""
    w.command(0.1, 0.2, "query-status")
    w.command(0.2, 0.3, "device_del", {"id": "share0"})
    w.event(0.4, "DEVICE_DELETED", device="share0")


def _longer_poll(w: Writer) -> None:
    """The same, with other numbers of turns and another order."""
    w.command(0.1, 0.2, "device_del", {"id": "share0"})
    for turn in range(5):
        w.command(0.2 + turn / 10, 0.25 + turn / 10, "query-status")
    w.event(0.9, "DEVICE_DELETED", device="share0")


def _no_event(w: Writer) -> None:
    w.command(0.1, 0.2, "query-status")
    w.command(0.2, 0.3, "device_del", {"id": "share0"})


def _refused(w: Writer) -> None:
    w.command(0.1, 0.2, "query-status")
    w.command(0.2, 0.3, "device_del", {"id": "share0"}, kind="fail")


def _never_ended(w: Writer) -> None:
    w.command(0.1, 0.2, "query-status")
    w.add(0.2, "invoke", "source", "qmp:device_del", {"id": "share0"})
    w.event(0.4, "DEVICE_DELETED", device="share0")


def _slow(w: Writer) -> None:
    w.command(0.1, 0.3, "query-status")
    w.command(0.3, 9.3, "device_del", {"id": "share0"})
    w.event(9.4, "DEVICE_DELETED", device="share0")


def _write(folder: Path, story: Story) -> Path:
    writer = Writer()
    story(writer)
    return writer.write(folder)


@pytest.mark.parametrize(
    ("failed", "said"),
    [
        (_passed, ""),
        (_longer_poll, ""),
        (_no_event, "only when it passed: source: DEVICE_DELETED"),
        (
            _refused,
            "only when it failed: source: device_del (failed); "
            "only when it passed: source: device_del, source: DEVICE_DELETED",
        ),
        (
            _never_ended,
            "only when it failed: source: device_del (no end); only when it passed: source: device_del",
        ),
        (_slow, "source: device_del took 9.0 s when it failed, 0.1 s when it passed"),
    ],
)
def test_what_differed_is_named(tmp_path: Path, failed: Story, said: str) -> None:
    assert divergence(_write(tmp_path / "bad", failed), _write(tmp_path / "good", _passed)) == said


def test_many_steps_are_counted(tmp_path: Path) -> None:
    def many(w: Writer) -> None:
        for number in range(9):
            w.command(number, number + 0.1, f"x-{number}")

    said = divergence(_write(tmp_path / "bad", many), _write(tmp_path / "good", _passed))
    assert "only when it failed: source: x-0, source: x-1, source: x-2 and 6 more" in said


def test_without_both_records_nothing_is_said(tmp_path: Path) -> None:
    assert divergence(_write(tmp_path / "bad", _passed), tmp_path / "gone") == ""
    assert divergence(tmp_path / "gone", tmp_path / "bad") == ""


def test_a_flaky_result_says_what_differed(tmp_path: Path) -> None:
    bad, good = _write(tmp_path / "bad", _no_event), _write(tmp_path / "good", _passed)
    passed = Again(outcome=Outcome.PASSED, seconds=1.0, artifacts=str(good))
    again = (Again(outcome=Outcome.FAILED, seconds=1.0), passed)
    found = result("t", outcome=Outcome.FAILED, artifacts=str(bad), again=again)
    assert differences(found).endswith("timeline: only when it passed: source: DEVICE_DELETED")
    gone = found.model_copy(update={"artifacts": str(tmp_path / "gone")})
    assert "timeline" not in differences(gone)
