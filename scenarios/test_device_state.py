"""Migrates when unmounted: registers, rings and interrupts arrive as they were; a damaged stream is refused.

A raw client drives the devices, on machines that are never started. The last scenario has a real guest.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from harness.actions.device_state import registers
from harness.actions.hotplug import Hotplug
from harness.actions.migration import Migration, expect_blocked_by
from harness.actions.raw_migration import (
    expect_load_fails,
    load_stream,
    load_stream_or_fail,
    migrate_raw,
    save_stream,
)
from harness.errors import QemuDied, Violation, WaitTimeout
from harness.guest.guest import Guest
from harness.ninep import messages as p9
from harness.ninep.client import MSIZE, RawDriver, RawGuest
from harness.ninep.messages import T
from harness.qemu.binary import require_property
from harness.qemu.spec import Share, Value
from harness.testbed import Testbed


def use(driver: RawDriver) -> None:
    """Start a session, use it and clunk everything: nothing is attached before or after."""
    driver.version()
    driver.attach(1)
    driver.walk(1, 2)
    driver.clunk_all()


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
@pytest.mark.parametrize("times", [0, 1, pytest.param(30, marks=pytest.mark.thorough)])
def test_each_register_arrives(raw_guest: RawGuest, share: Share, times: int) -> None:
    """The registers arrive unchanged: of an unused device, and after so many requests that the ring's 128
    entries have wrapped around."""
    driver = raw_guest.plug(share)
    for _ in range(times):
        use(driver)
    before = driver.registers()
    assert before["mount tag"] == share.mount_tag
    raw_guest, (driver,) = migrate_raw(raw_guest, driver)
    assert driver.registers() == before
    for _ in range(2):
        use(driver)
    expect_blocked_by(raw_guest.machine)
    raw_guest.eject(share)


@pytest.fixture
def without_msix(testbed: Testbed) -> Share:
    """A share whose device has no MSI-X; to be made before the machine."""
    share, *others = testbed.shares
    return testbed.declare(replace(share, device_options={"vectors": 0}), *others)[0]


@pytest.mark.thorough
@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_a_device_without_msix_arrives(without_msix: Share, raw_guest: RawGuest) -> None:
    """The registers of a device whose section of the stream has no vectors arrive, and it works."""
    driver = raw_guest.plug(without_msix)
    use(driver)
    before = driver.registers()
    raw_guest, (driver,) = migrate_raw(raw_guest, driver)
    assert driver.registers() == before
    use(driver)
    raw_guest.eject(without_msix)


@pytest.mark.thorough
@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_the_rings_go_on_from_where_they_were(raw_guest: RawGuest, share: Share) -> None:
    """Over several migrations in a row the ring continues at the index that it had."""
    driver = raw_guest.plug(share)
    for count in (1, 20, 30):
        for _ in range(count):
            use(driver)
        answered = driver.answered()
        raw_guest, (driver,) = migrate_raw(raw_guest, driver)
        assert driver.answered() == answered
    use(driver)


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
@pytest.mark.parametrize("taken", [True, False])
def test_an_interrupt_that_nobody_has_taken_arrives(raw_guest: RawGuest, share: Share, taken: bool) -> None:
    """The ISR arrives as it was: a driver that has not read it yet finds the interrupt, once."""
    driver = raw_guest.plug(share)
    use(driver)
    if taken:
        assert driver.acknowledge()
    _, (driver,) = migrate_raw(raw_guest, driver)
    assert driver.acknowledge() is not taken
    assert not driver.acknowledge()
    use(driver)
    assert driver.acknowledge()


def expect_broken(driver: RawDriver) -> None:
    """The device is broken: it does not answer a request."""
    answered = driver.answered()
    request = driver.send(T.VERSION, p9.version(MSIZE))
    with pytest.raises(WaitTimeout):
        driver.wait_answer(request, timeout_s=0.05)
    driver.expect_answered(answered)


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_a_broken_device_stays_broken(raw_guest: RawGuest, share: Share) -> None:
    """A device that QEMU marked broken stays broken in a migration; only a reset makes it work again."""
    driver = raw_guest.plug(share)
    use(driver)
    driver.break_device()
    expect_broken(driver)
    raw_guest, (driver,) = migrate_raw(raw_guest, driver)
    expect_broken(driver)
    driver = raw_guest.driver(share)
    use(driver)
    raw_guest.eject(share)


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_several_devices_arrive_each_as_it_was(raw_guest: RawGuest, shares: tuple[Share, ...]) -> None:
    """Four devices with different numbers of requests; one is ejected before the migration, one after it."""
    drivers = [raw_guest.plug(share) for share in shares]
    for times, driver in enumerate(drivers):
        for _ in range(times):
            use(driver)
    raw_guest.eject(shares[0])
    left = drivers[1:]
    before = [driver.registers() for driver in left]
    raw_guest, left = migrate_raw(raw_guest, *left)
    assert [driver.registers() for driver in left] == before
    raw_guest.eject(shares[1])
    for driver in left[1:]:
        use(driver)
    again = raw_guest.plug(shares[0])
    use(again)


#: The vendor and the device of a transitional virtio-9p (virtio 1.2, 4.1.2.1).
_PCI_ID = (0x1AF4, 0x1009)
_FEATURES = b"virtio/64bit_features"


@dataclass(frozen=True)
class Section:
    """Where a device's state is in a stream, in bytes (QEMU: ``hw/virtio/virtio.c``, ``virtio_save``).

    :ivar config: the offset of the device's configuration, which has the mount tag.
    :ivar length: the length of that configuration.
    :ivar pci: the offset of the PCI configuration space (``virtio_pci_save_config``).
    :ivar features: the offset of the subsection that has the features (``vmstate_virtio_64bit_features``).
    """

    config: int
    length: int
    pci: int
    features: int

    @classmethod
    def find(cls, stream: bytes, share: Share) -> Section:
        """Find it by the mount tag, which is its length (16 bits) and its text.

        :raises Violation: when the stream has no section of a virtio-9p device.
        """
        if b"/virtio-9p" not in stream:
            raise Violation(f"the stream has no section of {share.id}'s device")
        tag = struct.pack("<H", len(share.mount_tag)) + share.mount_tag.encode()
        begin = stream.index(b"/virtio-9p")
        config = stream.index(struct.pack(">I", len(tag)) + tag, begin) + 4
        pci = stream.index(struct.pack("<HH", *_PCI_ID), begin)
        # The subsection's name is followed by its version, which has four bytes.
        features = stream.index(_FEATURES, config) + len(_FEATURES) + 4
        return cls(config, len(tag), pci, features)

    @property
    def after(self) -> int:
        """The offset of the number of virtqueues, which the virtqueues follow."""
        return self.config + self.length


#: A damage to a stream: the offset, and the bytes that are written there.
Damage = Callable[[Section], tuple[int, bytes]]
#: Damages that QEMU has to refuse.
DAMAGES: dict[str, Damage] = {
    "queue_selector": lambda section: (section.config - 10, struct.pack(">H", 0xFFFF)),
    "one_queue_too_far": lambda section: (section.config - 10, struct.pack(">H", 1024)),
    "many_queues": lambda section: (section.after, struct.pack(">I", 0x7FFFFFFF)),
    "negative_queues": lambda section: (section.after, struct.pack(">I", 0xFFFFFFFF)),
    "more_queues_than_a_device_has": lambda section: (section.after, struct.pack(">I", 1025)),
    "long_config": lambda section: (section.config - 4, struct.pack(">I", 0x20000)),
    # These also have as many bytes as they announce: a QEMU that does not check would load all of them.
    "queues_that_are_there": lambda section: (section.after, struct.pack(">I", 1 << 16) + bytes(16 << 16)),
    "config_that_is_there": lambda section: (
        section.config - 4,
        struct.pack(">I", 1 << 24) + b"\xff" * (1 << 24),
    ),
    "short_config": lambda section: (section.config - 4, struct.pack(">I", 0)),
    "indices_without_a_ring": lambda section: (section.after + 8, bytes(8)),
    # Five requests were answered, so none is in use.
    "more_in_use_than_the_ring_has": lambda section: (section.after + 16, struct.pack(">H", 0)),
    "a_vector_of_the_device_that_is_not_there": lambda section: (section.config - 14, struct.pack(">H", 99)),
    "a_vector_of_the_ring_that_is_not_there": lambda section: (section.after + 18, struct.pack(">H", 99)),
    "features_that_the_device_has_not": lambda section: (section.features, b"\xff" * 8),
    "a_version_of_the_features": lambda section: (section.features - 4, struct.pack(">I", 99)),
    "another_pci_device": lambda section: (section.pci, struct.pack("<H", 0x1234)),
    "the_magic_number": lambda _: (0, b"\0"),
    "the_version": lambda _: (4, struct.pack(">I", 99)),
}


@pytest.fixture
def stream(raw_guest: RawGuest, share: Share) -> bytes:
    """The stream of a machine with one device, which was used once."""
    driver = raw_guest.plug(share)
    assert driver.tag() == share.mount_tag
    use(driver)
    path = raw_guest.machine.folder / "stream"
    save_stream(raw_guest, path)
    return path.read_bytes()


def write(raw_guest: RawGuest, name: str, content: bytes) -> Path:
    """Write a file into the machine's folder; its path."""
    path = raw_guest.machine.folder / name
    path.write_bytes(content)
    return path


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_damaged_streams(raw_guest: RawGuest, share: Share, stream: bytes) -> None:
    """QEMU loads no damaged stream: it exits with an error instead. The undamaged stream is loaded."""
    section = Section.find(stream, share)
    loaded = {}
    for name, damage in DAMAGES.items():
        at, value = damage(section)
        assert stream[at : at + len(value)] != value, f"{name}: the stream has these bytes already"
        path = write(raw_guest, name, stream[:at] + value + stream[at + len(value) :])
        try:
            expect_load_fails(raw_guest, path)
        except (Violation, QemuDied) as exc:
            loaded[name] = exc.message
    assert not loaded
    use(load_stream(raw_guest, write(raw_guest, "whole", stream)).driver(share))


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_an_index_that_the_ring_has_not_reached(raw_guest: RawGuest, share: Share, stream: bytes) -> None:
    """A device that has taken more requests from its ring than the guest has put there arrives broken, and
    works after a reset; an older QEMU loads no such stream."""
    at = Section.find(stream, share).after + 16
    ahead = stream[:at] + struct.pack(">H", 1000) + stream[at + 2 :]
    arrived = load_stream_or_fail(raw_guest, write(raw_guest, "ahead", ahead))
    if arrived is None:
        return
    machine = arrived.machine
    machine.wait_until(
        lambda: "inconsistent with Host index" in machine.artifacts.qemu.read_text(errors="replace"),
        what="QEMU's error about the index",
        timeout_s=10,
    )
    use(arrived.driver(share))
    arrived.eject(share)


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_an_index_that_the_guest_has_made_up(raw_guest: RawGuest, share: Share) -> None:
    """A guest cannot prevent its migration: a device whose ring claims more requests than it has room for
    arrives, and works after a reset."""
    driver = raw_guest.plug(share)
    use(driver)
    driver.claim(driver.queue_size + 1)
    raw_guest, _ = migrate_raw(raw_guest, driver)
    use(raw_guest.driver(share))
    raw_guest.eject(share)


