"""A raw 9p client: it drives the virtio device over qtest, without a guest kernel (see :mod:`.messages`).

It can send messages that no kernel sends. As the machine runs no guest, the whole life cycle of a device
takes milliseconds. It needs machine type ``pc``, where the device has virtio's legacy interface on an I/O
port.

Sources: virtio 1.2, 4.1.4.8 and 2.7 (legacy interfaces); kernel ``include/net/9p/9p.h``; QEMU
``hw/9pfs/9p.c``; the 9P2000.L page of diod.
"""

from __future__ import annotations

import copy
import errno
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from harness.channel.qtest import TIMEOUT_S, Qtest
from harness.errors import GuestError, UsageError, Violation
from harness.ninep import messages as p9
from harness.ninep.messages import T
from harness.qemu.acpi import eject_writes
from harness.qemu.deletion import Deletion
from harness.qemu.machine import Machine
from harness.qemu.machine_types.machine_type import SLOTS
from harness.qemu.spec import MachineSpec, Share
from harness.testbed import Testbed

MSIZE = 8192
_CONFIG_ADDRESS, _CONFIG_DATA = 0xCF8, 0xCFC
_IO_BASE, _IO_SIZE = 0xC000, 0x40
#: The guest address from which on memory is divided among the devices.
_MEMORY_BASE = 0x400000
#: Bytes of the buffer for a request, and of that for its answer; more than MSIZE.
_REQUEST_SIZE = 0x4000
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
_REPLY_TIMEOUT_S = 30.0


class NineError(GuestError):
    """QEMU answered with Rlerror, or Rerror; ``errno`` is its number."""

    def __init__(self, request: str, number: int) -> None:
        self.errno = number
        super().__init__(f"{request}: {errno.errorcode.get(number, number)}")


