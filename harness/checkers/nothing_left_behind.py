"""A test leaves nothing on the host after it has ended."""

from __future__ import annotations

from harness.checkers.record import Record
from harness.checkers.verdict import VALID, Finding, invalid, unknown
from harness.history import as_mapping


def nothing_left_behind(record: Record) -> Finding:
    """No process, socket, mount, folder or thread is left."""
    note = record.last("host", "host:leftovers")
    if note is None:
        return unknown("the test ended without a check for what it left behind")
    left = [f"{kind}: {thing}" for kind, things in as_mapping(note.value).items() for thing in things]
    if left:
        return invalid(f"left behind: {left[0]}" + (f" and {len(left) - 1} more" if left[1:] else ""), *left)
    return VALID
