"""The registers of virtio's modern interface, which a driver of the legacy interface does not use.

They are reached through PCI configuration space (virtio 1.2, 4.1.4.9), so no BAR has to be mapped.
"""

from __future__ import annotations

from harness.ninep.client import RawDriver

_CAPABILITIES, _VENDOR_SPECIFIC = 0x34, 0x09
#: The types of virtio's capabilities (QEMU: ``linux/virtio_pci.h``).
_COMMON, _ACCESS = 1, 5
# Offsets in such a capability.
_TYPE, _BAR, _OFFSET, _LENGTH, _DATA = 3, 4, 8, 12, 16
#: The first register of the common configuration is ``device_feature_select``; it is 0 after a reset.
_SELECTED = 1


def select_features(driver: RawDriver) -> None:
    """Select the modern interface's other feature word: set ``device_feature_select`` to 1.

    :meth:`.RawDriver.registers` then has it, in the access capability.

    A device without a modern interface is left as it is.
    """
    found = _capabilities(driver)
    if _COMMON not in found or _ACCESS not in found:
        return
    common, access = found[_COMMON], found[_ACCESS]
    driver.write_config(access + _BAR, driver.read_config(common + _BAR) & 0xFF)
    driver.write_config(access + _OFFSET, driver.read_config(common + _OFFSET))
    driver.write_config(access + _LENGTH, 4)
    driver.write_config(access + _DATA, _SELECTED)


def _capabilities(driver: RawDriver) -> dict[int, int]:
    """The offset of each capability of virtio's modern interface, by type; of the first one of a type."""
    found: dict[int, int] = {}
    at = driver.read_config(_CAPABILITIES) & 0xFF
    while at:
        head = driver.read_config(at)
        if head & 0xFF == _VENDOR_SPECIFIC:
            found.setdefault(head >> 8 * _TYPE, at)
        at = head >> 8 & 0xFF
    return found
