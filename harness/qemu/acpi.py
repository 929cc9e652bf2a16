"""ACPI PCI hotplug, from the guest's side: the port writes with which it ejects a device.

Source: QEMU ``hw/acpi/pcihp.c`` and ``docs/specs/acpi_pci_hotplug.rst``.
"""

from __future__ import annotations

from harness.qemu.machine import Machine
from harness.qemu.spec import Device, MachineType

#: Offsets: select a bus by its bsel, then eject slots by their bit.
_SELECT, _EJECT = 0x10, 0x08
_BASE_PIIX4, _BASE_ICH9 = 0xAE00, 0xCC0
_ROOT_BUS = "/machine/i440fx/pci.0"


def eject_writes(machine: Machine, device: Device) -> list[tuple[int, int]]:
    """The 32-bit writes, in order, as (port, value), that eject ``device``."""
    kind = machine.spec.machine_type
    place = device.device(kind)
    bus = f"/machine/peripheral/{place['bus']}/{place['bus']}" if kind.has_root_ports else _ROOT_BUS
    return eject_writes_of(kind, _bsel(machine, bus), int(str(place["addr"]), 16))


def eject_writes_of(kind: MachineType, bsel: int, slot: int) -> list[tuple[int, int]]:
    """The writes that eject what is in ``slot`` of the bus that ACPI knows as ``bsel``, whatever that is."""
    base = _BASE_ICH9 if kind.has_root_ports else _BASE_PIIX4
    return [(base + _SELECT, bsel), (base + _EJECT, 1 << slot)]


def _bsel(machine: Machine, bus: str) -> int:
    """The number by which ACPI knows a bus (``ACPI_PCIHP_PROP_BSEL``)."""
    arguments = {"path": bus, "property": "acpi-pcihp-bsel"}
    return int(machine.qmp.execute("qom-get", arguments, watch=machine.watch))
