"""A raw 9p client: it sends 9P requests to a device without a guest kernel (see :mod:`.messages`).

It can send messages that no kernel sends. As the machine runs no guest, the whole life cycle of a device
takes milliseconds. The virtio device is driven by :mod:`.virtio_driver`.

Sources: kernel ``include/net/9p/9p.h``; QEMU ``hw/9pfs/9p.c``; the 9P2000.L page of diod.
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
from harness.ninep.virtio_driver import INDIRECT, NEXT, REQUEST_SIZE, WRITE, Descriptor, VirtioDriver
from harness.qemu.acpi import eject_writes
from harness.qemu.deletion import Deletion
from harness.qemu.machine import Machine
from harness.qemu.spec import MachineSpec, Share
from harness.testbed import Testbed

__all__ = [
    "INDIRECT",
    "MSIZE",
    "NEXT",
    "WRITE",
    "Descriptor",
    "FlushedError",
    "NineError",
    "RawDriver",
    "RawGuest",
    "Request",
    "make_files",
]

MSIZE = 8192
_REPLY_TIMEOUT_S = 30.0


class NineError(GuestError):
    """QEMU answered with Rlerror, or Rerror; ``errno`` is its number."""

    def __init__(self, request: str, number: int) -> None:
        self.errno = number
        super().__init__(f"{request}: {errno.errorcode.get(number, number)}")


class FlushedError(GuestError):
    """QEMU returned a request without an answer, as the protocol demands for a request that was flushed."""


@dataclass(frozen=True)
class Request:
    """A request in the ring: its tag, its type, and the index of its first descriptor."""

    tag: int
    kind: int
    head: int


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

        def with_qtest(spec: MachineSpec) -> MachineSpec:
            socket = f"unix:{self._path(spec)},server=on,wait=off"
            return replace(spec, extra=("-S", "-qtest", socket, "-qtest-log", "/dev/null", *arguments))

        if source is None:
            spec = change(testbed.spec(name=name, plugged=plugged).without_kernel())
            self.machine: Machine = testbed.launch(with_qtest(spec))
        else:
            self.machine = testbed.launch_destination(source.machine, with_qtest)
        answer_s = self.machine.timeout_scale.host_seconds(TIMEOUT_S)
        watch = self.machine.watch_process
        self.qtest = Qtest(self._path(self.machine.spec), timeout_s=answer_s, watch=watch)
        testbed.attach(self)  # The testbed keeps it, so that the connection is not closed earlier.

    def close(self) -> None:
        """Close the qtest connection. A QEMU that still runs prints an error then."""
        self.qtest.close()

    def _path(self, spec: MachineSpec) -> Path:
        return self.testbed.folder / f"{spec.name}.qtest"

    def destination(self) -> RawGuest:
        """Start the destination of a migration of this machine, with the same devices."""
        return RawGuest(self.testbed, source=self)

    def plug(self, share: Share) -> RawDriver:
        """Plug in the device of ``share`` with ``device_add``, and initialise it."""
        self.machine.device_add(share)
        return self.driver(share)

    def driver(self, share: Share) -> RawDriver:
        """Initialise the device of ``share``, which is plugged in."""
        return RawDriver(self, share)

    def eject(self, share: Share) -> None:
        """Write the eject register, as a guest does at the end of an unplug, or without a request.

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


class RawDriver(VirtioDriver):
    """A 9P client for one virtio-9p device: requests and answers.

    :ivar fids: the fids of the session. :ivar protocol: the protocol version of the session.
    :ivar reply_timeout_s: how long an answer is waited for; seconds, before scaling.
    """

    reply_timeout_s: float = _REPLY_TIMEOUT_S

    def __init__(self, guest: RawGuest, share: Share) -> None:
        super().__init__(guest.qtest, guest.machine, share)
        self.fids: set[int] = set()
        self.protocol = p9.VERSION

    def moved_to(self, guest: RawGuest) -> RawDriver:
        """A copy of this driver for the device in ``guest``, where it was migrated to."""
        moved = copy.copy(self)
        moved._qtest, moved._machine = guest.qtest, guest.machine
        moved._in_flight, moved.fids = set(self._in_flight), set(self.fids)
        return moved

    def send(
        self,
        kind: int,
        body: bytes = b"",
        *,
        tag: int | None = None,
        size: int | None = None,
        reply_size: int = REQUEST_SIZE,
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
        if len(message) > REQUEST_SIZE:
            raise UsageError(
                f"{self.share.id}: {_name(kind)} has {len(message)} bytes, and its buffer {REQUEST_SIZE}"
            )
        head = self._free_head()
        out = self.buffer(head)
        with self._qtest.together():
            self._qtest.write(out, message)
            self.write_descriptors(
                head,
                Descriptor(out, len(message), NEXT, head + 1),
                Descriptor(out + REQUEST_SIZE, reply_size, WRITE),
            )
            self.make_available(head, notify=notify)
        return Request(tag, kind, head)

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
