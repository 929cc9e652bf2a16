from __future__ import annotations

import itertools
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from harness.actions.stream import UNIX
from harness.channel.qmp import Listener
from harness.errors import GuestError, UsageError, Violation, WaitTimeout
from harness.history import read
from harness.holds.hold import STAT, Hold
from harness.ninep import messages as p9
from harness.ninep.client import (
    MSIZE,
    NEXT,
    WRITE,
    Descriptor,
    FlushedError,
    NineError,
    RawGuest,
    make_files,
)
from harness.ninep.messages import NOFID, T
from harness.qemu.machine_types import MACHINE_TYPES
from harness.testbed import Testbed
from harness.tests.channel.fake_qtest import FakeQtest
from harness.tests.fakes import world
from harness.tests.ninep.conftest import Drive


@pytest.mark.parametrize(("kind", "dropped"), [(0, True), (T.READ + 1, False)])
def test_a_request_that_is_flushed(drive: Drive, kind: int, dropped: bool) -> None:
    """The device returns it with or without an answer."""
    driver = drive(lambda _, tag, body: (kind, tag, body))
    assert driver.wait_dropped(driver.send(T.READ, p9.read(1, 0, 10))) is dropped


def test_a_reset_of_a_slow_machine_may_take_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed_s: list[float] = []

    def wait(_: Listener, *, timeout_s: float, **__: object) -> None:
        allowed_s.append(timeout_s)

    monkeypatch.setattr(Listener, "wait", wait)
    machine = world(tmp_path, monkeypatch).machine
    machine.qmp.on("system_reset", {})
    RawGuest.system_reset(cast(RawGuest, SimpleNamespace(machine=machine)))
    assert allowed_s == [180.0]


def test_a_session(drive: Drive) -> None:
    received: list[int] = []

    def device(kind: int, tag: int, body: bytes) -> tuple[int, int, bytes]:
        received.append(kind)
        answers = {T.WRITE: struct.pack("<I", 5), T.READ: struct.pack("<I", 5) + b"bytes"}
        return kind + 1, tag, answers.get(T(kind), b"")

    driver = drive(device)
    driver.version()
    driver.attach(0)
    driver.walk(0, 1)
    driver.create(1, "file")
    assert driver.write(1, 0, b"bytes") == 5
    assert driver.read(1, 0, 5) == b"bytes"
    assert driver.fids == {0, 1}
    driver.clunk_all()
    assert driver.fids == set()
    driver.expect_answered(8)
    assert received == [T.VERSION, T.ATTACH, T.WALK, T.LCREATE, T.WRITE, T.READ, T.CLUNK, T.CLUNK]


def test_more_requests_than_the_ring_has_descriptors(drive: Drive) -> None:
    driver = drive(queue_size=8)
    for number in range(30):
        assert driver.call(T.CLUNK, struct.pack("<I", number)) == struct.pack("<I", number)
    driver.expect_answered(30)


def test_an_old_answer_in_a_reused_buffer_is_not_taken_for_a_new_one(drive: Drive) -> None:
    silent = False

    def device(kind: int, tag: int, body: bytes) -> tuple[int, int, bytes] | None:
        return None if silent else (kind + 1, tag, body)

    driver = drive(device, queue_size=8)
    for _ in range(4):
        driver.clunk(0)
    silent = True
    reusing = driver.send(T.CLUNK, bytes(4))
    with pytest.raises(WaitTimeout):
        driver.wait_answer(reusing, timeout_s=0.1)
    with pytest.raises(UsageError, match=r"^share0: 4 requests are in flight, and its ring of 8 descriptors"):
        [driver.send(T.CLUNK, bytes(4)) for _ in range(4)]


