"""``q35-pcie``: Q35 whose root ports do PCI Express hotplug themselves (QEMU: ``hw/pci/pcie.c``).

Before 6.1 Q35 had native hotplug alone, and that loses devices. Seen in 5.2 with kernels 5.10, 6.1 and 6.12:
``device_add`` presses the slot's button, the guest's driver sees it pressed twice, or the slot empty, powers
the slot off, and QEMU deletes the device. 9p has no part in that.
"""

from __future__ import annotations

from harness.qemu.binary import ACPI_ROOT_PORTS
from harness.qemu.machine_types import root_ports
from harness.qemu.machine_types.machine_type import MachineType, SlotPowerOff

Q35_PCIE = MachineType(
    name="q35-pcie",
    qemu="q35",
    description="Q35, native PCIe hotplug",
    versions="pc-q35",
    places=root_ports.PLACES,
    place_arguments=root_ports.ARGUMENTS,
    arguments=("-global", f"ICH9-LPC.{ACPI_ROOT_PORTS}=off"),
    fixed_place=root_ports.FIXED_PLACE,
    eject=SlotPowerOff(),
    bus_path=root_ports.BUS_PATH,
    ram_id="pc.ram",
    acpi_root_ports="a plugged device is ejected at once",
    # Kernel: drivers/pci/hotplug/pciehp_ctrl.c, pciehp_handle_button_press.
    removal_delay_s=5.0,
)
