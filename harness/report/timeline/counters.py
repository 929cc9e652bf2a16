"""The numbers that a test observed more than once, by machine: requests in flight, fds, threads, blockers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from harness.history import Entry, Kind, as_mapping
from harness.report.timeline.model import Counter

#: What a sample of a leak hunt counts (``leaks/footprint.py``, ``leaks/vmstate.py``), and how it is called.
_SAMPLED = {
    "threads": "threads",
    "fds": "fds",
    "blockers": "blockers",
    "qom_children": "QOM children",
    "memory_regions": "memory regions",
    "vmstate_sections": "vmstate sections",
    "private_kib": "private memory (KiB)",
}
_QUEUE_STATUS = "qmp:x-query-virtio-queue-status"
_PERIPHERAL = "/machine/peripheral/"


def counters(entries: Sequence[Entry], ends: Mapping[int, Entry]) -> Iterator[Counter]:
    """The counters of a timeline, those with one sample included.

    A single number of requests in flight is evidence.
    """
    found: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for entry in entries:
        for name, t_s, number in _numbers(entry, ends.get(entry.seq)):
            if isinstance(number, int | float) and not isinstance(number, bool):
                found[entry.actor, name].append((t_s, float(number)))
    for (machine, name), samples in found.items():
        if name != _BLOCKERS or any(number for _, number in samples):
            yield Counter(machine, name, tuple(samples))


#: A QEMU before 6.0 never lists what blocks, so a row of zeros says nothing.
_BLOCKERS = "blocked-reasons"


def _numbers(entry: Entry, end: Entry | None) -> Iterator[tuple[str, float, Any]]:
    value = as_mapping(entry.value)
    if entry.f.startswith("leak:") and entry.f.endswith("sample"):
        for key, name in _SAMPLED.items():
            if key in value:
                yield name, entry.t_s, value[key]
    elif entry.kind is Kind.INVOKE and end is not None and end.kind is Kind.OK:
        answer = as_mapping(end.value)
        if entry.f == _QUEUE_STATUS and "inuse" in answer:
            device = str(value.get("path", "")).removeprefix(_PERIPHERAL).partition("/")[0]
            yield f"in flight, {device}", end.t_s, answer["inuse"]
        elif entry.f == "qmp:query-migrate":
            yield _BLOCKERS, end.t_s, len(answer.get("blocked-reasons", ()))
