from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from harness.channel.qtest import Qtest
from harness.errors import GuestError, UsageError, Violation, WaitTimeout
from harness.guest import p9
from harness.guest.lab import Lab
from harness.guest.p9 import NOFID, T
from harness.guest.raw9p import NineError, RawDriver, RawGuest, make_files
from harness.qemu.spec import MACHINE_TYPES
from harness.tests.channel.fake_qtest import Answer, FakeQtest, echo
from harness.tests.fakes import World
from harness.tests.qemu.specs import share

Drive = Callable[..., RawDriver]


@pytest.fixture
def drive(tmp_path: Path, world: World) -> Iterator[Drive]:
    """A driver whose device answers as the test says."""
    made: list[FakeQtest | Qtest] = []

    def make(answer: Answer = echo, *, queue_size: int = 128) -> RawDriver:
        path = tmp_path / "qtest"
        made.append(FakeQtest(path, answer=answer, queue_size=queue_size))
        qtest = Qtest(path)
        made.append(qtest)
        guest = SimpleNamespace(qtest=qtest, machine=world.machine)
        return RawDriver(cast(RawGuest, guest), share())

    yield make
    for each in made:
        each.close()


def test_a_session(drive: Drive) -> None:
    asked: list[int] = []

    def device(kind: int, tag: int, body: bytes) -> tuple[int, int, bytes]:
        asked.append(kind)
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
    assert asked == [T.VERSION, T.ATTACH, T.WALK, T.LCREATE, T.WRITE, T.READ, T.CLUNK, T.CLUNK]


def test_more_requests_than_the_ring_is_long(drive: Drive) -> None:
    driver = drive(queue_size=8)
    for number in range(30):
        assert driver.call(T.CLUNK, struct.pack("<I", number)) == struct.pack("<I", number)
    driver.expect_answered(30)


def test_an_old_answer_in_a_reused_place_is_not_taken_for_a_new_one(drive: Drive) -> None:
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
    with pytest.raises(UsageError, match=r"^share0: more requests in flight than the ring of 8 holds$"):
        [driver.send(T.CLUNK, bytes(4)) for _ in range(4)]


def test_an_error_carries_its_number(drive: Drive) -> None:
    driver = drive(lambda _kind, tag, _body: (T.RLERROR, tag, struct.pack("<I", 2)))
    with pytest.raises(NineError, match=r"^Twalk: ENOENT$") as error:
        driver.walk(0, 1, "none")
    assert error.value.errno == 2
    assert driver.fids == set()


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
    with pytest.raises(GuestError, match=r"^share0: no virtqueue behind port 0xc000; is it plugged in\?$"):
        drive(queue_size=0)


def test_a_tag_and_a_length_of_the_callers_choice(drive: Drive) -> None:
    seen: list[int] = []

    def device(kind: int, tag: int, body: bytes) -> tuple[int, int, bytes]:
        seen.append(tag)
        return kind + 1, tag, body

    driver = drive(device)
    driver.wait_answer(driver.send(T.FLUSH, b"\7\0", tag=7))
    assert seen == [7]


def test_another_machine_type_is_refused() -> None:
    lab = SimpleNamespace(cell=SimpleNamespace(machine_type=MACHINE_TYPES["q35"]))
    with pytest.raises(UsageError, match="only pc offers"):
        RawGuest(cast(Lab, lab))


def test_bodies() -> None:
    assert p9.walk(1, 2, "a", "bc") == b"\1\0\0\0\2\0\0\0\2\0\1\0a\2\0bc"
    assert p9.attach(3) == b"\3\0\0\0" + struct.pack("<I", NOFID) + b"\4\0root\0\0" + bytes(4)


def test_files_on_the_host(tmp_path: Path) -> None:
    assert make_files(tmp_path, 2) == ["file0", "file1"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file0", "file1"]
