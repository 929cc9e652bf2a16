"""What the harness has to know of a machine type: places, buses, consoles, and how hotplug works there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from harness.errors import Unsupported, UsageError
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

    :param bus: :param addr: the properties of a device there.
    :param function: where a guest lists the device: a shell pattern in ``/sys/bus/pci/devices``.
    """

    bus: str
    addr: str
    function: str


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
        """:raises Unsupported: when this QEMU cannot have it."""
        if self.switch is not None:
            require_property(qemu, *self.switch)

    @property
    def refusals(self) -> tuple[str, ...]:
        """QEMU's own words for ``device_add`` and ``device_del``.

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

    :param base: the I/O port at which the registers begin.
    """

    base: int
    #: Offsets: select a bus by its bsel, then eject slots by their bit.
    _SELECT, _EJECT = 0x10, 0x08

    def writes(self, bsel: int, addr: int) -> list[tuple[int, int]]:
        """The 32-bit writes, in order, as (port, value), that eject what is in slot ``addr`` of a bus.

        :param bsel: the number by which ACPI knows the bus; any number can be given.
        """
        return [(self.base + self._SELECT, bsel), (self.base + self._EJECT, 1 << addr)]


@dataclass(frozen=True)
class SlotPowerOff:
    """The guest ejects a device by taking the power from its slot: Slot Control of the root port.

    Source: QEMU ``hw/pci/pcie.c``, ``pcie_cap_slot_write_config``.
    """


@dataclass(frozen=True)
class MachineType:
    """A machine type together with the way PCI hotplug works on it.

    :param name: the harness's name. :param qemu: QEMU's (``-machine``).
    :param versions: what the names of its versions begin with: ``pc-i440fx`` for ``pc-i440fx-7.2``.
    :param places: :data:`SLOTS` hotpluggable places.
    :param fixed_place: a place whose bus forbids hotplug.
    :param eject: how a guest takes a device out of the machine without asking anybody.
    :param bus_path: the QOM path of a bus that is called ``{bus}``.
    :param ram_id: the name that the machine type gives its memory (QEMU: ``default_ram_id``): by it a
        machine with a file for its memory can migrate to one without.
    :param consoles: the ids of the chardevs behind its serial ports: what the guest calls the ports. The
        first is the kernel's console, the second has a shell.
    :param arguments: what makes it this machine type, beside ``-machine``.
    :param place_arguments: the devices that its places need.
    :param acpi_root_ports: why it needs a QEMU with ACPI hotplug behind root ports; empty when it does not.
    :param removal_delay_s: how long the guest's driver waits before it begins a removal, in seconds.
    :param legacy_virtio: devices in its places have virtio's legacy interface as well (QEMU:
        ``hw/virtio/virtio-pci.c``, ``virtio_pci_realize``: not on a PCI Express bus).
    """

    name: str
    qemu: str
    description: str
    versions: str
    places: tuple[Place, ...]
    fixed_place: FixedPlace
    eject: AcpiEject | SlotPowerOff
    bus_path: str
    ram_id: str
    consoles: tuple[str, str]
    arguments: tuple[str, ...] = ()
    place_arguments: tuple[str, ...] = ()
    acpi_root_ports: str = ""
    removal_delay_s: float = 0.0
    legacy_virtio: bool = False

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
        """The ``bus`` and ``addr`` properties of the hotpluggable place ``slot``.

        Addresses are explicit, so that a destination has each device where its source had it.

        :raises UsageError: when there is no such place.
        """
        if not 0 <= slot < len(self.places):
            raise UsageError(f"machine {self.name} has places 0 to {len(self.places) - 1}, not {slot}")
        return {"bus": self.places[slot].bus, "addr": self.places[slot].addr}

    def function(self, slot: int) -> str:
        """Where a guest lists what is in the place ``slot``: a pattern in ``/sys/bus/pci/devices``."""
        return self.places[slot].function
