"""The sections of a machine's device state: what QEMU would write out of every registered vmstate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.errors import QemuError

if TYPE_CHECKING:
    from harness.qemu.machine import Machine

#: How a stream, and in it a section, begins and ends (QEMU: ``migration/savevm.c``, ``migration/savevm.h``).
_MAGIC = b"QEVM\0\0\0\3"
_FULL, _FOOTER, _EOF = 0x04, 0x7E, 0x00
_ID_BYTES = 4
#: An instance's number, and the version of its description.
_INSTANCE_AND_VERSION_BYTES = 8


def vmstate_sections(machine: Machine) -> int | None:
    """How many vmstate sections would be sent, but for memory; ``None`` where asking would change something.

    Asked of a machine that is stopped: saving stops one that runs, and its devices are told so. The guest's
    memory is not written, blockers do not matter, and the machine goes on as it was (QEMU:
    ``migration/savevm.c``, ``qmp_xen_save_devices_state``; built without Xen too). A section whose device
    has gone is counted when QEMU survives to write it.
    """
    if machine.qmp.execute("query-status", watch=machine.watch)["running"]:
        return None
    saved = machine.folder / "device-state"
    arguments = {"filename": str(saved), "live": False}
    try:
        machine.qmp.execute("xen-save-devices-state", arguments, watch=machine.watch)
    except QemuError as exc:
        # Before 2.11 it had no "live", and there was one way of saving alone.
        if exc.command_not_found or "'live'" in exc.desc:
            return None
        raise
    return len(section_names(saved.read_bytes()))


def section_names(stream: bytes) -> list[str]:
    """The names of the sections of a stream without memory, in order.

    The length of a section's content is known to its device only; but its footer repeats its number, and is
    followed by the next section or by the end.

    :raises ValueError: for what is no such stream, or ends early.
    """
    if not stream.startswith(_MAGIC):
        raise ValueError(f"no device state: it begins with {stream[: len(_MAGIC)]!r}")
    at = len(_MAGIC)
    names = []
    while stream[at:] != bytes([_EOF]):
        number = stream[at + 1 : at + 1 + _ID_BYTES]
        length_at = at + 1 + _ID_BYTES
        if stream[at : at + 1] != bytes([_FULL]) or length_at >= len(stream):
            raise ValueError(f"no section begins at {at} of {len(stream)} bytes")
        end_of_name = length_at + 1 + stream[length_at]
        names.append(stream[length_at + 1 : end_of_name].decode())
        at = _after_footer(stream, number, end_of_name + _INSTANCE_AND_VERSION_BYTES)
    return names


def _after_footer(stream: bytes, number: bytes, start: int) -> int:
    footer = bytes([_FOOTER]) + number
    while True:
        at = stream.find(footer, start)
        if at < 0:
            raise ValueError(
                f"no end of section {int.from_bytes(number, 'big')}, which begins before {start}"
            )
        end = at + len(footer)
        if stream[end : end + 1] == bytes([_FULL]) or stream[end:] == bytes([_EOF]):
            return end
        start = at + 1
