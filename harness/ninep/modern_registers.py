"""Virtio's modern registers of one device, over qtest: the common configuration, in a memory BAR.

The client itself (:mod:`.virtio_driver`) uses the legacy interface of the same device.

Sources: virtio 1.2, 4.1.4; QEMU ``hw/virtio/virtio-pci.c``, ``virtio_pci_common_read`` and ``..._write``.
"""

from __future__ import annotations

from harness.channel.qtest import Qtest
from harness.errors import GuestError
from harness.ninep.virtio_driver import BUS_MASTER, COMMAND, IO_SPACE, MEMORY_SPACE, VirtioDriver

#: The registers, each with its offset and its size in bytes (virtio 1.2, 4.1.4.3).
REGISTERS = {
    "device_feature_select": (0, 4),
    "driver_feature_select": (8, 4),
    "driver_feature": (12, 4),
    "config_msix_vector": (16, 2),
    "num_queues": (18, 2),
    "device_status": (20, 1),
    "config_generation": (21, 1),
    "queue_select": (22, 2),
    "queue_size": (24, 2),
    "queue_msix_vector": (26, 2),
    "queue_enable": (28, 2),
    "queue_notify_off": (30, 2),
    "queue_desc": (32, 8),
    "queue_driver": (40, 8),
    "queue_device": (48, 8),
}
#: PCI: the register of the first BAR, that of the first capability; a BAR of 64 bits.
_FIRST_BAR, _CAPABILITIES, _BAR_OF_64_BITS = 0x10, 0x34, 4
#: The id of a vendor's capability; its type for the common configuration (virtio 1.2, 4.1.4).
_VENDOR, _COMMON = 0x09, 1
#: Where the BARs are mapped: in the hole for PCI below 4 GiB, a piece for each slot.
_BARS, _ROOM = 0xE0000000, 0x100000


class ModernRegisters:
    """The common configuration of the device of ``driver``.

    :raises GuestError: when the device has no modern interface.
    """

    def __init__(self, qtest: Qtest, driver: VirtioDriver) -> None:
        self._qtest, self._driver = qtest, driver
        self._bar, self._offset = self._find()
        self.map()

    def _find(self) -> tuple[int, int]:
        """The BAR that has the common configuration, and the offset there."""
        at = self._driver.read_config(_CAPABILITIES) & 0xFC
        while at:
            head = self._driver.read_config(at)
            if (head & 0xFF, head >> 24) == (_VENDOR, _COMMON):
                return self._driver.read_config(at + 4) & 0xFF, self._driver.read_config(at + 8)
            at = head >> 8 & 0xFC
        raise GuestError(f"{self._driver.share.id}: the device has no modern interface")

    def map(self) -> None:
        """Map the registers into memory: after the device was plugged, and after a reset of the machine."""
        register = _FIRST_BAR + 4 * self._bar
        base = _BARS + self._driver.share.slot * _ROOM
        kind = self._driver.read_config(register) & 0xF
        self._driver.write_config(register, base | kind)
        if kind & _BAR_OF_64_BITS:
            self._driver.write_config(register + 4, 0)
        self._driver.write_config(COMMAND, IO_SPACE | MEMORY_SPACE | BUS_MASTER)
        self._base = base + self._offset

    def read(self, name: str) -> int:
        """The value of the register ``name`` of :data:`REGISTERS`."""
        offset, size = REGISTERS[name]
        return int.from_bytes(self._qtest.read(self._base + offset, size), "little")

    def read_all(self) -> dict[str, int]:
        """The values of all registers, by name."""
        return {name: self.read(name) for name in REGISTERS}

    def write(self, name: str, value: int) -> None:
        """Set the register ``name``."""
        offset, size = REGISTERS[name]
        self._qtest.write(self._base + offset, value.to_bytes(size, "little"))
