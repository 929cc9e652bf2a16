"""The two files of a timeline."""

from __future__ import annotations

from pathlib import Path

from harness.errors import SetupError
from harness.report.timeline.model import Timeline
from harness.report.timeline.svg import svg
from harness.report.timeline.trace_events import trace_events

IMAGE = "timeline.svg"
TRACE = "timeline.trace.json"


def write(timeline: Timeline, folder: Path) -> tuple[Path, Path]:
    """Write a timeline's image and its trace-event JSON into ``folder``, which is made; returns their paths.

    :raises SetupError: when they cannot be written.
    """
    image, trace = folder / IMAGE, folder / TRACE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        image.write_text(svg(timeline), encoding="utf-8")
        trace.write_text(trace_events(timeline), encoding="utf-8")
    except OSError as exc:
        raise SetupError(f"cannot write {exc.filename}: {exc.strerror}") from exc
    return image, trace
