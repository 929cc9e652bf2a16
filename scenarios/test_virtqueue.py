"""A hostile guest cannot hurt QEMU: chains of descriptors, buffers and rings that no driver makes."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from dataclasses import replace

import pytest

from harness.actions.migration import expect_blocked_by
from harness.errors import Violation
from harness.holds.hold import Hold, require_counted_requests
from harness.leaks.footprint import open_fds, wait_open_fds
from harness.ninep import messages as p9
from harness.ninep.client import (
    INDIRECT,
    MSIZE,
    NEXT,
    WRITE,
    Descriptor,
    RawDriver,
    RawGuest,
    make_files,
)
from harness.ninep.messages import UNIX_VERSION, VERSION, T
from harness.ninep.session import (
    ANSWERED,
    BOTH,
    CONTENT,
    FILE,
    FOLDER,
    GIVEN_UP,
    OTHER,
    ROOT,
    SPARE,
    about,
    complaints,
    furnish,
    revived,
    started,
    told,
    wait_for_either,
)
from harness.qemu.spec import Share

pytestmark = [pytest.mark.no_guest_kernel, pytest.mark.pin_machine("pc")]


#: Entries of the folder that is read: more than fit in a message.
_ENTRIES = 400


#: Every message, whole, about fids that are as it needs them; in this order.
WHOLE: dict[str, tuple[tuple[T, bytes], ...]] = {
    VERSION: (
        (T.VERSION, p9.version(MSIZE)),
        (T.ATTACH, p9.attach(ROOT)),
        (T.WALK, p9.walk(ROOT, FILE, "file")),
        (T.WALK, p9.walk(ROOT, FOLDER, "folder")),
        (T.WALK, p9.walk(ROOT, OTHER, "link")),
        (T.READLINK, p9.fid(OTHER)),
        (T.CLUNK, p9.fid(OTHER)),
        (T.GETATTR, p9.getattr_(FILE)),
        (T.SETATTR, p9.setattr_(FILE, 0o600)),
        (T.STATFS, p9.fid(FILE)),
        (T.LOPEN, p9.open_(FILE, os.O_RDWR)),
        (T.READ, p9.read(FILE, 0, len(CONTENT))),
        (T.WRITE, p9.write(FILE, 0, CONTENT)),
        (T.FSYNC, p9.fsync(FILE)),
        (T.LOCK, p9.lock(FILE)),
        (T.GETLOCK, p9.getlock(FILE)),
        (T.MKDIR, p9.mkdir(FOLDER, "made")),
        (T.MKNOD, p9.mknod(FOLDER, "node")),
        (T.SYMLINK, p9.symlink(FOLDER, "symlink", "to")),
        (T.RENAMEAT, p9.renameat(FOLDER, "node", "renamed")),
        (T.UNLINKAT, p9.unlinkat(FOLDER, "renamed")),
        (T.WALK, p9.walk(FOLDER, OTHER, "symlink")),
        (T.RENAME, p9.rename(OTHER, FOLDER, "again")),
        (T.REMOVE, p9.fid(OTHER)),
        (T.LINK, p9.link(FOLDER, FILE, "linked")),
        (T.XATTRWALK, p9.xattrwalk(ROOT, OTHER, "")),
        (T.CLUNK, p9.fid(OTHER)),
        (T.WALK, p9.walk(ROOT, OTHER, "file")),
        (T.XATTRCREATE, p9.xattrcreate(OTHER, "user.harness", len(CONTENT))),
        (T.FLUSH, p9.flush(4711)),
        (T.LOPEN, p9.open_(FOLDER)),
        (T.READDIR, p9.read(FOLDER, 0, 4096)),
        (T.WALK, p9.walk(ROOT, SPARE)),
        (T.LCREATE, p9.create(SPARE, "created")),
    ),
    UNIX_VERSION: (
        (T.VERSION, p9.version(MSIZE, UNIX_VERSION)),
        (T.ATTACH, p9.attach(ROOT)),
        (T.WALK, p9.walk(ROOT, FILE, "file")),
        (T.STAT, p9.fid(FILE)),
        (T.WSTAT, p9.wstat(FILE, name="renamed")),
        (T.WSTAT, p9.wstat(FILE, name="file")),
        (T.OPEN, p9.unix_open(FILE, p9.ORDWR)),
        (T.WALK, p9.walk(ROOT, SPARE)),
        (T.CREATE, p9.unix_create(SPARE, "created")),
        (T.WALK, p9.walk(ROOT, FOLDER)),
        (T.OPEN, p9.unix_open(FOLDER, p9.OREAD)),
        (T.READ, p9.read(FOLDER, 0, 4096)),
    ),
}


@pytest.mark.parametrize("protocol", BOTH)
def test_messages_cut_short(raw_guest: RawGuest, share: Share, protocol: str) -> None:
    """Each message without its last byte, and without half of it: it fails, or ends the device.

    Fields, and strings, end beyond the message then, which is where the buffer ends.
    """
    driver = started(raw_guest, share, protocol)
    machine = raw_guest.machine
    for kind, body in WHOLE[protocol]:
        for length in sorted({len(body) // 2, len(body) - 1}):
            with about(f"{kind.name} with {length} of {len(body)} bytes of its body"):
                driver.version(protocol)
                answered, complained = driver.answered(), complaints(machine)
                request = driver.send(kind, body[:length])
                if wait_for_either(machine, driver, answered, complained) == ANSWERED:
                    assert told(driver, request) != ANSWERED, f"{kind.name} with {length} bytes"
                else:
                    driver = revived(raw_guest, share)
    revived(raw_guest, share).clunk(ROOT)
    raw_guest.eject(share)


#: What is beyond the room for an answer.
_CANARY = b"\xa5" * 64


def sent_with_room(raw_guest: RawGuest, driver: RawDriver, message: tuple[T, bytes], room: int) -> str:
    """Send a message with ``room`` bytes for its answer; what came of it.

    :raises Violation: when QEMU wrote beyond them.
    """
    machine = raw_guest.machine
    buffers = 2 * driver.places * (driver.buffer(1) - driver.buffer(0))
    raw_guest.qtest.command(f"memset {driver.buffer(0):#x} {buffers:#x} {_CANARY[0]:#x}")
    answered, complained = driver.answered(), complaints(machine)
    request = driver.send(*message, reply_size=room)
    seen = wait_for_either(machine, driver, answered, complained)
    if raw_guest.qtest.read(driver.buffer(request.head + 1) + room, len(_CANARY)) != _CANARY:
        raise Violation(f"QEMU wrote beyond the {room} bytes that there are for an answer")
    return told(driver, request) if seen == ANSWERED else seen


@pytest.mark.parametrize("protocol", BOTH)
def test_reply_buffers_that_are_short(raw_guest: RawGuest, share: Share, protocol: str) -> None:
    """An answer as long as its buffer comes; of a longer one an error, or it ends the device."""
    driver = started(raw_guest, share, protocol)
    furnish(share)
    sizes = [p9.HEADER + len(driver.call(kind, body)) for kind, body in WHOLE[protocol]]
    furnish(share)
    for message, size in zip(WHOLE[protocol], sizes, strict=True):
        with about(f"{message[0].name}, with room for its {size} bytes"):
            assert sent_with_room(raw_guest, driver, message, size) == ANSWERED, message[0].name
    for at, (message, size) in enumerate(zip(WHOLE[protocol], sizes, strict=True)):
        for room in {p9.HEADER, size - 1} - {p9.HEADER - 1, size}:
            if message[0] in (T.READ, T.READDIR):
                continue  # See the next scenarios.
            with about(f"{message[0].name}, whose answer has {size} bytes, with room for {room}"):
                furnish(share)
                for kind, body in WHOLE[protocol][:at]:
                    driver.call(kind, body)
                seen = sent_with_room(raw_guest, driver, message, room)
                assert seen != ANSWERED, f"{message[0].name} in {room} of {size} bytes"
                if seen == GIVEN_UP:
                    driver = revived(raw_guest, share)
    revived(raw_guest, share).clunk(ROOT)


@pytest.mark.parametrize("room", [p9.HEADER, p9.READ_HEADER - 1, p9.READ_HEADER, p9.READ_HEADER + 1])
def test_a_read_with_hardly_any_room(raw_guest: RawGuest, share: Share, room: int) -> None:
    """Of a file, and of an attribute: more is asked for than there is room for, down to a header's."""
    driver = started(raw_guest, share)
    for kind in (T.LOPEN, T.XATTRCREATE):
        driver.walk(ROOT, FILE, "file")
        body = p9.open_(FILE) if kind == T.LOPEN else p9.xattrcreate(FILE, "user.harness", len(CONTENT))
        driver.call(kind, body)
        with about(f"a Tread after {kind.name} with room for {room} bytes", raw_guest.machine):
            message = (T.READ, p9.read(FILE, 0, len(CONTENT)))
            assert sent_with_room(raw_guest, driver, message, room) != ANSWERED
        driver = revived(raw_guest, share)
    driver.clunk(ROOT)


