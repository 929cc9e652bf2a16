"""What the harness has to know of a machine type: places, buses, consoles, and how hotplug works there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import ClassVar

from harness.errors import Unsupported, UsageError
from harness.qemu.architectures import X86_64, Architecture
from harness.qemu.binary import QemuInstall, require_property

#: How many hotpluggable places each machine type offers; each place holds one device.
SLOTS = 4
#: Their first address, or that of their root ports, on the root bus.
FIRST_ADDR = 0x10
#: The address of the fixed place, or of its root port, on the root bus.
FIXED_ADDR = 0x18


@dataclass(frozen=True)
class Place:
    """A hotpluggable place.

    :param properties: those of a device there: ``bus`` and ``addr``, or ``devno``.
    :param sysfs: the folder of the device in the guest's sysfs: a shell pattern.
    """

    properties: Mapping[str, str]
    sysfs: str


def pci_place(bus: str, addr: str, function: str) -> Place:
    """A machine type's place for a device on a PCI bus.

    :param function: a shell pattern in ``/sys/bus/pci/devices``.
    """
    return Place({"bus": bus, "addr": addr}, f"/sys/bus/pci/devices/{function}")


@dataclass(frozen=True)
class FixedPlace:
    """A place whose bus forbids hotplug.

    :param bus: the bus that QEMU names in its refusal. :param addr: its address there.
    :param arguments: what the machine needs on its command line to have it.
    :param switch: the device and its property that these arguments set, where not every QEMU has that.
    """

    bus: str
    addr: str
    arguments: tuple[str, ...] = ()
    switch: tuple[str, str] | None = None

    def require(self, qemu: QemuInstall) -> None:
        """A machine type's place that forbids hotplug. :raises Unsupported: when this QEMU cannot have it."""
        if self.switch is not None:
            require_property(qemu, *self.switch)

    @property
    def refusals(self) -> tuple[str, ...]:
        """QEMU's own words for ``device_add`` and ``device_del`` in the place that forbids hotplug.

        The first is ``softmmu/qdev-monitor.c``'s (later ``system/qdev-monitor.c``), the others are what a
        root port says by itself up to some release after 7.2 (QEMU: ``hw/pci/pcie.c``,
        ``pcie_cap_slot_plug_common`` and its callers).
        """
        port = f"failed: unsupported by the port device '{self.bus}'"
        return f"Bus '{self.bus}' does not support hotplugging", f"Hot-plug {port}", f"Hot-unplug {port}"


@dataclass(frozen=True)
class AcpiEject:
    """The guest ejects a device through the registers of ACPI PCI hotplug.

    Source: QEMU ``hw/acpi/pcihp.c`` and ``docs/specs/acpi_pci_hotplug.rst``.

    :param base: the address at which the registers begin. :param in_memory: it is none of I/O ports.
    """

    base: int
    in_memory: bool = False
    #: The offsets of the registers: slots with an event to plug or to unplug; a write ejects slots by their
    #: bit; slots that can be ejected; the bus, by its bsel; a slot's acpi-index.
    REGISTERS: ClassVar[Mapping[str, int]] = {
        "up": 0x00,
        "down": 0x04,
        "eject": 0x08,
        "removable": 0x0C,
        "select": 0x10,
        "index": 0x14,
    }

    def writes(self, bsel: int, addr: int) -> list[tuple[int, int]]:
        """The 32-bit writes, in order, as (address, value), that eject what is in slot ``addr`` of a bus.

        :param bsel: the number by which ACPI knows the bus; any number can be given.
        """
        select, eject = self.REGISTERS["select"], self.REGISTERS["eject"]
        return [(self.base + select, bsel), (self.base + eject, 1 << addr)]


@dataclass(frozen=True)
class SlotPowerOff:
    """The guest ejects a device by taking the power from its slot: Slot Control of the root port.

    Source: QEMU ``hw/pci/pcie.c``, ``pcie_cap_slot_write_config``.
    """


@dataclass(frozen=True)
class NoEject:
    """A guest has no means to eject a device. :param why: the reason, as text for a skip."""

    why: str


class UnplugKind(Enum):
    """What a plain ``device_del`` does to a device that a running guest uses."""

    #: QEMU asks the guest, and the device stays until the guest lets it go (QEMU: ``unplug_request``).
    ASKS = "device_del asks the guest"
    #: QEMU takes the device and asks nobody (QEMU: a bus whose controller has ``unplug`` alone).
    TAKES = "device_del takes the device, without asking the guest"
    #: QEMU refuses both ``device_add`` and ``device_del``.
    REFUSED = "has no hotplug: device_add and device_del are refused"


@dataclass(frozen=True)
class Console:
    """A serial port. :param name: what the guest calls it; also the id of its chardev.

    :param arguments: the device, for QEMU's command line.
    """

    name: str
    arguments: tuple[str, ...]


def serial_port(name: str) -> Console:
    """A serial port that the machine type has by itself: a console."""
    return Console(name, ("-serial", f"chardev:{name}"))


#: The network card of a machine with PCI, in a separate place. It boots nothing, so it needs no ROM.
PCI_NIC: Mapping[str, str] = {"driver": "virtio-net-pci", "romfile": "", "addr": "0x8"}