@pytest.mark.thorough
@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_streams_that_end_too_early(raw_guest: RawGuest, share: Share, stream: bytes) -> None:
    """QEMU does not load a stream that ends early: at its beginning, in the guest's memory, in the device's
    section or just after it."""
    section = Section.find(stream, share)
    for length in (0, 100, section.config - 400, section.config + 2, section.after + 10):
        expect_load_fails(raw_guest, write(raw_guest, f"{length}-bytes", stream[:length]))


@pytest.fixture
def modern(testbed: Testbed) -> Share:
    """A share whose device has the modern interface of virtio; to be made before the machine.

    Before 2.6 it is off by default (QEMU: ``hw/virtio/virtio-pci.c``, ``disable-modern``).
    """
    share, *others = testbed.shares
    options: dict[str, Value] = {"disable-modern": False} if share.driver.endswith("-pci") else {}
    return testbed.declare(replace(share, device_options=options), *others)[0]


@pytest.mark.any_plug
def test_the_guest_finds_the_device_as_it_was(
    modern: Share, guest: Guest, hotplug: Hotplug, migration: Migration
) -> None:
    """The guest reads the same virtio registers and PCI configuration before and after a migration."""
    hotplug.plug(modern)
    guest.mount(modern).unmount()
    before = registers(guest, modern)
    migration.migrate()
    assert registers(guest, modern) == before, "the device's registers are others after the migration"
    mount = guest.mount(modern)
    mount.expect_usable()
    mount.unmount()


@pytest.fixture
def packed(testbed: Testbed) -> Share:
    """A share whose device offers a packed ring (virtio 1.2, 2.8)."""
    share, *others = testbed.shares
    require_property(testbed.cell.qemu, share.driver, "packed")
    options: dict[str, Value] = {"disable-legacy": "on", "packed": True}
    return testbed.declare(replace(share, device_options=options), *others)[0]


@pytest.mark.thorough
@pytest.mark.pin_machine("pc")
def test_a_packed_ring_arrives(packed: Share, guest: Guest, hotplug: Hotplug, migration: Migration) -> None:
    """A device whose driver has negotiated a packed ring arrives with the indices and wrap counters that the
    ring had."""
    hotplug.plug(packed)
    mount = guest.mount(packed)
    # More requests than the ring has entries: both wrap counters change.
    mount.expect_intact("before", mount.write("before", size_kib=4096))
    mount.unmount()
    migration.migrate()
    mount = guest.mount(packed)
    mount.expect_intact("after", mount.write("after", size_kib=64))
    mount.unmount()
    hotplug.unplug(packed)