def test_a_readdir_with_little_room(raw_guest: RawGuest, share: Share) -> None:
    """Rreaddir has the entries that fit into its buffer: the guest may ask for more than it has room for."""
    driver = started(raw_guest, share)
    make_files(share.path, _ENTRIES)
    driver.walk(ROOT, FOLDER)
    driver.open(FOLDER)
    for room in (p9.READ_HEADER + 100, 1000, 4096, MSIZE - 1):
        with about(f"room for {room} bytes"):
            message = (T.READDIR, p9.read(FOLDER, 0, MSIZE - p9.READ_HEADER))
            assert sent_with_room(raw_guest, driver, message, room) == ANSWERED, f"with room for {room}"


#: A message that is answered: Tclunk of a fid that is none; room for the answer; nobody's memory.
_MESSAGE = struct.pack("<IBHI", 11, T.CLUNK, 1, 4711)
_ROOM, _NOWHERE = 100, 1 << 40


def _pieces(address: int, size: int, *, first: int = 0) -> list[Descriptor]:
    """A chain of ``size`` descriptors of a byte each, which goes on after them."""
    return [Descriptor(address + at, 1, NEXT, first + at + 1) for at in range(size)]


#: Chains that no driver makes, as functions of where the request and its answer's buffer are, and a table.
#: Those in :data:`_SOUND` are unusual, and right.
CHAINS: dict[str, Callable[[int, int, int], list[Descriptor]]] = {
    "no reply": lambda out, _into, _table: [Descriptor(out, 11)],
    "no request": lambda _out, into, _table: [Descriptor(into, _ROOM, WRITE)],
    "a request of 3 bytes": lambda out, into, _table: [
        Descriptor(out, 3, NEXT, 1),
        Descriptor(into, _ROOM, WRITE),
    ],
    "a reply of 6 bytes": lambda out, into, _table: [
        Descriptor(out, 11, NEXT, 1),
        Descriptor(into, 6, WRITE),
    ],
    "an empty request": lambda out, into, _table: [
        Descriptor(out, 0, NEXT, 1),
        Descriptor(into, _ROOM, WRITE),
    ],
    "an empty reply": lambda out, into, _table: [Descriptor(out, 11, NEXT, 1), Descriptor(into, 0, WRITE)],
    "buffers that are nowhere": lambda out, _into, _table: [
        Descriptor(out, 11, NEXT, 1),
        *(Descriptor(_NOWHERE + at * 0x10000, 5000, NEXT | WRITE, at + 1) for at in range(1, 5)),
        Descriptor(_NOWHERE, _ROOM, WRITE),
    ],
    "a next one beyond the ring": lambda out, _into, _table: [Descriptor(out, 11, NEXT, 4000)],
    "a loop": lambda out, _into, _table: [Descriptor(out, 11, NEXT, 0)],
    "a loop of two": lambda out, into, _table: [
        Descriptor(out, 11, NEXT, 1),
        Descriptor(into, _ROOM, NEXT | WRITE, 1),
    ],
    "the reply first": lambda out, into, _table: [
        Descriptor(into, _ROOM, NEXT | WRITE, 1),
        Descriptor(out, 11),
    ],
    "an empty table": lambda _out, _into, table: [Descriptor(table, 0, INDIRECT)],
    "a table of 17 bytes": lambda _out, _into, table: [Descriptor(table, 17, INDIRECT)],
    "a table that is nowhere": lambda _out, _into, _table: [Descriptor(_NOWHERE, 32, INDIRECT)],
    "a table that is huge": lambda _out, _into, table: [Descriptor(table, 0xFFFFFFF0, INDIRECT)],
    "a table of itself": lambda _out, _into, table: [Descriptor(table + 64, 32, INDIRECT)],
    "a table that leads out": lambda _out, _into, table: [Descriptor(table, 16, INDIRECT)],
    "a table": lambda _out, _into, table: [Descriptor(table, 32, INDIRECT)],
    "a byte a piece": lambda out, into, _table: [
        *_pieces(out, 11),
        *(replace(piece, flags=NEXT | WRITE) for piece in _pieces(into, 30, first=11)),
        Descriptor(into + 30, _ROOM, WRITE),
    ],
}
_SOUND = ("a table", "a byte a piece")


