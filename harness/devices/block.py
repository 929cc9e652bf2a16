"""``virtio-blk-pci``: a disk with a raw image file, in which the host reads what the guest has written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UsageError, Violation
from harness.guest.commands import Commands
from harness.guest.device import sysfs_folder
from harness.guest.guest import Guest
from harness.guest.job import Job
from harness.guest.mount import host_sha256
from harness.holds.hold import FSYNC, Held, Hold
from harness.qemu.machine_types.machine_type import MachineType
from harness.qemu.spec import Value
from harness.testbed import Testbed

#: The size of the disk; it takes several requests to write it.
_SIZE_KIB = 1024


@dataclass(frozen=True)
class BlockDevice:
    """A disk of 1 MiB; made by :meth:`create`.

    :param path: its raw image.
    :param hold: keeps the guest's flush in flight, by holding QEMU's ``fdatasync`` of the image
        (QEMU: ``block/file-posix.c``, ``handle_aiocb_flush``, in a worker thread).
    """

    id: str
    slot: int
    path: Path
    hold: Hold | None = None
    modules: tuple[str, ...] = ("virtio_blk",)

    @classmethod
    def create(cls, testbed: Testbed, *, slot: int = 0, hold: Hold | None = None) -> BlockDevice:
        """Make a disk with a new image in the testbed's folder."""
        path = testbed.folder / f"blk{slot}.img"
        path.write_bytes(bytes(_SIZE_KIB << 10))
        return cls(f"blk{slot}", slot, path, hold)

    def check(self) -> None:
        """Check that the disk's image file exists."""
        if not self.path.is_file():
            raise UsageError(f"disk {self.id}: {self.path}: no such file")

    def declared(self) -> Iterator[tuple[str, Mapping[str, Value]]]:
        """The disk's backend: a node of the block graph (``-blockdev``, since 2.9)."""
        file = {"file.driver": "file", "file.filename": str(self.path)}
        yield "-blockdev", {"": "raw", "node-name": f"node-{self.id}", **file}

    def device(self, machine_type: MachineType) -> Mapping[str, Value]:
        """The properties of the disk's ``virtio-blk-pci``: see :class:`~harness.qemu.spec.Device`."""
        place = machine_type.place(self.slot)
        return {
            "driver": machine_type.driver("virtio-blk-pci"),
            "id": self.id,
            "drive": f"node-{self.id}",
            **place,
        }

    def listed(self, guest: Commands) -> bool:
        """Whether the disk has a file in the guest's ``/dev``.

        The guest's kernel removes it before it waits for requests in flight (kernel: ``block/genhd.c``,
        ``del_gendisk``, ``device_del`` before ``blk_mq_freeze_queue_wait``).
        """
        return guest.run(f"[ -b {self._node(guest)} ]").returncode == 0

    def _node(self, guest: Commands) -> str:
        """A shell expression for the path of the disk in the guest."""
        return f'"/dev/$(ls {sysfs_folder(guest.machine, self)}/virtio*/block 2>/dev/null)"'

    def use(self, guest: Commands) -> None:
        """Let the guest write the whole disk, drop its cache and read the disk again.

        :raises Violation: when the guest or the host reads other bytes than the guest has written.
        """
        node = self._node(guest)
        summed = guest.succeed(
            f"disk={node}; dd if=/dev/urandom of=/tmp/w bs=1k count={_SIZE_KIB} 2>/dev/null && "
            "dd if=/tmp/w of=$disk bs=64k conv=fsync 2>/dev/null && blockdev --flushbufs $disk && "
            "sha256sum < /tmp/w && sha256sum < $disk; rm /tmp/w"
        )
        written, read = (line.split()[0] for line in summed.splitlines())
        for side, seen in {"host": host_sha256(self.path), "guest": read}.items():
            if seen != written:
                raise Violation(f"the {side} reads other bytes on disk {self.id} than the guest wrote")

    @contextmanager
    def request_in_flight(self, guest: Guest) -> Iterator[HeldFlush]:
        """Keep a flush in flight: the guest writes a block and syncs it; QEMU's ``fdatasync`` is held.

        :raises UsageError: when the disk was made without a hold.
        """
        if self.hold is None:
            raise UsageError(f"disk {self.id} was made without a hold, which keeps a request in flight")
        with self.hold.requests(self, *FSYNC) as held:
            copied = f"dd if=/dev/urandom of={self._node(guest)} bs=4k count=1 conv=fsync"
            writer = Job(guest, copied, f"writing to {self.id}")
            held.wait_caught()
            yield HeldFlush(held, writer)


class HeldFlush:
    """A flush in flight, and the guest's process that waits for it.

    :ivar writer: the guest's process; it has to end with 0 after the flush was answered.
    """

    def __init__(self, held: Held, writer: Job) -> None:
        self._held, self.writer = held, writer

    def waiting(self) -> None:
        """The witness that the disk's flush is in flight; see :class:`.RequestInFlight`."""
        self._held.waiting()

    def release(self) -> None:
        """Let the disk's flush be answered; see :class:`.RequestInFlight`."""
        self._held.release()