@pytest.mark.parametrize("queue_size", [2, 8, 64, 128, 256, 1024])
def test_nothing_of_a_device_overlaps(drive: Drive, fakes: list[FakeQtest], queue_size: int) -> None:
    """With the maximum of requests in flight, and with the memory of another device."""
    spans = []
    for slot in (0, 1):
        driver = drive(lambda *_request: None, queue_size=queue_size, slot=slot)
        begin = len(fakes[-1].lines)
        for number in range(queue_size // 2):
            driver.send(T.CLUNK, struct.pack("<I", number))
        with pytest.raises(UsageError, match=r"has no room for more; wait for an answer first$"):
            driver.send(T.CLUNK, bytes(4))
        spans += spans_of(fakes[-1].lines[begin:])
    assert len(spans) == 2 * 3 * (queue_size // 2)
    spans.sort()
    assert spans[-1][1] <= 256 << 20, "beyond the guest's memory"
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))


def spans_of(lines: list[str]) -> list[tuple[int, int]]:
    """The address ranges of each request, its descriptors, and the buffer of its answer."""
    found = []
    for address, data in (line.split()[1::2] for line in lines if line.startswith("write ")):
        begin, content = int(address, 16), bytes.fromhex(data.removeprefix("0x"))
        if len(content) > 2:  # Not the available ring's words.
            found.append((begin, begin + len(content)))
        if len(content) == 32:  # Two descriptors; the device writes where the second one says.
            into, size = struct.unpack("<QI", content[16:28])
            found.append((into, into + size))
    return found


def test_a_buffer_is_reused_when_it_is_free(drive: Drive) -> None:
    """A request that is never answered blocks only its own buffer."""
    driver = drive(lambda kind, tag, body: None if tag == 1 else (kind + 1, tag, body), queue_size=8)
    waiting = driver.send(T.CLUNK, bytes(4))
    for number in range(20):
        assert driver.call(T.CLUNK, struct.pack("<I", number)) == struct.pack("<I", number)
        assert not driver.is_answered(waiting)


def test_a_request_longer_than_its_buffer(drive: Drive) -> None:
    driver = drive()
    with pytest.raises(UsageError, match=r"^share0: Twrite has 16407 bytes, and its buffer 16384$"):
        driver.send(T.WRITE, bytes(16400))


def test_more_requests_than_16_bits_count(drive: Drive, fakes: list[FakeQtest]) -> None:
    """The ring's index and the tags wrap around; the number of answers does not."""
    driver = drive(queue_size=8)
    driver._sent = driver._used_seen = fakes[0]._taken = fakes[0]._served = 0xFFFD
    for number in range(6):
        assert driver.call(T.CLUNK, struct.pack("<I", number)) == struct.pack("<I", number)
        assert driver.answered() == 0xFFFE + number


def test_an_error_carries_its_number(drive: Drive) -> None:
    driver = drive(lambda _kind, tag, _body: (T.RLERROR, tag, struct.pack("<I", 2)))
    with pytest.raises(NineError, match=r"^Twalk: ENOENT$") as error:
        driver.walk(0, 1, "none")
    assert error.value.errno == 2
    assert driver.fids == set()


def test_an_error_of_the_unix_protocol_carries_its_number(drive: Drive) -> None:
    text = b"No such file or directory"
    body = struct.pack("<H", len(text)) + text + struct.pack("<I", 2)
    driver = drive(lambda _kind, tag, _body: (T.RERROR, tag, body))
    with pytest.raises(NineError, match=r"^Tclunk: ENOENT$"):
        driver.clunk(0)


def test_a_session_of_the_unix_protocol(drive: Drive) -> None:
    received: list[bytes] = []

    def device(kind: int, tag: int, body: bytes) -> tuple[int, int, bytes]:
        received.append(body)
        return kind + 1, tag, b""

    driver = drive(device)
    assert driver.protocol == p9.VERSION
    driver.version(p9.UNIX_VERSION)
    assert driver.protocol == p9.UNIX_VERSION
    assert received == [p9.version(MSIZE, "9P2000.u")]


def test_an_answer_with_a_wrong_length(drive: Drive, fakes: list[FakeQtest]) -> None:
    driver = drive()
    fakes[0].written_off = 5
    with pytest.raises(
        Violation, match=r"^the answer to Tclunk has the length 11 in its header, but 16 bytes$"
    ):
        driver.clunk(0)


