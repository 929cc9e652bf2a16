"""QMP events come as QEMU documents them.

One unplug of a virtio PCI device gives two ``DEVICE_DELETED``: the first for its ``…/virtio-backend`` child,
without a ``device``, the second for the device itself. Each is emitted when its object is finalized, so a
missing event is a leaked reference (QEMU: ``hw/core/qdev.c``, ``device_unparent``; ``qapi/qdev.json``). A
QEMU that died between the two could not send the second.

A plug that fails late has realized the backend, which is then finalized. Its event comes although
``device_add`` is refused and the device never existed (QEMU: ``device_finalize``; seen on 7.2, 10.0 and
11.1).

The order in which the events arrive is judged. An event's own timestamp is the host's wall clock (QEMU:
``qapi/qmp-event.c``, ``timestamp_put``), which can be set at any time. An event that is read after the
process has ended was sent before. Neither is a fault of QEMU.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from harness.checkers.record import Record
from harness.checkers.verdict import VALID, Finding, invalid, merged, unknown
from harness.history import Entry, Kind, as_mapping

_BACKEND = "/virtio-backend"
_DEVICES = "/machine/peripheral/"


@dataclass
class _Device:
    """The events of one device since it was last plugged."""

    backend: bool = False
    itself: bool = False
    seen: list[str] = field(default_factory=list)


def events_well_formed(record: Record) -> Finding:
    """Both DEVICE_DELETED events come, once each and in order, and a machine ends once.

    The verdict is *unknown* when the events' timestamps go back.
    """
    findings: list[Finding] = []
    for machine in record.machines:
        events = [e for e in record.entries if e.actor == machine.name and e.kind is Kind.EVENT]
        findings += [
            _one_end(machine.name, events),
            _pairs(record, machine.name),
            _in_time(machine.name, events),
        ]
    return merged(findings)


def _in_time(machine: str, events: list[Entry]) -> Finding:
    last = (0, 0)
    for event in events:
        stamp = as_mapping(as_mapping(event.value).get("timestamp"))
        if stamp:
            now = (int(stamp.get("seconds", 0)), int(stamp.get("microseconds", 0)))
            if now < last:
                back_s = last[0] - now[0] + (last[1] - now[1]) / 1e6
                return unknown(
                    f"QEMU {machine!r}: the host's clock went back by {back_s:.6f} s before {event.f}, so "
                    "the events cannot be judged; make sure that nothing sets the clock, then run the test "
                    "again",
                    str(event),
                )
            last = now
    return VALID


def _one_end(machine: str, events: list[Entry]) -> Finding:
    exits = [event for event in events if event.f == "machine:exit"]
    return invalid(f"QEMU {machine!r} ended {len(exits)} times") if len(exits) > 1 else VALID


def _pairs(record: Record, machine: str) -> Finding:
    devices: dict[str, _Device] = {}
    before: dict[int, tuple[str, _Device | None]] = {}
    for entry in (e for e in record.entries if e.actor == machine):
        if entry.f == "machine:launch":
            plugged = as_mapping(as_mapping(entry.value).get("plugged"))
            devices |= {f"{_DEVICES}{id_}": _Device() for id_, of in plugged.items() if _is_virtio(of)}
        elif entry.f == "qmp:device_add" and entry.kind is Kind.INVOKE:
            path = f"{_DEVICES}{as_mapping(entry.value).get('id')}"
            if _is_virtio(as_mapping(entry.value).get("driver")):
                problem = _unfinished(machine, path, devices.get(path))
                if problem is not None:
                    return problem
                before[entry.seq] = path, devices.get(path)
                devices[path] = _Device()
        elif entry.f == "qmp:device_add" and entry.kind is Kind.FAIL and entry.op in before:
            path, earlier = before[entry.op]
            devices[path] = earlier or _Device()
        elif entry.f == "event:DEVICE_DELETED":
            problem = _deleted(machine, entry, devices)
            if problem is not None:
                return problem
    if _died(record, machine):  # It could send no more; its death is what `qemu_alive` reports.
        return VALID
    unfinished = [_unfinished(machine, path, device) for path, device in devices.items()]
    return next((problem for problem in unfinished if problem is not None), VALID)


def _died(record: Record, machine: str) -> bool:
    """Whether QEMU ended before it was asked to."""
    exit_ = record.last(machine, "machine:exit")
    asked = next(record.of(machine, "machine:expect-exit"), None)
    return exit_ is not None and (asked is None or asked.seq > exit_.seq)


def _is_virtio(driver: object) -> bool:
    return str(driver or "").startswith(("virtio-", "vhost-user-"))


def _deleted(machine: str, entry: Entry, devices: dict[str, _Device]) -> Finding | None:
    data = as_mapping(as_mapping(entry.value).get("data"))
    path = str(data.get("path", ""))
    name = path.removesuffix(_BACKEND)
    if path.endswith(_BACKEND):
        device = devices.setdefault(name, _Device())
        if "device" in data:
            return invalid(
                f"QEMU {machine!r}: the backend's DEVICE_DELETED of {name} has a 'device'", str(data)
            )
        if device.itself:
            return invalid(f"QEMU {machine!r}: {name} was deleted before its virtio-backend", str(data))
        if device.backend:
            return invalid(f"QEMU {machine!r}: DEVICE_DELETED came twice for {path}", str(data))
        device.backend = True
        return None
    known = devices.get(name)
    if known is None:
        return None  # The record shows no virtio device of this name.
    if known.itself:
        return invalid(f"QEMU {machine!r}: DEVICE_DELETED came twice for {path}", str(data))
    if not known.backend:
        return invalid(
            f"QEMU {machine!r}: {name} was deleted without its virtio-backend: a leaked reference", str(data)
        )
    if data.get("device") != name.rpartition("/")[2]:
        return invalid(f"QEMU {machine!r}: DEVICE_DELETED of {path} names no device", str(data))
    known.itself = True
    return None


def _unfinished(machine: str, path: str, device: _Device | None) -> Finding | None:
    if device is not None and device.backend and not device.itself:
        what = f"the virtio-backend of {path} was deleted, the device never"
        return invalid(f"QEMU {machine!r}: {what}: a leaked reference")
    return None