def test_chains_that_no_driver_makes(raw_guest: RawGuest, share: Share) -> None:
    """QEMU answers, or gives the device up until it is reset; then it serves, and can be ejected."""
    driver = started(raw_guest, share)
    machine, qtest = raw_guest.machine, raw_guest.qtest
    before = open_fds(machine)
    for what, chain in CHAINS.items():
        with about(f"a chain of {what}"):
            driver = revived(raw_guest, share)
            answered, complained = driver.answered(), complaints(machine)
            out, into, table = (driver.buffer(index) for index in (100, 101, 102))
            qtest.write(out, _MESSAGE)
            good = bytes(Descriptor(out, 11, NEXT, 1)) + bytes(Descriptor(into, _ROOM, WRITE))
            qtest.write(table, good + bytes(32) + bytes(Descriptor(table + 64, 32, INDIRECT)))
            driver.describe(0, *chain(out, into, table))
            driver.offer(0)
            seen = wait_for_either(machine, driver, answered, complained)
            if what in _SOUND:
                assert (seen, qtest.read(into + 4, 1)[0]) == (ANSWERED, T.RLERROR), what
    for head in (driver.queue_size, 0x7FFF, 0xFFFF):
        with about(f"the head {head}"):
            driver = revived(raw_guest, share)
            answered, complained = driver.answered(), complaints(machine)
            driver.offer(head)
            assert wait_for_either(machine, driver, answered, complained) == GIVEN_UP
    driver = revived(raw_guest, share)
    driver.clunk(ROOT)
    wait_open_fds(machine, before)
    raw_guest.eject(share)
    started(raw_guest, share)