@dataclass(frozen=True)
class MachineType:
    """A machine type together with the way hotplug works on it.

    :param name: the harness's name. :param qemu: QEMU's (``-machine``).
    :param versions: what the names of its versions begin with: ``pc-i440fx`` for ``pc-i440fx-7.2``.
    :param places: :data:`SLOTS` hotpluggable places.
    :param fixed_place: a place whose bus forbids hotplug.
    :param eject: how a guest takes a device out of the machine without asking anybody.
    :param bus_path: the QOM path of a bus that is called ``{bus}``.
    :param ram_id: the name that the machine type gives its memory (QEMU: ``default_ram_id``): by it a
        machine with a file for its memory can migrate to one without.
    :param consoles: its serial ports. The first is the kernel's console, the second has a shell.
    :param architecture: the guest's. :param unplug: what ``device_del`` does.
    :param transport: how virtio devices are connected: the end of their names, ``pci`` or ``ccw``.
    :param nic: driver and place of the network card.
    :param arguments: what makes it this machine type, beside ``-machine``.
    :param place_arguments: the devices that its places need.
    :param acpi_root_ports: why it needs a QEMU with ACPI hotplug behind root ports; empty when it does not.
    :param property: a device and its property that the machine type needs QEMU to have.
    :param firmware: the names of files that can be its firmware, where QEMU's choice does not do; the first
        that is there is used.
    :param removal_delay_s: how long the guest's driver waits before it begins a removal, in seconds.
    :param legacy_virtio: devices in its places have virtio's legacy interface as well (QEMU:
        ``hw/virtio/virtio-pci.c``, ``virtio_pci_realize``: not on a PCI Express bus).
    :param forgets_interrupts: whether an interrupt that the guest has not taken yet is not saved with its
        state (bug R80 of the ledger).
    :param by_default: whether a run that names no machine type uses it.
    :param cmdline: what the guest's kernel needs on its command line, beside that of its image.
    """

    name: str
    qemu: str
    description: str
    versions: str
    places: tuple[Place, ...]
    fixed_place: FixedPlace | None
    eject: AcpiEject | SlotPowerOff | NoEject
    bus_path: str
    ram_id: str
    consoles: tuple[Console, Console] = (serial_port("ttyS0"), serial_port("ttyS1"))
    architecture: Architecture = X86_64
    unplug: UnplugKind = UnplugKind.ASKS
    transport: str = "pci"
    nic: Mapping[str, str] = field(default_factory=lambda: PCI_NIC)
    arguments: tuple[str, ...] = ()
    place_arguments: tuple[str, ...] = ()
    acpi_root_ports: str = ""
    property: tuple[str, str] | None = None
    firmware: tuple[str, ...] = ()
    removal_delay_s: float = 0.0
    legacy_virtio: bool = False
    forgets_interrupts: bool = False
    by_default: bool = True
    cmdline: str = ""

    def known_to_all(self, *known: Iterable[str]) -> MachineType:
        """This type in the newest of its versions that is in each of ``known``, such as ``pc-q35-7.2``.

        Machines of another QEMU understand each other when they are of one version (QEMU:
        ``docs/devel/migration/compatibility.rst``).

        :raises Unsupported: when there is none.
        """
        pattern = re.compile(rf"{self.versions}-(\d+)\.(\d+)")
        common = set.intersection(*({name for name in names if pattern.fullmatch(name)} for names in known))
        if not common:
            raise Unsupported(f"{self.name}: these QEMUs have no machine type of one version in common")

        def version(name: str) -> tuple[int, ...]:
            return tuple(map(int, name.rpartition("-")[2].split(".")))

        return replace(self, qemu=max(common, key=version))

    def place(self, slot: int) -> Mapping[str, str]:
        """The properties of a device in the hotpluggable place ``slot``: ``bus`` and ``addr``, or ``devno``.

        Addresses are explicit, so that a destination has each device where its source had it.

        :raises UsageError: when there is no such place.
        """
        if not 0 <= slot < len(self.places):
            raise UsageError(f"machine {self.name} has places 0 to {len(self.places) - 1}, not {slot}")
        return self.places[slot].properties

    def sysfs(self, slot: int) -> str:
        """The folder in a guest's sysfs of what is in the place ``slot``: a shell pattern."""
        return self.places[slot].sysfs

    def driver(self, pci: str) -> str:
        """The name of a virtio device here, by its name on PCI: ``virtio-9p-ccw`` for ``virtio-9p-pci``."""
        kind, dash, transport = pci.rpartition("-")
        return f"{kind}{dash}{self.transport}" if transport == "pci" else pci

    def require_fixed_place(self) -> FixedPlace:
        """The machine type's place that forbids hotplug. :raises Unsupported: when it has none."""
        if self.fixed_place is None:
            raise Unsupported(f"{self.name}: has no bus that forbids hotplug")
        return self.fixed_place

    def require_pci(self) -> None:
        """:raises Unsupported: when the machine type's virtio devices are not on a PCI bus."""
        if self.transport != "pci":
            raise Unsupported(f"{self.name}: its virtio devices are not on a PCI bus")

    def require_hotplug(self) -> None:
        """:raises Unsupported: when QEMU refuses all hotplug on this machine type."""
        if self.unplug is UnplugKind.REFUSED:
            raise Unsupported(f"{self.name}: {self.unplug.value}")

    def require_unplug(self, kind: UnplugKind) -> None:
        """:raises Unsupported: when ``device_del`` does something else on this machine type."""
        if self.unplug is not kind:
            raise Unsupported(f"{self.name}: {self.unplug.value}")
