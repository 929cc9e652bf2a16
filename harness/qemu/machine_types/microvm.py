"""``microvm``: virtio-mmio alone, and no hotplug: QEMU refuses ``device_add`` and ``device_del``.

Its virtio buses have no hotplug handler (QEMU: ``hw/virtio/virtio-mmio.c``; ``system/qdev-monitor.c``). The
devices that the command line plugs are there for the machine's life.
"""

from __future__ import annotations

from harness.qemu.machine_types.machine_type import (
    SLOTS,
    Console,
    MachineType,
    NoEject,
    Place,
    UnplugKind,
    serial_port,
)

#: The first of its places; the one before is the network card's.
_FIRST_BUS = 1


def _place(slot: int) -> Place:
    # The ACPI table has only those with a device, and the kernel counts them (QEMU: hw/i386/acpi-microvm.c,
    # acpi_dsdt_add_virtio).
    return Place({"bus": f"virtio-mmio-bus.{_FIRST_BUS + slot}"}, "/sys/bus/platform/devices/LNRO0005:*")


MICROVM = MachineType(
    name="microvm",
    qemu="microvm",
    description="virtio-mmio, no hotplug",
    # It has no versions.
    versions="microvm",
    places=tuple(_place(slot) for slot in range(SLOTS)),
    fixed_place=None,
    eject=NoEject("its devices cannot be ejected"),
    unplug=UnplugKind.REFUSED,
    transport="device",
    nic={"driver": "virtio-net-device", "bus": "virtio-mmio-bus.0"},
    bus_path="/machine/{bus}",
    ram_id="microvm.ram",
    # With its second I/O APIC no interrupt of a virtio device arrives under TCG (seen on 7.2 and 11.1). QEMU
    # merges this with the first -machine.
    arguments=("-machine", "ioapic2=off"),
    # Under TCG the kernel can calibrate neither its TSC nor its local APIC: hardware-reduced ACPI has no PIT,
    # and it waits for a tick for ever (seen with 6.1). With a frequency it boots. The TSC is the host's
    # (QEMU: cpu_get_host_ticks), so the guest's clock is as wrong as this is. Without ACPI, Debian's kernel
    # finds no virtio-mmio: CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES is not set.
    cmdline="tsc_early_khz=2600000",
    consoles=(
        serial_port("ttyS0"),
        # It has one serial port by itself.
        Console("ttyS1", ("-device", "isa-serial,chardev=ttyS1,iobase=0x2f8,irq=3")),
    ),
    by_default=False,
)
