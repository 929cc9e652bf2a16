from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from harness.channel.qtest import Qtest
from harness.errors import GuestError
from harness.ninep.modern_registers import REGISTERS, ModernRegisters
from harness.ninep.virtio_driver import VirtioDriver

#: Where the fake device has the registers: in BAR 4, of 64 bits, at this offset.
_OFFSET, _BASE = 0x40, 0xE0100040


class Memory:
    """The memory that qtest reads and writes."""

    def __init__(self) -> None:
        self.bytes: dict[int, int] = {}

    def read(self, address: int, size: int) -> bytes:
        return bytes(self.bytes.get(address + at, 0) for at in range(size))

    def write(self, address: int, data: bytes) -> None:
        self.bytes |= {address + at: byte for at, byte in enumerate(data)}


class Config:
    """A driver that has only PCI configuration space; the capabilities are an MSI-X and the given one."""

    def __init__(self, capability: int) -> None:
        self.share = SimpleNamespace(id="share1", slot=1)
        self.registers = {
            0x34: 0x98,
            0x98: 0x0000_8411,
            0x84: capability,
            0x88: 4,
            0x8C: _OFFSET,
            0x20: 0xC,
            0x24: 1,
        }

    def read_config(self, register: int) -> int:
        return self.registers[register]

    def write_config(self, register: int, value: int) -> None:
        self.registers[register] = value


def registers(memory: Memory, config: Config) -> ModernRegisters:
    return ModernRegisters(cast(Qtest, memory), cast(VirtioDriver, config))


def test_a_register_is_read_where_it_was_written() -> None:
    memory, config = Memory(), Config(0x01_10_00_09)
    modern = registers(memory, config)
    modern.write("queue_desc", 0x123456789A)
    modern.write("queue_size", 64)
    assert modern.read_all() == dict.fromkeys(REGISTERS, 0) | {"queue_desc": 0x123456789A, "queue_size": 64}
    assert memory.read(_BASE + 24, 2) == b"\x40\0"
    assert (config.registers[0x20], config.registers[0x24], config.registers[0x04]) == (0xE010000C, 0, 7)


def test_a_device_without_a_modern_interface() -> None:
    with pytest.raises(GuestError, match="share1: the device has no modern interface"):
        registers(Memory(), Config(0x02_10_00_09))
