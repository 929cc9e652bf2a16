"""``pc``: i440fx. ACPI hotplug on the root bus (QEMU: ``hw/acpi/piix4.c``)."""

from __future__ import annotations

from harness.qemu.machine_types.machine_type import (
    FIRST_ADDR,
    FIXED_ADDR,
    SLOTS,
    AcpiEject,
    FixedPlace,
    MachineType,
    pci_place,
)

_BUS = "pci.0"

PC = MachineType(
    name="pc",
    qemu="pc",
    description="i440fx with PIIX4 ACPI hotplug",
    versions="pc-i440fx",
    places=tuple(
        pci_place(_BUS, hex(addr), f"0000:00:{addr:02x}.0") for addr in range(FIRST_ADDR, FIRST_ADDR + SLOTS)
    ),
    # Hotplug is switched off for the whole bus. The property came with 5.2 (QEMU: hw/acpi/piix4.c).
    fixed_place=FixedPlace(
        _BUS,
        hex(FIXED_ADDR),
        ("-global", "PIIX4_PM.acpi-root-pci-hotplug=off"),
        ("PIIX4_PM", "acpi-root-pci-hotplug"),
    ),
    eject=AcpiEject(0xAE00),
    bus_path="/machine/i440fx/{bus}",
    ram_id="pc.ram",
    legacy_virtio=True,
)
