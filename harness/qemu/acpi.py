"""ACPI PCI hotplug, from the guest's side: the writes with which it ejects a device."""

from __future__ import annotations

from harness.qemu.machine import Machine
from harness.qemu.machine_types.machine_type import AcpiEject
from harness.qemu.spec import Device


def eject_writes(machine: Machine, device: Device) -> list[tuple[int, int]]:
    """The 32-bit writes to ACPI's registers, in order, as (address, value), that eject ``device``.

    The machine has to be of a type with ACPI hotplug.
    """
    kind = machine.spec.machine_type
    assert isinstance(kind.eject, AcpiEject)
    place = device.device(kind)
    bsel = _bsel(machine, kind.bus_path.format(bus=place["bus"]))
    return kind.eject.writes(bsel, int(str(place["addr"]), 16))


def _bsel(machine: Machine, bus_path: str) -> int:
    """The number by which ACPI knows a bus (QEMU: ``hw/acpi/pcihp.c``, ``ACPI_PCIHP_PROP_BSEL``)."""
    arguments = {"path": bus_path, "property": "acpi-pcihp-bsel"}
    return int(machine.qmp.execute("qom-get", arguments, watch=machine.watch))