class FlushedError(GuestError):
    """QEMU returned a request without an answer, as the protocol demands for a request that was flushed."""


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
class Request:
    """A request in the ring: its tag, its type, and the index of its first descriptor."""

    tag: int
    kind: int
    head: int


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
        return cls(available, used, buffers, min(queue_size // 2, (room - buffers) // (2 * _REQUEST_SIZE)))


def _aligned(offset: int) -> int:
    return offset + _PAGE - 1 & ~(_PAGE - 1)


class RawGuest:
    """A machine whose CPU never runs (``-S``), with qtest access to its devices.

    :param plugged: the ids of the shares whose device is on QEMU's command line.
    :param arguments: further arguments for QEMU.
    :param change: changes the spec of the machine; a destination has that of its source.
    :param source: the machine that will be migrated to this one.
    :raises UsageError: on a machine type whose devices have no legacy interface.
    """

    def __init__(
        self,
        testbed: Testbed,
        *,
        name: str = "source",
        plugged: frozenset[str] = frozenset(),
        arguments: tuple[str, ...] = (),
        change: Callable[[MachineSpec], MachineSpec] = lambda spec: spec,
        source: RawGuest | None = None,
    ) -> None:
        if not testbed.cell.machine_type.legacy_virtio:
            raise UsageError(
                "a raw 9p client needs virtio's legacy interface, which only machine type pc has"
            )
        self.testbed = testbed
        #: Referenced until the end of the testbed: QEMU prints an error if its qtest connection is closed
        #: earlier.
        self._destinations: list[RawGuest] = []

        def with_qtest(spec: MachineSpec) -> MachineSpec:
            socket = f"unix:{self._path(spec)},server=on,wait=off"
            return replace(spec, extra=("-S", "-qtest", socket, "-qtest-log", "/dev/null", *arguments))

        if source is None:
            spec = change(testbed.spec(name=name, plugged=plugged))
            self.machine: Machine = testbed.launch(with_qtest(spec))
        else:
            self.machine = testbed.launch_destination(source.machine, with_qtest)
        answer_s = self.machine.timeout_scale.host_seconds(TIMEOUT_S)
        watch = self.machine.watch_process
        self.qtest = Qtest(self._path(self.machine.spec), timeout_s=answer_s, watch=watch)

    def _path(self, spec: MachineSpec) -> Path:
        return self.testbed.folder / f"{spec.name}.qtest"

    def destination(self) -> RawGuest:
        """Start the destination of a migration of this machine, with the same devices."""
        self._destinations.append(RawGuest(self.testbed, source=self))
        return self._destinations[-1]

    def plug(self, share: Share) -> RawDriver:
        """Plug in the device of ``share`` with ``device_add``, and initialise it."""
        self.machine.device_add(share)
        return self.driver(share)

    def driver(self, share: Share) -> RawDriver:
        """Initialise the device of ``share``, which is plugged in."""
        return RawDriver(self, share)

    def eject(self, share: Share) -> None:
        """Write the eject register, as a guest does at the end of an unplug or of its own accord.

        Waits for both DEVICE_DELETED events.

        :raises Violation: when one does not arrive.
        """
        with Deletion(self.machine, share.id) as deletion:
            self.request_eject(share)
            deletion.wait(timeout_s=_REPLY_TIMEOUT_S)

    def system_reset(self) -> None:
        """Run ``system_reset``, and wait for the RESET event."""
        with self.machine.qmp.listen("RESET") as events:
            self.machine.qmp.execute("system_reset")
            timeout_s = self.machine.timeout_scale.seconds(_REPLY_TIMEOUT_S)
            events.wait(what="RESET", timeout_s=timeout_s, watch=self.machine.watch_process)

    def request_eject(self, share: Share) -> None:
        """Write the eject register; returns when QEMU has processed the write, without waiting for events."""
        for port, value in eject_writes(self.machine, share):
            self.qtest.outl(port, value)


class RawDriver:
    """A driver for one virtio-9p device: PCI set-up, one virtqueue, requests and answers.

    The device uses INTx interrupts, as MSI-X is never enabled.

    :ivar addr: the device's slot on the PCI bus. :ivar fids: the fids of the session.
    :ivar protocol: the protocol version of the session.
    :ivar queue_size: the number of descriptors of the ring.
    :ivar max_in_flight: how many requests can be in flight.
    :ivar reply_timeout_s: how long an answer is waited for; seconds, before scaling.
    """

    reply_timeout_s: float = _REPLY_TIMEOUT_S

    def __init__(self, guest: RawGuest, share: Share) -> None:
        self._qtest, self._machine, self.share = guest.qtest, guest.machine, share
        self.addr = int(str(share.device(guest.machine.spec.machine_type)["addr"]), 16)
        self._io = _IO_BASE + share.slot * _IO_SIZE
        room = (guest.machine.spec.memory_mib << 20) - _MEMORY_BASE
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
        self.fids: set[int] = set()
        self.protocol = p9.VERSION
        self._set_up()

    def _set_up(self) -> None:
        """Configure the device's I/O port and its queue (legacy interface: one page number for the ring)."""
        with self._qtest.together():
            self.write_config(0x10, self._io | 1)
            self.write_config(0x04, 0x5)  # I/O space, bus master.
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

    def acknowledge(self) -> bool:
        """Read the device's ISR, which deasserts its interrupt; returns whether it was asserted."""
        return bool(self._qtest.inb(self._io + _ISR) & 1)

    def reset(self) -> None:
        """Reset the device: write 0 to its status register."""
        self._qtest.outb(self._io + _STATUS, 0)

    def moved_to(self, guest: RawGuest) -> RawDriver:
        """A copy of this driver for the device in ``guest``, where it was migrated to."""
        moved = copy.copy(self)
        moved._qtest, moved._machine = guest.qtest, guest.machine
        moved._in_flight, moved.fids = set(self._in_flight), set(self.fids)
        return moved

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

    def break_device(self) -> None:
        """Make a descriptor available that the ring does not have, so that QEMU marks the device as broken.

        QEMU then ignores it until it is reset (``hw/virtio/virtio.c``, ``virtqueue_get_head``).
        """
        self.make_available(self.queue_size)
        self._in_flight.remove(self.queue_size)  # It is never answered.

    def send(
        self,
        kind: int,
        body: bytes = b"",
        *,
        tag: int | None = None,
        size: int | None = None,
        reply_size: int = _REQUEST_SIZE,
        notify: bool = True,
    ) -> Request:
        """Put a request into the ring; do not wait for its answer.

        :param tag: the tag; by default a new one. :param size: the length in the header; by default the true
            one.
        :param reply_size: the size of the buffer for the answer in bytes.
        :param notify: notify the device. Otherwise it sees the request only with a later notification.
        :raises UsageError: when the ring is full, or the request is longer than its buffer.
        """
        # Neither 0 nor NOTAG (kernel: include/net/9p/9p.h).
        tag = self._sent % 0xFFFE + 1 if tag is None else tag
        message = struct.pack("<IBH", 7 + len(body) if size is None else size, kind, tag) + body
        if len(message) > _REQUEST_SIZE:
            raise UsageError(
                f"{self.share.id}: {_name(kind)} has {len(message)} bytes, and its buffer {_REQUEST_SIZE}"
            )
        head = self._free_head()
        out = self.buffer(head)
        with self._qtest.together():
            self._qtest.write(out, message)
            self.write_descriptors(
                head,
                Descriptor(out, len(message), NEXT, head + 1),
                Descriptor(out + _REQUEST_SIZE, reply_size, WRITE),
            )
            self.make_available(head, notify=notify)
        return Request(tag, kind, head)

    @property
    def ring(self) -> int:
        """The address of the ring's descriptor table."""
        return self._memory

    def buffer(self, index: int) -> int:
        """The address of the buffer of the descriptor ``index``."""
        return self._buffers + index * _REQUEST_SIZE

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
        """The number of requests that were answered so far."""
        return self._answered(self._qtest.read(self._used + 2, 2))

    def _answered(self, index: bytes) -> int:
        """The same, from the used ring's index, which has 16 bits."""
        return self._used_seen + (int.from_bytes(index, "little") - self._used_seen & 0xFFFF)

    def expect_answered(self, count: int) -> None:
        """:raises Violation: when the number of requests answered so far is not ``count``."""
        if (seen := self.answered()) != count:
            raise Violation(f"{self.share.id}: {seen} requests were answered, expected {count}")

    def wait_answer(self, request: Request, *, timeout_s: float | None = None) -> bytes:
        """Wait for the answer to ``request``, and return its body.

        :param timeout_s: seconds, before scaling; by default :attr:`reply_timeout_s`.
        :raises NineError: for Rlerror and Rerror.
        :raises FlushedError: when the request was returned without an answer.
        :raises GuestError: when type or tag of the answer do not match.
        :raises Violation: when the length in the answer is wrong. :raises WaitTimeout: when there is no
            answer.
        """
        self._machine.wait_until(
            lambda: self.is_answered(request),
            what=f"the answer to {_name(request.kind)} (tag {request.tag}) of {self.share.id}",
            timeout_s=self.reply_timeout_s if timeout_s is None else timeout_s,
            interval_s=0.001,
        )
        written = self._written[request.head]
        if not written:
            raise FlushedError(f"{_name(request.kind)} (tag {request.tag}) came back without an answer")
        message = self._qtest.read(self.buffer(request.head + 1), max(written, p9.HEADER))
        size, kind, tag = struct.unpack("<IBH", message[: p9.HEADER])
        body = message[p9.HEADER :]
        if size != written:
            raise Violation(
                f"the answer to {_name(request.kind)} has the length {size} in its header, "
                f"but {written} bytes"
            )
        if kind in (T.RLERROR, T.RERROR):
            # In Rerror, the errno follows the text.
            raise NineError(_name(request.kind), struct.unpack("<I", body[-4:])[0])
        if (kind, tag) != (request.kind + 1, request.tag):
            raise GuestError(
                f"{_name(request.kind)} (tag {request.tag}) was answered by type {kind}, tag {tag}"
            )
        return body

    def wait_dropped(self, request: Request, *, timeout_s: float = _REPLY_TIMEOUT_S) -> bool:
        """Wait until the device returns a request that was flushed; returns whether it has no answer.

        :raises WaitTimeout: when the device does not return it.
        """
        self._machine.wait_until(
            lambda: self.is_answered(request),
            what=f"the end of the flushed {_name(request.kind)} (tag {request.tag}) of {self.share.id}",
            timeout_s=timeout_s,
            interval_s=0.001,
        )
        return self._written[request.head] == 0

    def is_answered(self, request: Request) -> bool:
        """Whether QEMU has returned the request."""
        self._collect()
        return request.head not in self._in_flight

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

    def call(self, kind: int, body: bytes = b"") -> bytes:
        """Send a 9P request and wait for its answer."""
        return self.wait_answer(self.send(kind, body))

    def version(self, protocol: str = p9.VERSION) -> None:
        """Send Tversion, which begins a session, and ends the previous one."""
        self.call(T.VERSION, p9.version(MSIZE, protocol))
        self.protocol = protocol
        self.fids.clear()

    def attach(self, fid: int) -> None:
        """Send Tattach to the root of the export, as root."""
        self.call(T.ATTACH, p9.attach(fid))
        self.fids.add(fid)

    def walk(self, fid: int, new: int, *names: str) -> None:
        """Send Twalk, and wait for its answer."""
        self.call(T.WALK, p9.walk(fid, new, *names))
        self.fids.add(new)

    def create(self, fid: int, name: str) -> None:
        """Send Tlcreate: ``fid``, a directory, becomes the new open file."""
        self.call(T.LCREATE, p9.create(fid, name))

    def open(self, fid: int, flags: int = os.O_RDONLY) -> None:
        """Send Tlopen, and wait for its answer."""
        self.call(T.LOPEN, p9.open_(fid, flags))

    def write(self, fid: int, offset: int, data: bytes) -> int:
        """Send Twrite, and return how many bytes were written."""
        answer = self.call(T.WRITE, p9.write(fid, offset, data))
        return int(struct.unpack("<I", answer)[0])

    def read(self, fid: int, offset: int, count: int) -> bytes:
        """Send Tread, and return the data."""
        return self.call(T.READ, p9.read(fid, offset, count))[4:]

    def readdir(self, fid: int, *, count: int = 4096) -> bytes:
        """Send Treaddir from offset 0, and return its entries as they are in the message."""
        return self.call(T.READDIR, p9.read(fid, 0, count))[4:]

    def xattrwalk(self, fid: int, new: int, name: str = "") -> None:
        """Send Txattrwalk: ``new`` becomes the extended attribute ``name``, or the list of all attributes."""
        self.call(T.XATTRWALK, p9.xattrwalk(fid, new, name))
        self.fids.add(new)

    def clunk(self, fid: int) -> None:
        """Send Tclunk, and wait for its answer."""
        self.call(T.CLUNK, p9.fid(fid))
        self.fids.discard(fid)

    def clunk_all(self) -> None:
        """Clunk every fid of this session, the highest first, as a kernel's umount does."""
        for fid in sorted(self.fids, reverse=True):
            self.clunk(fid)

    def flush(self, old_tag: int, *, tag: int | None = None) -> None:
        """Send Tflush of the request with ``old_tag``, and wait for its answer."""
        self.wait_answer(self.send(T.FLUSH, p9.flush(old_tag), tag=tag))


def make_files(folder: Path, count: int) -> list[str]:
    """Create ``count`` small files on the host for a client's export; returns their names."""
    names = [f"file{number}" for number in range(count)]
    for name in names:
        (folder / name).write_text(name)
    return names


def _name(kind: int) -> str:
    return f"T{T(kind).name.lower()}" if kind in set(T) else f"request type {kind}"
