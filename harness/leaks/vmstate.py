"""The vmstate sections of a machine: one for each vmstate handler that is registered."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import QemuError

if TYPE_CHECKING:
    from harness.qemu.machine import Machine

#: The marks at the beginning and end of a stream and of a section (QEMU: ``migration/savevm.c``,
#: ``savevm.h``).
_MAGIC = b"QEVM\0\0\0\3"
_FULL, _FOOTER, _EOF = 0x04, 0x7E, 0x00
_ID_BYTES = 4
#: An instance's number, and the version of its description.
_INSTANCE_AND_VERSION_BYTES = 8


def vmstate_sections(machine: Machine) -> int | None:
    """The number of vmstate sections of a stopped machine, without the guest's memory.

    ``None`` for a machine that runs, because saving would stop it and call the devices' vmstate change
    handlers, and for a QEMU before 2.11. Uses ``xen-save-devices-state``, which writes no guest memory,
    ignores migration blockers and leaves the machine as it was (QEMU: ``migration/savevm.c``,
    ``qmp_xen_save_devices_state``; also in builds without Xen). The section of a device that is gone is
    counted, if QEMU survives writing it.
    """
    saved = save_devices(machine)
    return None if saved is None else len(section_names(saved.read_bytes()))


def save_devices(machine: Machine) -> Path | None:
    """Save the state of a stopped machine's devices into a file: see :func:`vmstate_sections`."""
    if machine.qmp.execute("query-status", watch=machine.watch)["running"]:
        return None
    saved = machine.folder / "device-state"
    arguments = {"filename": str(saved), "live": False}
    try:
        machine.qmp.execute("xen-save-devices-state", arguments, watch=machine.watch)
    except QemuError as exc:
        # Before 2.11 the command had no "live" argument, and only one way to save.
        if exc.command_not_found or "'live'" in exc.desc:
            return None
        raise
    return saved


def section_names(stream: bytes) -> list[str]:
    """The names of the sections of a stream without memory, in order.

    A stream does not contain the length of a section. The end is found by the footer, which repeats the
    section's number and is followed by the next section or by the end of the stream.

    :raises ValueError: when it is no such stream, or ends early.
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