def test_a_request_that_comes_back_without_an_answer(drive: Drive, fakes: list[FakeQtest]) -> None:
    driver = drive()
    fakes[0].written_off = -11
    with pytest.raises(FlushedError, match=r"^Tclunk \(tag 1\) came back without an answer$"):
        driver.clunk(0)


def test_a_request_that_is_answered_twice(drive: Drive, fakes: list[FakeQtest]) -> None:
    driver = drive()
    driver.clunk(0)
    fakes[0].serve_again()
    with pytest.raises(
        Violation, match=r"^share0: the request at descriptor 0 was answered twice, or never sent$"
    ):
        driver.expect_none_in_flight()


def test_none_in_flight(drive: Drive) -> None:
    driver = drive(lambda kind, tag, body: None if kind == T.READ else (kind + 1, tag, body))
    driver.clunk(0)
    driver.expect_none_in_flight()
    driver.send(T.READ, p9.read(0, 0, 1))
    with pytest.raises(Violation, match=r"^share0: 1 requests were not answered$"):
        driver.expect_none_in_flight()


def test_room_for_an_answer(drive: Drive, fakes: list[FakeQtest]) -> None:
    driver = drive(lambda *_request: None)
    request = driver.send(T.CLUNK, bytes(4), reply_size=9)
    table = fakes[0].written_at(driver.ring)
    assert table[:16] == bytes(Descriptor(driver.buffer(request.head), 11, NEXT, 1))
    assert table[16:] == bytes(Descriptor(driver.buffer(request.head + 1), 9, WRITE))


def test_a_chain_without_a_notification(drive: Drive) -> None:
    driver = drive()
    driver.send(T.CLUNK, bytes(4))
    driver.make_available(0, notify=False)
    driver.expect_answered(1)
    driver.notify()
    driver.expect_answered(2)


@pytest.mark.parametrize(("kind_off", "tag_off"), [(2, 0), (0, 1)])
def test_an_answer_to_something_else(drive: Drive, kind_off: int, tag_off: int) -> None:
    driver = drive(lambda kind, tag, body: (kind + 1 + kind_off, tag + tag_off, body))
    with pytest.raises(GuestError, match=r"^Tclunk \(tag 1\) was answered by type"):
        driver.clunk(0)


def test_no_answer(drive: Drive) -> None:
    driver = drive(lambda *_request: None)
    request = driver.send(T.CLUNK, bytes(4))
    with pytest.raises(WaitTimeout, match=r"the answer to Tclunk \(tag 1\) of share0"):
        driver.wait_answer(request, timeout_s=0.1)
    with pytest.raises(Violation, match=r"^share0: 0 requests were answered, expected 1$"):
        driver.expect_answered(1)


def test_no_device(drive: Drive) -> None:
    with pytest.raises(
        GuestError, match=r"^share0: no virtqueue behind port 0xc000; is the device plugged in\?$"
    ):
        drive(queue_size=0)


def test_a_tag_and_a_length_of_the_callers_choice(drive: Drive) -> None:
    seen: list[int] = []

    def device(kind: int, tag: int, body: bytes) -> tuple[int, int, bytes]:
        seen.append(tag)
        return kind + 1, tag, body

    driver = drive(device)
    driver.wait_answer(driver.send(T.FLUSH, b"\7\0", tag=7))
    assert seen == [7]


def test_a_device_at_another_address(drive: Drive, fakes: list[FakeQtest]) -> None:
    assert drive(addr="0x14").addr == 0x14
    assert fakes[0].lines[0] == f"outl 0xcf8 {0x80000000 | 0x14 << 11 | 0x10:#x}"


def test_an_interrupt_is_acknowledged(drive: Drive, fakes: list[FakeQtest]) -> None:
    driver = drive()
    fakes[0].queue_size = 1
    assert driver.acknowledge()
    fakes[0].queue_size = 2  # A change of the configuration, which is no interrupt of the queue.
    assert not driver.acknowledge()
    assert fakes[0].lines[-1] == "inb 0xc013"