def test_queues_that_are_not_there(raw_guest: RawGuest, share: Share) -> None:
    """The device has one; whatever is said of others, and of that one before it has a ring, it serves on."""
    driver = started(raw_guest, share)
    for queue in (1, 2, 63, 1023, 1024, 0xFFFF):
        with about(f"queue {queue}"):
            driver.set_queue(queue, 0x1234)
            driver.notify(queue)
            driver.set_queue(queue, 0)
    driver.set_queue(0, 0)
    driver.notify()
    for page in (0xFFFFFFFF, 0x0FFFFFFF):
        driver.set_queue(0, page)
        driver.notify()
    raw_guest.machine.qmp.execute("query-status")
    revived(raw_guest, share)


#: QEMU: ``hw/9pfs/9p.h``, ``MAX_REQ``.
_REQUESTS = 128


def test_more_requests_than_qemu_has_room_for(raw_guest: RawGuest, share: Share, hold: Hold) -> None:
    """All that QEMU can have in flight, each in a table of its own, and some more.

    Each of the first is answered once, and so are those beyond where the ring has room for them. Where it has
    none, they have a descriptor that is in use, and QEMU lives.
    """
    require_counted_requests(raw_guest.machine)
    driver = started(raw_guest, share)
    driver.walk(ROOT, FILE, "file")
    driver.open(FILE)
    base, each = driver.buffer(0), 0x400
    before = driver.answered()
    message = struct.pack("<IBH", 23, T.READ, 1) + p9.read(FILE, 0, 100)
    heads = range(min(_REQUESTS + 3, driver.queue_size))
    with hold.requests(share) as held:
        for head in heads:
            place = base + head * each
            out, into = Descriptor(place + 64, len(message), NEXT, 1), Descriptor(place + 128, 256, WRITE)
            raw_guest.qtest.write(place, bytes(out) + bytes(into) + bytes(32) + message)
            driver.describe(head, Descriptor(place, 32, INDIRECT))
            driver.offer(head)
        held.wait_in_flight(_REQUESTS)
        for head in range(_REQUESTS + 3 - len(heads)):
            driver.offer(head)
        held.in_flight()
        driver.expect_answered(before)
    raw_guest.machine.wait_until(
        lambda: driver.answered() >= before + len(heads),
        what=f"all {len(heads)} answers",
        timeout_s=3,
    )
    for head in heads:
        answer = raw_guest.qtest.read(base + head * each + 128, p9.READ_HEADER + len(CONTENT))
        assert answer[4] == T.READ + 1, f"the answer to request {head}"
        assert answer[p9.READ_HEADER :] == CONTENT
    revived(raw_guest, share)


def test_an_eject_with_requests_that_nobody_told_of(raw_guest: RawGuest, share: Share) -> None:
    """The ring has requests that QEMU was not told of when the device goes: they go with it."""
    before = open_fds(raw_guest.machine)
    for told_of in (False, True):
        driver = started(raw_guest, share)
        driver.walk(ROOT, FILE, "file")
        driver.clunk(ROOT)
        driver.clunk(FILE)
        for index in range(0, 40, 2):
            out = driver.buffer(index)
            raw_guest.qtest.write(out, _MESSAGE)
            driver.describe(
                index, Descriptor(out, 11, NEXT, index + 1), Descriptor(driver.buffer(index + 1), 99, WRITE)
            )
            driver.offer(index, notify=False)
        if told_of:
            driver.notify()
        raw_guest.eject(share)
        expect_blocked_by(raw_guest.machine)
        wait_open_fds(raw_guest.machine, before)
    started(raw_guest, share)
