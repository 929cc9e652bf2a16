"""``virt`` of aarch64: root ports with native PCI Express hotplug.

Source: QEMU ``hw/arm/virt.c``, ``hw/pci/pcie.c``.
"""

from __future__ import annotations

from harness.qemu.architectures import AARCH64
from harness.qemu.machine_types import root_ports
from harness.qemu.machine_types.machine_type import (
    FIXED_ADDR,
    Console,
    FixedPlace,
    MachineType,
    SlotPowerOff,
    serial_port,
)

VIRT = MachineType(
    name="virt",
    qemu="virt",
    description="aarch64, native PCIe hotplug",
    versions="virt",
    architecture=AARCH64,
    places=root_ports.PLACES,
    place_arguments=root_ports.ARGUMENTS,
    fixed_place=FixedPlace("pcie.0", hex(FIXED_ADDR)),
    eject=SlotPowerOff(),
    bus_path=root_ports.BUS_PATH,
    ram_id="mach-virt.ram",
    consoles=(
        serial_port("ttyAMA0"),
        # The machine has one serial port by itself.
        Console(
            "hvc0",
            (
                *("-device", "virtio-serial-pci,id=serial0,addr=0x9"),
                *("-device", "virtconsole,chardev=hvc0,bus=serial0.0"),
            ),
        ),
    ),
    # Kernel: drivers/pci/hotplug/pciehp_ctrl.c, pciehp_handle_button_press.
    removal_delay_s=5.0,
)
