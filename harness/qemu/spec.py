"""What to start, as frozen data: a machine, its type, its shares. Nothing here touches the host."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from harness.errors import Unsupported, UsageError
from harness.qemu.binary import QemuInstall, require_property

#: Hotpluggable places a machine offers; each holds one device.
SLOTS = 4
_FIRST_ADDR = 0x10
#: A device's property. Since 10.0 ``device_add`` takes no text for a number or a truth value (QEMU:
#: ``system/qdev-monitor.c``, ``qmp_device_add``).
Value = str | bool | int


@dataclass(frozen=True)
class MachineType:
    """A machine type together with the way PCI hotplug works on it.

    ``name`` is the harness's name, ``qemu`` QEMU's (``-machine``). ``native`` means PCIe hotplug by the
    root port itself instead of ACPI (QEMU: ``hw/acpi/ich9.c``, ``hw/pci/pcie.c``).
    """

    name: str
    qemu: str
    description: str
    native: bool = False

    @property
    def has_root_ports(self) -> bool:
        """Whether devices sit behind ``pcie-root-port`` devices."""
        return "q35" in self.qemu

    def known_to_all(self, *known: Iterable[str]) -> MachineType:
        """This type in the newest of its versions that is in each of ``known``, such as ``pc-q35-7.2``.

        Machines of another QEMU understand each other when they are of one version (QEMU:
        ``docs/devel/migration/compatibility.rst``).

        :raises Unsupported: when there is none.
        """
        pattern = re.compile(rf"pc-{'q35' if self.has_root_ports else 'i440fx'}-(\d+)\.(\d+)")
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
        if not 0 <= slot < SLOTS:
            raise UsageError(f"machine {self.name} has places 0 to {SLOTS - 1}, not {slot}")
        if self.has_root_ports:
            return {"bus": f"rp{slot}", "addr": "0x0"}
        return {"bus": "pci.0", "addr": hex(_FIRST_ADDR + slot)}

    def function(self, slot: int) -> str:
        """Where a guest lists what is in the place ``slot``: a pattern in ``/sys/bus/pci/devices``."""
        first = f"0000:00:{_FIRST_ADDR + slot:02x}.0"
        # A root port has other children as well: its services, 0000:00:10.0:pcie001 and so on.
        return f"{first}/0000:??:??.?" if self.has_root_ports else first


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


#: One for each machine type: each forbids it in another way.
FIXED_PLACES: Mapping[str, FixedPlace] = {
    # The property came with 5.2 (QEMU: hw/acpi/piix4.c).
    "pc": FixedPlace(
        "pci.0",
        "0x18",
        ("-global", "PIIX4_PM.acpi-root-pci-hotplug=off"),
        ("PIIX4_PM", "acpi-root-pci-hotplug"),
    ),
    "q35": FixedPlace("pcie.0", "0x18"),
    "q35-pcie": FixedPlace(
        "fixed",
        "0x0",
        ("-device", "pcie-root-port,id=fixed,chassis=9,slot=9,hotplug=off,bus=pcie.0,addr=0x18"),
    ),
}
MACHINE_TYPES: Mapping[str, MachineType] = {
    kind.name: kind
    for kind in (
        MachineType("pc", "pc", "i440fx with PIIX4 ACPI hotplug"),
        MachineType("q35", "q35", "Q35, ACPI hotplug through a root port"),
        MachineType("q35-pcie", "q35", "Q35, native PCIe hotplug", native=True),
    )
}


class Device(Protocol):
    """A device that is plugged and unplugged, as QEMU needs to know it; :class:`Share` is one.

    What the guest makes of it is :class:`harness.guest.device.GuestDevice`.
    """

    @property
    def id(self) -> str:
        """The device's id, in ``device_add`` and in ``/machine/peripheral``."""

    @property
    def slot(self) -> int:
        """Which of the machine's hotpluggable places it takes."""

    def check(self) -> None:
        """:raises UsageError: when the host lacks what the device needs. Called before a launch."""

    def declared(self) -> Iterable[tuple[str, Mapping[str, Value]]]:
        """What each machine has on its command line before the device can be plugged: its backend.

        Options with their properties, such as ``("-fsdev", {"": "local", "id": "fs0", …})``. The first
        property is given without its name.
        """

    def device(self, machine_type: MachineType) -> Mapping[str, Value]:
        """The properties of the device: for ``device_add``, and for ``-device``; the first is ``driver``."""


