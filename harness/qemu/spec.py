"""What to start, as frozen data: a machine and its shares. Nothing here touches the host."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from harness.errors import UsageError
from harness.qemu.binary import QemuInstall
from harness.qemu.machine_types.machine_type import MachineType

#: A device's property. Since 10.0 ``device_add`` takes no text for a number or a truth value (QEMU:
#: ``system/qdev-monitor.c``, ``qmp_device_add``).
Value = str | bool | int
#: MiB of memory of a machine that runs no guest kernel: room for a raw client's ring and messages.
_MEMORY_WITHOUT_KERNEL_MIB = 128


class Device(Protocol):
    """A device that can be plugged and unplugged: what QEMU has to be given. :class:`Share` is one.

    :class:`harness.guest.device.GuestDevice` adds how the guest uses it.
    """

    @property
    def id(self) -> str:
        """The device's id, in ``device_add`` and in ``/machine/peripheral``."""

    @property
    def slot(self) -> int:
        """The number of the hotpluggable place that the device takes."""

    def check(self) -> None:
        """:raises UsageError: when the host lacks what the device needs. Called before a launch."""

    def declared(self) -> Iterable[tuple[str, Mapping[str, Value]]]:
        """The device's backend: what each machine needs on its command line before the device can be plugged.

        These are options with their properties, such as ``("-fsdev", {"": "local", "id": "fs0", …})``. The
        first property is given without its name.
        """

    def device(self, machine_type: MachineType) -> Mapping[str, Value]:
        """The properties of the device: for ``device_add``, and for ``-device``; the first is ``driver``."""


@dataclass(frozen=True)
class Share:
    """An export: an ``-fsdev`` declared at launch, and the virtio-9p device that offers it.

    :param id: the device's id; its fsdev is called ``fs-``\\ *id*.
    :param path: the exported folder on the host.
    :param mount_tag: at most 31 bytes (QEMU: ``hw/9pfs/9p.h``, ``MAX_TAG_LEN`` with its NUL).
    :param slot: which of the machine's hotpluggable places it takes.
    :param driver: the device, by its name on PCI (:meth:`.MachineType.driver`).
    :param device_options: further properties of the device, or others than it would have.
    :param fsdriver: ``local``, or ``synth``: files that QEMU makes up (QEMU: ``hw/9pfs/9p-synth.c``).
    :param fsdev_of: the id of another share whose fsdev it uses as well; it then has no own fsdev.
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
        """:raises UsageError: when the share's path is not a folder that exists."""
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
        """The properties of the share's device: for ``device_add``, and for ``-device``.

        No tag, no such property.
        """
        tag = {"mount_tag": self.mount_tag} if self.mount_tag else {}
        return {
            "driver": machine_type.driver(self.driver),
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
    :param cpu: ``-cpu``; empty for the architecture's (:attr:`.Architecture.cpu`).
    :param shares: the pool of exports; every one gets an ``-fsdev``, because QEMU has no ``fsdev_add``.
    :param devices: other devices that can be plugged; the command line has the backend of each.
    :param plugged: ids of the shares and devices that are plugged by the command line.
    :param disk: an empty qcow2; each source gets a copy, which its destinations go on with.
    :param incoming: start with ``-incoming defer`` and wait for a migration stream.
    :param from_template: what it waits for is a template's stream.
    :param memory_file: where the guest's memory is, if not QEMU's own.
    :param firmware: the file with its firmware, if not the one that QEMU chooses.
    :param boots: whether it boots a kernel; without one the firmware is all that runs.
    :param monitor: whether it has a second QMP socket, for people.
    :param extra: further arguments, verbatim, at the end.
    """

    name: str
    qemu: QemuInstall
    machine_type: MachineType
    accel: str
    boot: Boot
    disk: Path
    memory_mib: int = 256
    cpu: str = ""
    shares: tuple[Share, ...] = ()
    devices: tuple[Device, ...] = ()
    plugged: frozenset[str] = frozenset()
    incoming: bool = False
    from_template: bool = False
    memory_file: MemoryFile | None = None
    firmware: Path | None = None
    boots: bool = True
    monitor: bool = False
    extra: tuple[str, ...] = ()

    def without_kernel(self) -> MachineSpec:
        """The spec of the same machine without a guest kernel, for a machine whose CPU never runs one.

        QEMU copies kernel and initramfs into the guest's memory when it starts, so every migration stream and
        snapshot of the machine would have them: some 80 MB.
        """
        return replace(self, boots=False, memory_mib=_MEMORY_WITHOUT_KERNEL_MIB)

    def destination(self, name: str, *, plugged: frozenset[str]) -> MachineSpec:
        """The spec of a migration's destination for this machine: the same, but for its name, waiting.

        :param plugged: ids of the devices, of shares and others, that the source has at that time.
        """
        return replace(self, name=name, plugged=plugged, incoming=True, from_template=False, memory_file=None)

    def restored(self, memory: Path | None) -> MachineSpec:
        """The spec of the same machine, waiting for the stream of a template.

        :param memory: the file with the guest's memory, if that is not in the stream. Where the machine
            :attr:`shares_memory` it is written to.
        """
        file = MemoryFile(memory, share=self.shares_memory) if memory else None
        return replace(self, incoming=True, from_template=True, memory_file=file)

    def booted(self) -> MachineSpec:
        """The spec of the same machine, booting its guest itself if it was to be restored."""
        if not self.from_template:
            return self
        return replace(self, incoming=False, from_template=False, memory_file=None)

    @property
    def shares_memory(self) -> bool:
        """Whether a device's backend maps the guest's memory: a device that has ``shares_memory``, true."""
        return any(getattr(device, "shares_memory", False) for device in self.devices)

    @property
    def pluggable(self) -> tuple[Device, ...]:
        """Everything in a spec that can be plugged: the shares and the other devices."""
        return (*self.shares, *self.devices)

    @property
    def plugged_drivers(self) -> dict[str, str]:
        """The driver of each device that is plugged by the command line, by its id."""
        devices = (one for one in self.pluggable if one.id in self.plugged)
        return {one.id: str(one.device(self.machine_type)["driver"]) for one in devices}

    def share(self, share_id: str) -> Share:
        """:raises UsageError: when no share of the spec's pool has that id."""
        for share in self.shares:
            if share.id == share_id:
                return share
        known = ", ".join(share.id for share in self.shares) or "none"
        raise UsageError(f"machine {self.name} has no share {share_id!r} (it has: {known})")
