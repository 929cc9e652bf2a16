"""A hostile guest cannot hurt QEMU: malformed messages, short buffers, bad descriptor chains and rings.

The raw client writes the virtqueue itself, so it can offer what no driver offers. QEMU has to answer, or to
mark the device broken until a reset. It must not exit, write outside the guest's buffer, or leave files open.
"""

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
from harness.ninep.modern_registers import ModernRegisters
from harness.ninep.session import (
    ANSWERED,
    BROKEN,
    CONTENT,
    FILE,
    FOLDER,
    OTHER,
    PROTOCOLS,
    ROOT,
    SPARE,
    count_virtio_errors,
    error_context,
    expect_serving,
    plug_and_attach,
    reset_and_attach,
    reset_export,
    wait_answered_or_broken,
    wait_outcome,
)
from harness.plugin.thorough import by_default
from harness.qemu.spec import Share
from harness.testbed import Testbed

pytestmark = [pytest.mark.no_guest_kernel, pytest.mark.pin_machine("pc")]


#: Files in the folder that is listed: more than one message has room for.
_ENTRIES = 400
#: Valid messages of each kind. Sent in this order, on the export of :func:`reset_export`, all succeed.
VALID: dict[str, tuple[tuple[T, bytes], ...]] = {
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


@pytest.mark.parametrize("protocol", by_default(PROTOCOLS[0], of=PROTOCOLS))
def test_messages_cut_short(raw_guest: RawGuest, share: Share, protocol: str) -> None:
    """A message without its last byte, or without half of its body, fails or breaks the device.

    Its last field or string then ends beyond the guest's buffer.
    """
    driver = plug_and_attach(raw_guest, share, protocol)
    machine = raw_guest.machine
    for kind, body in VALID[protocol]:
        for length in sorted({len(body) // 2, len(body) - 1}):
            with error_context(f"{kind.name} with {length} of {len(body)} bytes of its body"):
                driver.version(protocol)
                answered, virtio_errors = driver.answered(), count_virtio_errors(machine)
                request = driver.send(kind, body[:length])
                if wait_answered_or_broken(machine, driver, answered, virtio_errors) == ANSWERED:
                    assert wait_outcome(driver, request) != ANSWERED, f"{kind.name} with {length} bytes"
                else:
                    driver = reset_and_attach(raw_guest, share)
    reset_and_attach(raw_guest, share).clunk(ROOT)
    raw_guest.eject(share)


#: Bytes beyond the reply buffer, which QEMU must not change.
_CANARY = b"\xa5" * 64


def outcome_with_room(raw_guest: RawGuest, driver: RawDriver, message: tuple[T, bytes], room: int) -> str:
    """Send a message with a reply buffer of ``room`` bytes; its outcome.

    :raises Violation: when QEMU wrote beyond the buffer.
    """
    machine = raw_guest.machine
    buffers = 2 * driver.max_in_flight * (driver.buffer(1) - driver.buffer(0))
    raw_guest.qtest.command(f"memset {driver.buffer(0):#x} {buffers:#x} {_CANARY[0]:#x}")
    answered, virtio_errors = driver.answered(), count_virtio_errors(machine)
    request = driver.send(*message, reply_size=room)
    seen = wait_answered_or_broken(machine, driver, answered, virtio_errors)
    if raw_guest.qtest.read(driver.buffer(request.head + 1) + room, len(_CANARY)) != _CANARY:
        raise Violation(f"QEMU wrote beyond the {room} bytes that there are for an answer")
    return wait_outcome(driver, request) if seen == ANSWERED else seen


@pytest.mark.thorough
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_reply_buffers_that_are_short(raw_guest: RawGuest, share: Share, protocol: str) -> None:
    """An answer that exactly fits its buffer arrives; where it does not fit, there is an error or the device
    is marked broken."""
    driver = plug_and_attach(raw_guest, share, protocol)
    reset_export(share)
    sizes = [p9.HEADER + len(driver.call(kind, body)) for kind, body in VALID[protocol]]
    reset_export(share)
    for message, size in zip(VALID[protocol], sizes, strict=True):
        with error_context(f"{message[0].name}, with room for its {size} bytes"):
            assert outcome_with_room(raw_guest, driver, message, size) == ANSWERED, message[0].name
    for at, (message, size) in enumerate(zip(VALID[protocol], sizes, strict=True)):
        for room in {p9.HEADER, size - 1} - {p9.HEADER - 1, size}:
            if message[0] in (T.READ, T.READDIR):
                continue  # These may be answered in part; the next scenarios have them.
            with error_context(f"{message[0].name}, whose answer has {size} bytes, with room for {room}"):
                reset_export(share)
                for kind, body in VALID[protocol][:at]:
                    driver.call(kind, body)
                seen = outcome_with_room(raw_guest, driver, message, room)
                assert seen != ANSWERED, f"{message[0].name} in {room} of {size} bytes"
                if seen == BROKEN:
                    driver = reset_and_attach(raw_guest, share)
    reset_and_attach(raw_guest, share).clunk(ROOT)


@pytest.mark.thorough
@pytest.mark.parametrize("room", [p9.HEADER, p9.READ_HEADER - 1, p9.READ_HEADER, p9.READ_HEADER + 1])
def test_a_read_with_hardly_any_room(raw_guest: RawGuest, share: Share, room: int) -> None:
    """A Tread of a file, or of an attribute, that asks for more than its reply buffer has room for.

    The smallest buffers have room for the header alone, or not for the whole count.
    """
    driver = plug_and_attach(raw_guest, share)
    for kind in (T.LOPEN, T.XATTRCREATE):
        driver.walk(ROOT, FILE, "file")
        body = p9.open_(FILE) if kind == T.LOPEN else p9.xattrcreate(FILE, "user.harness", len(CONTENT))
        driver.call(kind, body)
        with error_context(f"a Tread after {kind.name} with room for {room} bytes", raw_guest.machine):
            message = (T.READ, p9.read(FILE, 0, len(CONTENT)))
            assert outcome_with_room(raw_guest, driver, message, room) != ANSWERED
        driver = reset_and_attach(raw_guest, share)
    driver.clunk(ROOT)


def test_a_readdir_with_little_room(raw_guest: RawGuest, share: Share) -> None:
    """A Treaddir may ask for more than its reply buffer has room for: it is answered with what fits."""
    driver = plug_and_attach(raw_guest, share)
    make_files(share.path, _ENTRIES)
    driver.walk(ROOT, FOLDER)
    driver.open(FOLDER)
    for room in (p9.READ_HEADER + 100, 1000, 4096, MSIZE - 1):
        with error_context(f"room for {room} bytes"):
            message = (T.READDIR, p9.read(FOLDER, 0, MSIZE - p9.READ_HEADER))
            assert outcome_with_room(raw_guest, driver, message, room) == ANSWERED, f"with room for {room}"


#: A Tclunk of a fid that does not exist, which is answered with Rlerror.
_MESSAGE = struct.pack("<IBHI", 11, T.CLUNK, 1, 4711)
#: Bytes for the answer to it, and an address at which the guest has no memory.
_ROOM, _UNMAPPED = 100, 1 << 40


def _pieces(address: int, size: int, *, first: int = 0) -> list[Descriptor]:
    """``size`` descriptors of one byte each; the last one points at a further descriptor."""
    return [Descriptor(address + at, 1, NEXT, first + at + 1) for at in range(size)]


#: Chains that no driver makes, as functions of three addresses: the request's, the reply buffer's and an
#: indirect table's. Those in :data:`_VALID_CHAINS` are unusual, but valid.
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
    "buffers at unmapped addresses": lambda out, _into, _table: [
        Descriptor(out, 11, NEXT, 1),
        *(Descriptor(_UNMAPPED + at * 0x10000, 5000, NEXT | WRITE, at + 1) for at in range(1, 5)),
        Descriptor(_UNMAPPED, _ROOM, WRITE),
    ],
    "a next descriptor beyond the ring": lambda out, _into, _table: [Descriptor(out, 11, NEXT, 4000)],
    "a descriptor that points at itself": lambda out, _into, _table: [Descriptor(out, 11, NEXT, 0)],
    "two descriptors in a loop": lambda out, into, _table: [
        Descriptor(out, 11, NEXT, 1),
        Descriptor(into, _ROOM, NEXT | WRITE, 1),
    ],
    "the reply first": lambda out, into, _table: [
        Descriptor(into, _ROOM, NEXT | WRITE, 1),
        Descriptor(out, 11),
    ],
    "an empty indirect table": lambda _out, _into, table: [Descriptor(table, 0, INDIRECT)],
    "an indirect table of 17 bytes": lambda _out, _into, table: [Descriptor(table, 17, INDIRECT)],
    "an indirect table at an unmapped address": lambda _out, _into, _table: [
        Descriptor(_UNMAPPED, 32, INDIRECT)
    ],
    "an indirect table of 4 GiB": lambda _out, _into, table: [Descriptor(table, 0xFFFFFFF0, INDIRECT)],
    "an indirect table in an indirect table": lambda _out, _into, table: [
        Descriptor(table + 64, 32, INDIRECT)
    ],
    "an indirect table that points beyond its end": lambda _out, _into, table: [
        Descriptor(table, 16, INDIRECT)
    ],
    "an indirect table": lambda _out, _into, table: [Descriptor(table, 32, INDIRECT)],
    "one byte a descriptor": lambda out, into, _table: [
        *_pieces(out, 11),
        *(replace(piece, flags=NEXT | WRITE) for piece in _pieces(into, 30, first=11)),
        Descriptor(into + 30, _ROOM, WRITE),
    ],
}
_VALID_CHAINS = ("an indirect table", "one byte a descriptor")


def test_chains_that_no_driver_makes(raw_guest: RawGuest, share: Share) -> None:
    """QEMU answers, or marks the device broken; after a reset the device serves, and it can be ejected.

    A valid chain is answered. A head index that the ring does not have always breaks the device.
    """
    driver = plug_and_attach(raw_guest, share)
    machine, qtest = raw_guest.machine, raw_guest.qtest
    before = open_fds(machine)
    for what, chain in CHAINS.items():
        with error_context(f"a chain of {what}"):
            driver = reset_and_attach(raw_guest, share)
            answered, virtio_errors = driver.answered(), count_virtio_errors(machine)
            out, into, table = (driver.buffer(index) for index in (100, 101, 102))
            qtest.write(out, _MESSAGE)
            good = bytes(Descriptor(out, 11, NEXT, 1)) + bytes(Descriptor(into, _ROOM, WRITE))
            qtest.write(table, good + bytes(32) + bytes(Descriptor(table + 64, 32, INDIRECT)))
            driver.write_descriptors(0, *chain(out, into, table))
            driver.make_available(0)
            seen = wait_answered_or_broken(machine, driver, answered, virtio_errors)
            if what in _VALID_CHAINS:
                assert (seen, qtest.read(into + 4, 1)[0]) == (ANSWERED, T.RLERROR), what
    for head in (driver.queue_size, 0x7FFF, 0xFFFF):
        with error_context(f"the head {head}"):
            driver = reset_and_attach(raw_guest, share)
            answered, virtio_errors = driver.answered(), count_virtio_errors(machine)
            driver.make_available(head)
            assert wait_answered_or_broken(machine, driver, answered, virtio_errors) == BROKEN
    driver = reset_and_attach(raw_guest, share)
    driver.clunk(ROOT)
    wait_open_fds(machine, before)
    raw_guest.eject(share)
    plug_and_attach(raw_guest, share)


def test_queues_that_are_not_there(raw_guest: RawGuest, share: Share) -> None:
    """The device has one virtqueue. Writes to others, a queue without a ring and a ring outside memory do not
    end QEMU, and after a reset the device serves."""
    driver = plug_and_attach(raw_guest, share)
    for queue in (1, 2, 63, 1023, 1024, 0xFFFF):
        with error_context(f"queue {queue}"):
            driver.set_queue(queue, 0x1234)
            driver.notify(queue)
            driver.set_queue(queue, 0)
    driver.set_queue(0, 0)
    driver.notify()
    for page in (0xFFFFFFFF, 0x0FFFFFFF):
        driver.set_queue(0, page)
        driver.notify()
    raw_guest.machine.qmp.execute("query-status")
    reset_and_attach(raw_guest, share)


@pytest.mark.parametrize("buffers", by_default(2000, of=[1023, 1024, 1025, 2000]))
def test_an_indirect_table_of_many_buffers(raw_guest: RawGuest, share: Share, buffers: int) -> None:
    """A request of up to 1024 buffers (QEMU: ``VIRTQUEUE_MAX_SIZE``) is answered; one of more breaks the
    device. After a reset the device serves."""
    driver = plug_and_attach(raw_guest, share)
    answered, virtio_errors = driver.answered(), count_virtio_errors(raw_guest.machine)
    out, into, table = (driver.buffer(index) for index in (100, 101, 102))
    raw_guest.qtest.write(out, _MESSAGE)
    pieces = [Descriptor(into + at, 1, NEXT | WRITE, at + 2) for at in range(buffers - 2)]
    chain = [Descriptor(out, len(_MESSAGE), NEXT, 1), *pieces, Descriptor(into + buffers, _ROOM, WRITE)]
    raw_guest.qtest.write(table, b"".join(map(bytes, chain)))
    with error_context(f"an indirect table of {buffers} buffers", raw_guest.machine):
        driver.write_descriptors(0, Descriptor(table, 16 * buffers, INDIRECT))
        driver.make_available(0)
        seen = wait_answered_or_broken(raw_guest.machine, driver, answered, virtio_errors)
        assert seen == (ANSWERED if buffers <= 1024 else BROKEN)
    if seen == ANSWERED:
        assert raw_guest.qtest.read(into + 4, 1)[0] == T.RLERROR
    reset_and_attach(raw_guest, share).clunk(ROOT)  # An eject during a session is another matter (R2).
    raw_guest.eject(share)


#: A mount tag of one character leaves a configuration of three bytes, less than the largest access.
_TAGS = ("t", "thirty-one-letters-of-mount-tag")
#: The sizes of an access to a port.
_ACCESSES = (1, 2, 4)


@pytest.fixture
def tagged(testbed: Testbed, tag: str) -> Share:
    """A share with that mount tag; to be made before the machine."""
    return testbed.declare(replace(testbed.shares[0], mount_tag=tag), *testbed.shares[1:])[0]


@pytest.mark.parametrize("tag", _TAGS)
def test_reads_beyond_the_configuration(tagged: Share, raw_guest: RawGuest, tag: str) -> None:
    """The mount tag and its length are all that can be read: beyond, and across the end, each bit is set.

    An access that is not aligned is several smaller ones.
    """
    driver = raw_guest.plug(tagged)
    whole = len(tag).to_bytes(2, "little") + tag.encode()
    wrong = []
    for at in range(12 if len(whole) < 12 else 44):
        for size in [size for size in _ACCESSES if at % size == 0]:
            seen = driver.read_device_config(at, size)
            right = whole[at : at + size] if at + size <= len(whole) else b"\xff" * size
            if seen != int.from_bytes(right, "little"):
                wrong.append(f"{size} bytes at {at}: {seen:#x}")
    assert wrong == []


def test_a_device_whose_bus_mastering_is_off(raw_guest: RawGuest, share: Share) -> None:
    """A device that may not access memory leaves its ring alone; once it may, it answers what is there."""
    driver = plug_and_attach(raw_guest, share)
    virtio_errors = count_virtio_errors(raw_guest.machine)
    for _ in range(2):
        driver.set_bus_master(False)
        request = driver.send(T.GETATTR, p9.getattr_(ROOT))
        raw_guest.machine.qmp.execute("query-status")
        assert not driver.is_answered(request)
        assert count_virtio_errors(raw_guest.machine) == virtio_errors, "the device is broken"
        driver.set_bus_master(True)
        driver.notify()
        driver.wait_answer(request)
        expect_serving(driver)


#: What the scenarios write to the modern registers of the queue. The rings are at the top of its memory.
_QUEUE = {
    "config_msix_vector": 0,
    "queue_msix_vector": 1,
    "queue_size": 64,
    "queue_desc": 0x600000,
    "queue_driver": 0x601000,
    "queue_device": 0x602000,
}


@pytest.mark.parametrize("reset", by_default("system_reset", of=["device_reset", "system_reset"]))
def test_modern_registers_after_a_reset(raw_guest: RawGuest, share: Share, reset: str) -> None:
    """No register keeps what the driver wrote: after a reset each has the value that it had before."""
    driver = raw_guest.plug(share)
    driver.reset()
    modern = ModernRegisters(raw_guest.qtest, driver)
    before = modern.read_all()
    for name, value in {**_QUEUE, "queue_enable": 1}.items():
        modern.write(name, value)
    seen = modern.read_all()
    assert {name: seen[name] for name in ("queue_enable", "queue_size", "queue_desc")} == {
        "queue_enable": 1,
        "queue_size": 64,
        "queue_desc": _QUEUE["queue_desc"],
    }
    if reset == "device_reset":
        modern.write("device_status", 0)
    else:
        raw_guest.system_reset()
        modern.map()
    after = modern.read_all()
    assert {name: value for name, value in after.items() if value != before[name]} == {}
    reset_and_attach_to(raw_guest, share)


def reset_and_attach_to(raw_guest: RawGuest, share: Share) -> None:
    """The device works by its legacy interface."""
    (share.path / "file").write_bytes(CONTENT)
    reset_and_attach(raw_guest, share)


@pytest.mark.parametrize("value", by_default(2, of=[0, 2, 0xFFFF]))
def test_values_that_enable_no_queue(raw_guest: RawGuest, share: Share, value: int) -> None:
    """Only 1 enables a queue (virtio 1.2, 4.1.4.3); after any other value the device works once it is
    reset."""
    driver = raw_guest.plug(share)
    modern = ModernRegisters(raw_guest.qtest, driver)
    for name, written in _QUEUE.items():
        modern.write(name, written)
    modern.write("queue_enable", value)
    assert modern.read("queue_enable") == 0, f"{value} has enabled the queue"
    reset_and_attach_to(raw_guest, share)


#: Addresses to which a driver may move its ring: without memory, in other memory, and across its end.
_PLACES: dict[str, Callable[[int], int]] = {
    "nowhere": lambda _end: 0xFFFFFFF000,
    "elsewhere": lambda _end: 0x300000,
    "across the end": lambda end: end - 16,
}


@pytest.mark.parametrize("to", by_default("across the end", of=_PLACES))
def test_the_ring_moves_while_a_request_is_in_flight(
    raw_guest: RawGuest, share: Share, hold: Hold, to: str
) -> None:
    """The driver moves the ring away from a request in flight. QEMU ends the request, wherever its answer
    goes, and after a reset the device serves."""
    driver = plug_and_attach(raw_guest, share)
    modern = ModernRegisters(raw_guest.qtest, driver)
    driver.walk(ROOT, FILE, "file")
    driver.open(FILE)
    place = _PLACES[to](raw_guest.machine.spec.memory_mib << 20)
    with hold.requests(share) as held, error_context(f"the ring moves {to}", raw_guest.machine):
        driver.send(T.READ, p9.read(FILE, 0, 100))
        held.wait_caught()
        modern.write("queue_size", driver.queue_size)
        for ring in ("queue_desc", "queue_driver", "queue_device"):
            modern.write(ring, place)
        modern.write("queue_enable", 1)
        held.waiting()
    with error_context(f"the ring has moved {to}", raw_guest.machine):
        raw_guest.machine.qmp.execute("query-status")
        reset_and_attach(raw_guest, share).clunk(ROOT)
        raw_guest.eject(share)
    expect_blocked_by(raw_guest.machine)


#: QEMU: ``hw/9pfs/9p.h``, ``MAX_REQ``.
_REQUESTS = 128


def test_more_requests_than_qemu_has_room_for(raw_guest: RawGuest, share: Share, hold: Hold) -> None:
    """The guest offers three requests more than QEMU can have in flight, each in its own indirect table.

    Every request is answered once with the right bytes. Where the ring is too small for all of them, the
    surplus ones use a head that is in use already; QEMU need not answer those, but it must not exit.
    """
    require_counted_requests(raw_guest.machine)
    driver = plug_and_attach(raw_guest, share)
    driver.walk(ROOT, FILE, "file")
    driver.open(FILE)
    base, spacing = driver.buffer(0), 0x400
    before = driver.answered()
    message = struct.pack("<IBH", 23, T.READ, 1) + p9.read(FILE, 0, 100)
    heads = range(min(_REQUESTS + 3, driver.queue_size))
    with hold.requests(share) as held:
        for head in heads:
            place = base + head * spacing
            out, into = Descriptor(place + 64, len(message), NEXT, 1), Descriptor(place + 128, 256, WRITE)
            raw_guest.qtest.write(place, bytes(out) + bytes(into) + bytes(32) + message)
            driver.write_descriptors(head, Descriptor(place, 32, INDIRECT))
            driver.make_available(head)
        held.wait_in_flight(_REQUESTS)
        for head in range(_REQUESTS + 3 - len(heads)):
            driver.make_available(head)
        held.in_flight()
        driver.expect_answered(before)
    raw_guest.machine.wait_until(
        lambda: driver.answered() >= before + len(heads),
        what=f"all {len(heads)} answers",
        timeout_s=3,
    )
    for head in heads:
        answer = raw_guest.qtest.read(base + head * spacing + 128, p9.READ_HEADER + len(CONTENT))
        assert answer[4] == T.READ + 1, f"the answer to request {head}"
        assert answer[p9.READ_HEADER :] == CONTENT
    reset_and_attach(raw_guest, share)


def test_an_eject_with_requests_in_the_ring(raw_guest: RawGuest, share: Share) -> None:
    """The ring has requests when the device is ejected, and QEMU was not notified of them, or only just.

    They are dropped with the device: nothing blocks migration, no file stays open, and the device can be
    plugged again.
    """
    raw_guest.qtest.read(0, 1)  # Once it is answered, QEMU has accepted qtest's connection, which is an fd.
    before = open_fds(raw_guest.machine)
    for notify in (False, True):
        driver = plug_and_attach(raw_guest, share)
        driver.walk(ROOT, FILE, "file")
        driver.clunk(ROOT)
        driver.clunk(FILE)
        for index in range(0, 40, 2):
            out = driver.buffer(index)
            raw_guest.qtest.write(out, _MESSAGE)
            driver.write_descriptors(
                index, Descriptor(out, 11, NEXT, index + 1), Descriptor(driver.buffer(index + 1), 99, WRITE)
            )
            driver.make_available(index, notify=False)
        if notify:
            driver.notify()
        raw_guest.eject(share)
        expect_blocked_by(raw_guest.machine)
        wait_open_fds(raw_guest.machine, before)
    plug_and_attach(raw_guest, share)
