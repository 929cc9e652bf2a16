"""``virt-acpi``: ``virt`` of aarch64 with ACPI hotplug behind root ports, which QEMU has since 10.1.

It is off by default (QEMU ``hw/acpi/generic_event_device.c``). A guest reads ACPI tables only when UEFI
firmware started it (kernel: ``arch/arm64/kernel/acpi.c``, ``acpi_boot_table_init``), so the machine has EDK2.
"""

from __future__ import annotations

from dataclasses import replace

from harness.qemu.machine_types import root_ports
from harness.qemu.machine_types.machine_type import AcpiEject
from harness.qemu.machine_types.virt import VIRT

_ACPI = ("acpi-ged", "acpi-pci-hotplug-with-bridge-support")

VIRT_ACPI = replace(
    VIRT,
    name="virt-acpi",
    description="aarch64, ACPI hotplug through a root port",
    arguments=("-global", f"{'.'.join(_ACPI)}=on"),
    property=_ACPI,
    # Debian's package qemu-efi-aarch64, and what QEMU installs itself.
    firmware=("QEMU_EFI.fd", "edk2-aarch64-code.fd"),
    # With ACPI the root bus of this machine type can be hotplugged, too.
    fixed_place=root_ports.FIXED_PLACE,
    # QEMU: hw/arm/virt.c, base_memmap, VIRT_ACPI_PCIHP.
    eject=AcpiEject(0x090C0000, in_memory=True),
    removal_delay_s=0.0,
)
