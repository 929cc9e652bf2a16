from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.channel.qtest import Qtest
from harness.errors import ChannelLost, HarnessError, QemuDied
from harness.tests.channel.fake_qtest import FakeQtest


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeQtest]:
    made = FakeQtest(tmp_path / "s")
    yield made
    made.close()


@pytest.fixture
def qtest(tmp_path: Path, server: FakeQtest) -> Iterator[Qtest]:
    assert server
    made = Qtest(tmp_path / "s")
    yield made
    made.close()


def test_the_commands_as_sent(qtest: Qtest, server: FakeQtest) -> None:
    qtest.outb(0x70, 1)
    qtest.outw(0x72, 0x1234)
    qtest.outl(0xCF8, 0x80000000)
    assert (qtest.inb(0xC013), qtest.inw(0xC00C), qtest.inl(0xC00C)) == (128, 128, 128)
    qtest.write(0x1000, b"\x01\xff")
    assert qtest.read(0x1000, 3) == b"\x01\xff\x00"
    assert server.lines == [
        "outb 0x70 0x1",
        "outw 0x72 0x1234",
        "outl 0xcf8 0x80000000",
        "inb 0xc013",
        "inw 0xc00c",
        "inl 0xc00c",
        "write 0x1000 0x2 0x01ff",
        "read 0x1000 0x3",
    ]


def test_writes_together_are_sent_in_order(qtest: Qtest, server: FakeQtest) -> None:
    with qtest.together():
        qtest.write(0x1000, b"\x01")
        qtest.write(0x1000, b"\x02")
        qtest.outw(0x72, 1)
        assert server.lines == []
    assert server.lines == ["write 0x1000 0x1 0x01", "write 0x1000 0x1 0x02", "outw 0x72 0x1"]
    assert qtest.read_each((0x1000, 1), (0x2000, 2)) == [b"\x02", b"\x00\x00"]


def two_writes(qtest: Qtest) -> None:
    with qtest.together():
        qtest.outb(1, 2)
        qtest.outb(3, 4)


def test_a_refused_write_together_with_others(qtest: Qtest, server: FakeQtest) -> None:
    server.instead = b"FAIL\n"
    with pytest.raises(HarnessError, match=r"^qtest: 'outb 0x1 0x2' was answered with 'FAIL'"):
        two_writes(qtest)


def test_a_read_inside_together(qtest: Qtest) -> None:
    with pytest.raises(AssertionError, match=r"a read inside together\(\)"), qtest.together():
        qtest.read(0x1000, 1)


def test_nothing_is_sent_when_the_block_fails(qtest: Qtest, server: FakeQtest) -> None:
    def write_and_fail() -> None:
        with qtest.together():
            qtest.outb(1, 2)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_and_fail()
    qtest.outb(3, 4)
    assert server.lines == ["outb 0x3 0x4"]


def test_a_qemu_that_ends_between_two_commands(qtest: Qtest) -> None:
    """Then already the next one cannot be sent."""
    qtest.outb(1, 2)
    qtest._socket.shutdown(socket.SHUT_WR)
    with pytest.raises(ChannelLost, match=r"broke during 'outb 0x3 0x4': .*Broken pipe"):
        qtest.outb(3, 4)


def test_a_late_answer_is_not_taken_for_that_of_the_next_command(qtest: Qtest, server: FakeQtest) -> None:
    server.instead = b"OK"  # The rest of the line does not come in time.
    qtest._socket.settimeout(0.1)
    with pytest.raises(ChannelLost, match=r"broke during 'inw 0xc00c': timed out"):
        qtest.inw(0xC00C)
    server.instead = b" 0x1\nOK 0x2\n"
    with pytest.raises(ChannelLost, match=r"^the qtest connection broke earlier, during 'inw 0xc00c'$"):
        qtest.inw(0xC00E)


def test_an_irq_line_before_the_answer_is_skipped(qtest: Qtest, server: FakeQtest) -> None:
    server.before = b"IRQ raise 4\nIRQ lower 4\n"
    assert qtest.inw(0xC00C) == 128


def test_a_refused_command(qtest: Qtest, server: FakeQtest) -> None:
    server.instead = b"FAIL Unknown command 'outb'\n"
    with pytest.raises(HarnessError, match=r"^qtest: 'outb 0x1 0x2' was answered with \"FAIL Unknown"):
        qtest.outb(1, 2)


def test_qemu_closes_the_connection(qtest: Qtest, server: FakeQtest) -> None:
    server.instead = b"hang up"
    with pytest.raises(ChannelLost, match="broke during 'outb 0x1 0x2': QEMU closed the connection"):
        qtest.outb(1, 2)


def test_a_socket_that_never_comes(tmp_path: Path) -> None:
    with pytest.raises(ChannelLost, match=r"the qtest socket .*/none"):
        Qtest(tmp_path / "none", timeout_s=0.2)


def test_a_dead_qemu_ends_the_wait(tmp_path: Path) -> None:
    def died() -> None:
        raise QemuDied("QEMU 'source' was killed")

    with pytest.raises(QemuDied):  # And not ChannelLost, which is the end of the time.
        Qtest(tmp_path / "none", timeout_s=60, watch=died)
