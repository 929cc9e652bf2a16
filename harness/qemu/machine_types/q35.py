"""``q35``: ACPI hotplug behind root ports (QEMU: ``hw/acpi/ich9.c``), since 6.1."""

from __future__ import annotations

from harness.qemu.machine_types import root_ports
from harness.qemu.machine_types.machine_type import FIXED_ADDR, AcpiEject, FixedPlace, MachineType

Q35 = MachineType(
    name="q35",
    qemu="q35",
    description="Q35, ACPI hotplug through a root port",
    versions="pc-q35",
    places=root_ports.PLACES,
    place_arguments=root_ports.ARGUMENTS,
    # The root bus: ACPI hotplug is for the buses behind root ports.
    fixed_place=FixedPlace("pcie.0", hex(FIXED_ADDR)),
    eject=AcpiEject(0xCC0),
    bus_path=root_ports.BUS_PATH,
    ram_id="pc.ram",
    acpi_root_ports="no ACPI hotplug behind root ports",
)
