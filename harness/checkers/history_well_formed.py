"""The history is consistent and complete, so that the other checkers can rely on it."""

from __future__ import annotations

from harness.checkers.record import Record
from harness.checkers.verdict import VALID, Finding, invalid, unknown
from harness.history import HARNESS_ERROR, Entry, Kind, as_mapping

_ENDS = (Kind.OK, Kind.FAIL, Kind.INFO)


def history_well_formed(record: Record) -> Finding:
    """Times do not decrease, every end belongs to one open operation, and the history was closed.

    The times are those of the monotonic clock, which setting the host's clock does not change. An error of
    the harness makes the verdict *unknown*.
    """
    open_: dict[int, Entry] = {}
    last_s = 0.0
    for entry in record.entries:
        if entry.t_s < last_s:
            return invalid(f"entry {entry.seq} is older than the one before it")
        last_s = entry.t_s
        if entry.kind is Kind.INVOKE:
            open_[entry.seq] = entry
        elif entry.kind in _ENDS:
            invoked = open_.pop(entry.op, None) if entry.op is not None else None
            if invoked is None or (invoked.actor, invoked.f) != (entry.actor, entry.f):
                return invalid(f"entry {entry.seq} ends no open operation of {entry.actor} {entry.f}")
    errors = [str(as_mapping(e.value).get("error")) for e in record.entries if e.f == HARNESS_ERROR]
    if errors:
        return unknown(errors[0], *errors[1:])
    if not record.entries or record.entries[-1].f != "closed":
        return unknown("the record ends in the middle")
    return VALID