@dataclass(frozen=True)
class Share:
    """An export: an ``-fsdev`` declared at launch, and the ``virtio-9p-pci`` device that offers it.

    :param id: the device's id; its fsdev is called ``fs-``\\ *id*.
    :param path: the exported folder on the host.
    :param mount_tag: at most 31 bytes (QEMU: ``hw/9pfs/9p.h``, ``MAX_TAG_LEN`` with its NUL).
    :param slot: which of the machine's hotpluggable places it takes.
    :param device_options: further properties of the device, or others than it would have.
    :param fsdriver: ``local``, or ``synth``: files that QEMU makes up (QEMU: ``hw/9pfs/9p-synth.c``).
    :param fsdev_of: the id of another share whose fsdev it uses as well; it then has none of its own.
    """

    id: str
    path: Path
    mount_tag: str
    slot: int = 0
    security_model: str = "none"
    driver: str = "virtio-9p-pci"
    fsdev_options: Mapping[str, str] = field(default_factory=dict)
    device_options: Mapping[str, Value] = field(default_factory=dict)
    fsdriver: str = "local"
    fsdev_of: str | None = None

    @property
    def fsdev(self) -> str:
        """The id of the share's ``-fsdev``."""
        return f"fs-{self.fsdev_of or self.id}"

    def beside(self, other: Share) -> Share:
        """This device, offering ``other``'s export through ``other``'s fsdev."""
        return replace(self, path=other.path, fsdev_options={}, fsdev_of=other.id)

    def check(self) -> None:
        """:raises UsageError: when the path is not a folder that exists."""
        if not self.path.exists():
            raise UsageError(f"share {self.id}: {self.path}: no such folder")
        if not self.path.is_dir():
            raise UsageError(f"share {self.id}: {self.path}: not a folder; 9p exports folders")

    def declared(self) -> Iterable[tuple[str, Mapping[str, Value]]]:
        """The share's ``-fsdev``, unless it uses another share's."""
        if self.fsdev_of is not None:
            return
        local = {"path": str(self.path), "security_model": self.security_model}
        own = local if self.fsdriver == "local" else {}
        yield "-fsdev", {"": self.fsdriver, "id": self.fsdev, **own, **self.fsdev_options}

    def device(self, machine_type: MachineType) -> dict[str, Value]:
        """The properties of the device: for ``device_add``, and for ``-device``; no tag, no such property."""
        tag = {"mount_tag": self.mount_tag} if self.mount_tag else {}
        return {
            "driver": self.driver,
            "id": self.id,
            "fsdev": self.fsdev,
            **tag,
            **machine_type.place(self.slot),
            **self.device_options,
        }


@dataclass(frozen=True)
class Boot:
    """What the guest boots: kernel, initramfs, kernel command line.

    :param bzimage: the kernel as it was packed, for a QEMU that cannot boot it unpacked.
    """

    kernel: Path
    initramfs: Path
    cmdline: str
    bzimage: Path


@dataclass(frozen=True)
class MemoryFile:
    """The guest's memory in a file: written through when ``share``, else a private copy of what it holds."""

    path: Path
    share: bool


@dataclass(frozen=True)
class MachineSpec:
    """One QEMU process, described.

    :param name: its actor name in the history: ``source``, ``destination-1``, …
    :param accel: ``tcg`` or ``kvm``.
    :param cpu: the plainest model, so that any two QEMUs agree on it; without RDRAND the guest's sshd waits
        a second for entropy.
    :param shares: the pool of exports; every one gets an ``-fsdev``, because QEMU has no ``fsdev_add``.
    :param devices: other devices that can be plugged; what they declare is on every machine's command line.
    :param plugged: ids of the shares and devices that are plugged by the command line.
    :param disk: an empty qcow2; each source gets a copy, which its destinations go on with.
    :param incoming: start with ``-incoming defer`` and wait for a migration stream.
    :param from_template: what it waits for is a template's stream.
    :param memory_file: where the guest's memory is, if not QEMU's own.
    :param extra: further arguments, verbatim, at the end.
    """

    name: str
    qemu: QemuInstall
    machine_type: MachineType
    accel: str
    boot: Boot
    disk: Path
    memory_mib: int = 256
    cpu: str = "qemu64,+rdrand"
    shares: tuple[Share, ...] = ()
    devices: tuple[Device, ...] = ()
    plugged: frozenset[str] = frozenset()
    incoming: bool = False
    from_template: bool = False
    memory_file: MemoryFile | None = None
    extra: tuple[str, ...] = ()

    def destination(self, name: str, *, plugged: frozenset[str]) -> MachineSpec:
        """The machine that a migration of this one arrives at: the same, but for its name, waiting.

        :param plugged: ids of the devices, of shares and others, that the source has at that time.
        """
        return replace(self, name=name, plugged=plugged, incoming=True, from_template=False, memory_file=None)

    def restored(self, memory: Path | None) -> MachineSpec:
        """The same machine, waiting for the stream of a template.

        :param memory: the file with the guest's memory, if that is not in the stream.
        """
        private = MemoryFile(memory, share=False) if memory else None
        return replace(self, incoming=True, from_template=True, memory_file=private)

    def booted(self) -> MachineSpec:
        """The same machine, booting its guest itself if it was to be restored."""
        if not self.from_template:
            return self
        return replace(self, incoming=False, from_template=False, memory_file=None)

    @property
    def pluggable(self) -> tuple[Device, ...]:
        """Everything that can be plugged: the shares and the other devices."""
        return (*self.shares, *self.devices)

    def share(self, share_id: str) -> Share:
        """:raises UsageError: when no share of the pool has that id."""
        for share in self.shares:
            if share.id == share_id:
                return share
        known = ", ".join(share.id for share in self.shares) or "none"
        raise UsageError(f"machine {self.name} has no share {share_id!r} (it has: {known})")
