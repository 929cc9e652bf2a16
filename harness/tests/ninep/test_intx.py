from __future__ import annotations

from pathlib import Path

from harness.channel.qtest import Qtest
from harness.ninep.intx import InterruptLine
from harness.tests.channel.fake_qtest import FakeQtest


def test_the_lines_are_routed_to_a_level_triggered_input(tmp_path: Path) -> None:
    fake = FakeQtest(tmp_path / "s")
    qtest = Qtest(tmp_path / "s")
    try:
        line = InterruptLine(qtest)
        assert fake.lines == [
            "outb 0x4d1 0x4",
            "outl 0xcf8 0x80000860",
            "outl 0xcfc 0xa0a0a0a",
        ]
        fake.queue_size = 0b100  # The value that every port reads: the request bit of input 10.
        assert line.asserted
        fake.queue_size = 0b1011
        assert not line.asserted
        assert fake.lines[3:5] == ["outb 0xa0 0xa", "inb 0xa0"]
    finally:
        qtest.close()
        fake.close()
