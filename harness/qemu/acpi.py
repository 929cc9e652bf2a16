"""ACPI PCI hotplug, from the guest's side: the port writes with which it ejects a device.

Source: QEMU ``hw/acpi/pcihp.c`` and ``docs/specs/acpi_pci_hotplug.rst``.
"""

from __future__ import annotations

from harness.qemu.machine import Machine
from harness.qemu.spec import Share

#: Offsets: select a bus by its bsel, then eject slots by their bit.
_SELECT, _EJECT = 0x10, 0x08
_BASE_PIIX4, _BASE_ICH9 = 0xAE00, 0xCC0


def eject_writes(machine: Machine, share: Share) -> list[tuple[int, int]]:
    """The 32-bit writes, in order, as (port, value), that eject the device of ``share``."""
    kind = machine.spec.machine_type
    place = share.device(kind)
    if kind.has_root_ports:
        base, bus = _BASE_ICH9, f"/machine/peripheral/{place['bus']}/{place['bus']}"
    else:
        base, bus = _BASE_PIIX4, "/machine/i440fx/pci.0"
    return [(base + _SELECT, _bsel(machine, bus)), (base + _EJECT, 1 << int(str(place["addr"]), 16))]


def _bsel(machine: Machine, bus: str) -> int:
    """The number by which ACPI knows a bus (``ACPI_PCIHP_PROP_BSEL``)."""
    arguments = {"path": bus, "property": "acpi-pcihp-bsel"}
    return int(machine.qmp.execute("qom-get", arguments, watch=machine.watch))
