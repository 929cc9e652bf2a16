"""The last lines of a test's logs: what a failure shows first, at the terminal and on the page."""

from __future__ import annotations

from harness.artifacts import Artifacts, tail

_LINES = 12
#: Characters of a line.
_WIDTH = 400


def last_lines(artifacts: Artifacts) -> list[tuple[str, list[str]]]:
    """For each machine the last QMP exchanges, the last kernel lines and QEMU's output, each with a title."""
    found = []
    for machine in artifacts.machines():
        label = "" if machine.folder == artifacts.folder else f" of {machine.folder.name}"
        for title, log in (
            ("last QMP exchanges", machine.qmp),
            ("last kernel lines", machine.kernel),
            ("QEMU's output", machine.qemu),
        ):
            lines = [line[:_WIDTH] for line in tail(log, _LINES)]
            if lines:
                found.append((title + label, lines))
    return found
