"""Which ``device_del`` an event about a device is the effect of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from harness.history import Entry, Kind, as_mapping
from harness.report.timeline.model import Arrow

_EFFECTS = ("event:DEVICE_DELETED", "event:DEVICE_UNPLUG_GUEST_ERROR", "event:MEM_UNPLUG_ERROR")
_PERIPHERAL = "/machine/peripheral/"


def arrows(entries: Sequence[Entry], ends: Mapping[int, Entry]) -> Iterator[Arrow]:
    """An arrow from each ``device_del`` to each of its events.

    A device has one event for itself and one for each object below it (its ``virtio-backend``). The cause is
    the last ``device_del`` of the device that was not refused; an event of a device without one, such as a
    device that the guest ejected by itself, has no arrow.

    :param ends: the ends of operations, by the ``seq`` of their beginnings.
    """
    asked: dict[tuple[str, str], int] = {}
    for entry in entries:
        if entry.kind is Kind.INVOKE and entry.f in ("qmp:device_del", "qmp:device_add"):
            key = (entry.actor, _device(as_mapping(entry.value).get("id")))
            end = ends.get(entry.seq)
            if end is not None and end.kind is Kind.FAIL:
                continue
            if entry.f == "qmp:device_del":
                asked[key] = entry.seq
            else:
                asked.pop(key, None)
        elif entry.f in _EFFECTS:
            data = as_mapping(as_mapping(entry.value).get("data"))
            cause = asked.get((entry.actor, _device(data.get("path") or data.get("device"))))
            if cause is not None:
                yield Arrow(cause, entry.seq)


def _device(name: Any) -> str:
    """The device that an arrow is about: its id, from an id or a QOM path of it or of something below it."""
    text = str(name or "")
    return text.removeprefix(_PERIPHERAL).partition("/")[0] if text.startswith(_PERIPHERAL) else text