def test_another_machine_type_is_refused() -> None:
    testbed = SimpleNamespace(cell=SimpleNamespace(machine_type=MACHINE_TYPES["q35"]))
    with pytest.raises(UsageError, match="only machine type pc has"):
        RawGuest(cast(Testbed, testbed))


def test_bodies_of_the_unix_protocol() -> None:
    assert p9.unix_open(1, p9.ORDWR) == b"\1\0\0\0\2"
    assert p9.unix_create(1, "a", 0o644, p9.OREAD, "to") == b"\1\0\0\0\1\0a\xa4\1\0\0\0\2\0to"
    nothing = p9.wstat(1)
    assert nothing[:8] == struct.pack("<IHH", 1, 63, 61)
    assert nothing[8:] == b"\xff" * 39 + bytes(10) + b"\xff" * 12
    named = p9.wstat(1, name="abc", mode=0o600, length=7)
    assert named[8 + 19 : 8 + 23] == struct.pack("<I", 0o600)
    assert named[8 + 31 : 8 + 44] == struct.pack("<qH", 7, 3) + b"abc"


def test_bodies() -> None:
    assert p9.walk(1, 2, "a", "bc") == b"\1\0\0\0\2\0\0\0\2\0\1\0a\2\0bc"
    assert p9.attach(3) == b"\3\0\0\0" + struct.pack("<I", NOFID) + b"\4\0root\0\0" + bytes(4)


def test_files_on_the_host(tmp_path: Path) -> None:
    assert make_files(tmp_path, 2) == ["file0", "file1"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file0", "file1"]


@pytest.mark.qemu
def test_as_many_requests_as_the_ring_takes_beside_another_device(testbed: Testbed) -> None:
    """Each request reads its own file, and does not touch the memory of the other device."""
    hold = Hold(testbed)
    first, second = testbed.shares[:2]
    names = make_files(first.path, 64)
    make_files(second.path, 1)
    raw = RawGuest(testbed)
    busy, other = raw.plug(first), raw.plug(second)
    for driver in (busy, other):
        driver.version()
        driver.attach(0)
    assert busy.max_in_flight == len(names)
    for fid, name in enumerate(names, start=1):
        busy.walk(0, fid, name)
        busy.open(fid)
    with hold.requests(first) as held:
        before = raw.qtest.read(other._memory, 0x8000)
        reads = [busy.send(T.READ, p9.read(fid, 0, 100)) for fid in range(1, len(names) + 1)]
        held.wait_in_flight(len(names))
        assert raw.qtest.read(other._memory, 0x8000) == before, "the ring of another device was written to"
        other.version()  # QEMU needs none of its 64 worker threads for it, which are all taken.
    assert [busy.wait_answer(read)[4:].decode() for read in reads] == names
    other.attach(0)
    other.walk(0, 1, "file0")
    other.open(1)
    assert other.read(1, 0, 100) == b"file0"


@pytest.mark.qemu
def test_a_hold_stays_with_the_source_of_a_migration(testbed: Testbed) -> None:
    """A Tattach in flight does not block the migration; the witness must ask the source."""
    hold, share = Hold(testbed), testbed.shares[0]
    raw = RawGuest(testbed)
    driver = raw.plug(share)
    driver.version()
    with hold.requests(share, *STAT) as held:
        driver.send(T.ATTACH, p9.attach(0))
        held.wait_caught()
        destination = testbed.launch_destination(raw.machine)
        UNIX.prepare(raw.machine, destination)
        raw.machine.qmp.execute("migrate", {"uri": UNIX.open(raw.machine, destination)})
        raw.machine.wait_until(
            lambda: raw.machine.qmp.execute("query-migrate").get("status") == "completed",
            what="the migration to complete",
            timeout_s=20,
        )
        held.in_flight()
        held.waiting()
    actors = [e.actor for e in read(testbed.history.path) if e.f in ("hold:inuse", "hold:waiting")]
    assert set(actors) == {raw.machine.name}
