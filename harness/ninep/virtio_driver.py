"""A driver for one virtio device over qtest, without a guest kernel: PCI, registers, and one virtqueue.

It needs machine type ``pc``, where the device has virtio's legacy interface on an I/O port.

Sources: virtio 1.2, 4.1.4.8 and 2.7 (legacy interfaces).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from harness.channel.qtest import Qtest
from harness.errors import GuestError, UsageError, Violation
from harness.qemu.machine import Machine
from harness.qemu.machine_types.machine_type import SLOTS
from harness.qemu.spec import Share

_CONFIG_ADDRESS, _CONFIG_DATA = 0xCF8, 0xCFC
_IO_BASE, _IO_SIZE = 0xC000, 0x40
#: PCI: the register of the command, and its bits: the device answers at its I/O ports, and at its addresses;
#: it accesses memory.
COMMAND, IO_SPACE, MEMORY_SPACE, BUS_MASTER = 0x04, 1, 2, 4
#: The guest address from which on memory is divided among the devices.
_MEMORY_BASE = 0x400000
#: Bytes of the buffer for a request, and of that for its answer; more than a 9p session's msize.
REQUEST_SIZE = 0x4000
_PAGE = 4096
# Offsets in virtio's legacy registers.
_HOST_FEATURES, _ISR, _DEVICE_CONFIG = 0, 19, 20  # The last one while MSI-X is disabled.
_GUEST_FEATURES, _QUEUE_PFN, _QUEUE_SIZE, _QUEUE_SELECT, _QUEUE_NOTIFY, _STATUS = 4, 8, 12, 14, 16, 18
_DRIVER_OK = 7
#: QEMU: ``hw/9pfs/9p.h``, ``MAX_TAG_LEN`` without its NUL.
_LONGEST_TAG = 31
#: Flags of a descriptor: another one follows; the device writes to the buffer; it refers to a table of
#: descriptors.
NEXT, WRITE, INDIRECT = 1, 2, 4


@dataclass(frozen=True)
class Descriptor:
    """A virtqueue descriptor (virtio 1.2, 2.7.5): a buffer, or with :data:`INDIRECT` a table of descriptors.

    :ivar next: with :data:`NEXT`, the index of the next descriptor of the chain.
    """

    address: int
    size: int
    flags: int = 0
    next: int = 0

    def __bytes__(self) -> bytes:
        return struct.pack("<QIHH", self.address, self.size, self.flags, self.next)


@dataclass(frozen=True)
class Layout:
    """The layout of one device's memory, as offsets in bytes from its start.

    The ring has virtio's legacy layout (virtio 1.2, 2.7.2). It is followed by the buffers, one for each
    descriptor. A request takes two consecutive buffers.

    :ivar max_in_flight: the number of requests that fit in.
    """

    available: int
    used: int
    buffers: int
    max_in_flight: int

    @classmethod
    def of(cls, queue_size: int, room: int) -> Layout:
        """The layout of a queue with ``queue_size`` descriptors in ``room`` bytes."""
        available = 16 * queue_size
        used = _aligned(available + 6 + 2 * queue_size)
        buffers = _aligned(used + 6 + 8 * queue_size)
        return cls(available, used, buffers, min(queue_size // 2, (room - buffers) // (2 * REQUEST_SIZE)))


def _aligned(offset: int) -> int:
    return offset + _PAGE - 1 & ~(_PAGE - 1)


class VirtioDriver:
    """A driver for the virtio device of one share.

    The device uses INTx interrupts, as MSI-X is never enabled.

    :ivar addr: the device's slot on the PCI bus.
    :ivar queue_size: the number of descriptors of the ring.
    :ivar max_in_flight: how many requests can be in flight.
    """

    def __init__(self, qtest: Qtest, machine: Machine, share: Share) -> None:
        self._qtest, self._machine, self.share = qtest, machine, share
        self.addr = int(str(share.device(machine.spec.machine_type)["addr"]), 16)
        self._io = _IO_BASE + share.slot * _IO_SIZE
        room = (machine.spec.memory_mib << 20) - _MEMORY_BASE
        self._room = room // SLOTS & ~(_PAGE - 1)
        self._memory = _MEMORY_BASE + share.slot * self._room
        #: The number of requests sent.
        self._sent = 0
        #: The heads of the requests without an answer.
        self._in_flight: set[int] = set()
        #: The length that QEMU gave for the last answer, by the head of the request.
        self._written: dict[int, int] = {}
        #: The number of entries of the used ring that were read.
        self._used_seen = 0
        self._set_up()

    def _set_up(self) -> None:
        """Configure the device's I/O port and its queue (legacy interface: one page number for the ring)."""
        with self._qtest.together():
            self.write_config(0x10, self._io | 1)
            self.set_bus_master(True)
            self.reset()
            self._qtest.outl(self._io + _GUEST_FEATURES, 0)
            self._qtest.outw(self._io + _QUEUE_SELECT, 0)
        self.queue_size = self._qtest.inw(self._io + _QUEUE_SIZE)
        if not 1 < self.queue_size <= 1024:
            raise GuestError(
                f"{self.share.id}: no virtqueue behind port {self._io:#x}; is the device plugged in?"
            )
        layout = Layout.of(self.queue_size, self._room)
        self._available, self._used = self._memory + layout.available, self._memory + layout.used
        self._buffers = self._memory + layout.buffers
        self.max_in_flight = layout.max_in_flight
        with self._qtest.together():
            self._qtest.write(self._available, bytes(6 + 2 * self.queue_size))
            self._qtest.write(self._used, bytes(8))
            self._qtest.outl(self._io + _QUEUE_PFN, self._memory >> 12)
            self._qtest.outb(self._io + _STATUS, _DRIVER_OK)

    def read_config(self, register: int) -> int:
        """Four bytes of the PCI configuration space."""
        self._qtest.outl(_CONFIG_ADDRESS, 0x80000000 | self.addr << 11 | register)
        return self._qtest.inl(_CONFIG_DATA)

    def write_config(self, register: int, value: int) -> None:
        """Write four bytes of the PCI configuration space."""
        self._qtest.outl(_CONFIG_ADDRESS, 0x80000000 | self.addr << 11 | register)
        self._qtest.outl(_CONFIG_DATA, value)

    def set_bus_master(self, on: bool) -> None:
        """Let the device access memory, or not (PCI: the command register). Its I/O ports are on."""
        self.write_config(COMMAND, IO_SPACE | BUS_MASTER if on else IO_SPACE)

    def acknowledge(self) -> bool:
        """Read the device's ISR, which deasserts its interrupt; returns whether it was asserted."""
        return bool(self._qtest.inb(self._io + _ISR) & 1)

    def reset(self) -> None:
        """Reset the device: write 0 to its status register."""
        self._qtest.outb(self._io + _STATUS, 0)

    def registers(self) -> dict[str, int | str]:
        """The registers that can be read without changing the device, by name.

        These are virtio's legacy registers (virtio 1.2, 4.1.4.8), the mount tag, and the PCI configuration
        space.
        """
        words: dict[str, int | str] = {
            "host features": self._qtest.inl(self._io + _HOST_FEATURES),
            "guest features": self._qtest.inl(self._io + _GUEST_FEATURES),
            "queue's page": self._qtest.inl(self._io + _QUEUE_PFN),
            "queue's size": self._qtest.inw(self._io + _QUEUE_SIZE),
            "selected queue": self._qtest.inw(self._io + _QUEUE_SELECT),
            "status": self._qtest.inb(self._io + _STATUS),
            "mount tag": self.tag(),
        }
        return words | {f"config {at:#04x}": self.read_config(at) for at in range(0, 0x100, 4)}

    def tag(self) -> str:
        """The mount tag in the device's configuration space (kernel: ``include/uapi/linux/virtio_9p.h``).

        :raises GuestError: when there is none: nothing answers at the device's port.
        """
        length = self._qtest.inw(self._io + _DEVICE_CONFIG)
        if length > _LONGEST_TAG:
            raise GuestError(
                f"{self.share.id}: no mount tag behind port {self._io:#x}, its length is {length}"
            )
        at = self._io + _DEVICE_CONFIG + 2
        return bytes(self._qtest.inb(at + number) for number in range(length)).decode()

    def read_device_config(self, at: int, size: int) -> int:
        """``size`` bytes (1, 2 or 4), from the offset ``at``, of the device's configuration space."""
        read = {1: self._qtest.inb, 2: self._qtest.inw, 4: self._qtest.inl}[size]
        return read(self._io + _DEVICE_CONFIG + at)

    def break_device(self) -> None:
        """Make a descriptor available that the ring does not have, so that QEMU marks the device as broken.

        QEMU then ignores it until it is reset (``hw/virtio/virtio.c``, ``virtqueue_get_head``).
        """
        self.make_available(self.queue_size)
        self._in_flight.remove(self.queue_size)  # It is never answered.

    @property
    def ring(self) -> int:
        """The address of the ring's descriptor table."""
        return self._memory

    def buffer(self, index: int) -> int:
        """The address of the buffer of the descriptor ``index``."""
        return self._buffers + index * REQUEST_SIZE

    def write_descriptors(self, index: int, *descriptors: Descriptor) -> None:
        """Write ``descriptors`` to the ring's descriptor table, from ``index`` on."""
        self._qtest.write(self._memory + 16 * index, b"".join(map(bytes, descriptors)))

    def make_available(self, head: int, *, notify: bool = True) -> None:
        """Put the chain that begins at ``head`` into the available ring, and by default notify QEMU."""
        number, self._sent = self._sent, self._sent + 1
        self._in_flight.add(head)
        self._qtest.write(self._available + 4 + 2 * (number % self.queue_size), struct.pack("<H", head))
        self._qtest.write(self._available + 2, struct.pack("<H", number + 1 & 0xFFFF))
        if notify:
            self.notify()

    def claim(self, requests: int) -> None:
        """Let the available ring's index say that so many more requests are there; do not notify QEMU."""
        self._qtest.write(self._available + 2, struct.pack("<H", self._sent + requests & 0xFFFF))

    def notify(self, queue: int = 0) -> None:
        """Notify QEMU of new entries in a queue."""
        self._qtest.outw(self._io + _QUEUE_NOTIFY, queue)

    def set_queue(self, queue: int, page: int) -> None:
        """Set the page of a queue's ring; the device need not have such a queue."""
        self._qtest.outw(self._io + _QUEUE_SELECT, queue)
        self._qtest.outl(self._io + _QUEUE_PFN, page)

    def _free_head(self) -> int:
        """The first descriptor of a free pair of buffers, in rotation.

        :raises UsageError: when all are in use.
        """
        turn = [2 * ((self._sent + step) % self.max_in_flight) for step in range(self.max_in_flight)]
        if turn[0] in self._in_flight:
            self._collect()
        free = [head for head in turn if head not in self._in_flight]
        if not free:
            raise UsageError(
                f"{self.share.id}: {self.max_in_flight} requests are in flight, and its ring of "
                f"{self.queue_size} descriptors has no room for more; wait for an answer first"
            )
        return free[0]

    def answered(self) -> int:
        """The number of requests in the ring that were answered so far."""
        return self._answered(self._qtest.read(self._used + 2, 2))

    def _answered(self, index: bytes) -> int:
        """The number of requests in the ring that were answered, from the used ring's index.

        The index has 16 bits.
        """
        return self._used_seen + (int.from_bytes(index, "little") - self._used_seen & 0xFFFF)

    def expect_answered(self, count: int) -> None:
        """:raises Violation: when the number of requests in the ring answered so far is not ``count``."""
        if (seen := self.answered()) != count:
            raise Violation(f"{self.share.id}: {seen} requests were answered, expected {count}")

    def _collect(self) -> None:
        """Process new entries of the used ring; answers come in any order.

        :raises Violation: when an entry is for a request that is not in flight.
        """
        while True:
            entry_at = self._used + 4 + 8 * (self._used_seen % self.queue_size)
            index, entry = self._qtest.read_each((self._used + 2, 2), (entry_at, 8))
            if self._answered(index) == self._used_seen:
                return
            head, written = struct.unpack("<II", entry)
            self._used_seen += 1
            if head not in self._in_flight:
                raise Violation(
                    f"{self.share.id}: the request at descriptor {head} was answered twice, or never sent"
                )
            self._in_flight.remove(head)
            self._written[head] = written

    def expect_none_in_flight(self) -> None:
        """:raises Violation: when a request of this client was not answered, or was answered twice."""
        self._collect()
        if self._in_flight:
            raise Violation(f"{self.share.id}: {len(self._in_flight)} requests were not answered")
