"""Migrates when unmounted: what a device consists of travels, register by register; nothing wrong is loaded.

The devices are driven by hand, on machines that are never started; one scenario looks from inside a guest.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.actions.device_state import registers
from harness.actions.hotplug import Hotplug
from harness.actions.migration import Migration, expect_blocked_by
from harness.actions.raw_migration import expect_load_fails, load_stream, migrate_raw, save_stream
from harness.errors import QemuDied, Violation, WaitTimeout
from harness.guest.guest import Guest
from harness.ninep import messages as p9
from harness.ninep.client import MSIZE, RawDriver, RawGuest
from harness.ninep.messages import T
from harness.qemu.spec import Share


def use(driver: RawDriver) -> None:
    """A session from its beginning to its end: nothing is mounted before or after."""
    driver.version()
    driver.attach(1)
    driver.walk(1, 2)
    driver.clunk_all()


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
@pytest.mark.parametrize("times", [0, 1, 30])
def test_each_register_arrives(raw_guest: RawGuest, share: Share, times: int) -> None:
    """Unused, used a little, and used until the ring has begun anew (it has 128 entries)."""
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


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_the_rings_go_on_from_where_they_were(raw_guest: RawGuest, share: Share) -> None:
    """Over several machines, in each of which the ring is used further."""
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
    """The device's ISR is what it was: a driver that has not looked yet finds the interrupt, once."""
    driver = raw_guest.plug(share)
    use(driver)
    if taken:
        assert driver.acknowledge()
    _, (driver,) = migrate_raw(raw_guest, driver)
    assert driver.acknowledge() is not taken
    assert not driver.acknowledge()
    use(driver)
    assert driver.acknowledge()


def expect_silent(driver: RawDriver) -> None:
    """A device that is broken answers nothing: QEMU has been round, and the ring is as it was."""
    answered = driver.answered()
    request = driver.send(T.VERSION, p9.version(MSIZE))
    with pytest.raises(WaitTimeout):
        driver.wait_answer(request, timeout_s=0.05)
    driver.expect_answered(answered)


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_a_broken_device_stays_broken(raw_guest: RawGuest, share: Share) -> None:
    """A guest that talked nonsense does not get its device back by a migration, and does by a reset."""
    driver = raw_guest.plug(share)
    use(driver)
    driver.break_device()
    expect_silent(driver)
    raw_guest, (driver,) = migrate_raw(raw_guest, driver)
    expect_silent(driver)
    driver = raw_guest.driver(share)
    use(driver)
    raw_guest.eject(share)


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_several_devices_arrive_each_as_it_was(raw_guest: RawGuest, shares: tuple[Share, ...]) -> None:
    """Four, of which each was used another number of times; one goes before, and one after."""
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


@dataclass(frozen=True)
class Section:
    """Where a device's state lies in a stream (QEMU: ``hw/virtio/virtio.c``, ``virtio_save``).

    :ivar config: the offset of the device's own configuration, which the mount tag is in.
    """

    config: int
    length: int

    @classmethod
    def find(cls, stream: bytes, share: Share) -> Section:
        """By the mount tag, as the device has it: how long it is, and the text."""
        tag = struct.pack("<H", len(share.mount_tag)) + share.mount_tag.encode()
        begin = stream.index(b"/virtio-9p")
        return cls(stream.index(struct.pack(">I", len(tag)) + tag, begin) + 4, len(tag))

    @property
    def after(self) -> int:
        """The offset of the number of virtqueues; each of them follows."""
        return self.config + self.length


#: A change of a stream: which bytes of it, given its section, become which.
Damage = Callable[[Section], tuple[int, bytes]]
#: What nobody loads. The right length of what follows would be no excuse: each is wrong in itself.
DAMAGES: dict[str, Damage] = {
    "queue_selector": lambda section: (section.config - 10, struct.pack(">H", 0xFFFF)),
    "one_queue_too_far": lambda section: (section.config - 10, struct.pack(">H", 1024)),
    "many_queues": lambda section: (section.after, struct.pack(">I", 0x7FFFFFFF)),
    "negative_queues": lambda section: (section.after, struct.pack(">I", 0xFFFFFFFF)),
    "more_queues_than_a_device_has": lambda section: (section.after, struct.pack(">I", 1025)),
    "long_config": lambda section: (section.config - 4, struct.pack(">I", 0x20000)),
    # With what they announce, so that whoever believes them writes all of it.
    "queues_that_are_there": lambda section: (section.after, struct.pack(">I", 1 << 16) + bytes(16 << 16)),
    "config_that_is_there": lambda section: (
        section.config - 4,
        struct.pack(">I", 1 << 24) + b"\xff" * (1 << 24),
    ),
    "short_config": lambda section: (section.config - 4, struct.pack(">I", 0)),
    "indices_without_a_ring": lambda section: (section.after + 8, bytes(8)),
    "the_magic_number": lambda _: (0, b"\0"),
    "the_version": lambda _: (4, struct.pack(">I", 99)),
}


@pytest.fixture
def stream(raw_guest: RawGuest, share: Share) -> bytes:
    """Of a device that was used once, and whose mount tag was read."""
    driver = raw_guest.plug(share)
    assert driver.tag() == share.mount_tag
    use(driver)
    path = raw_guest.machine.folder / "stream"
    save_stream(raw_guest, path)
    return path.read_bytes()


def write(raw_guest: RawGuest, name: str, content: bytes) -> Path:
    """A file of that content."""
    path = raw_guest.machine.folder / name
    path.write_bytes(content)
    return path


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_damaged_streams(raw_guest: RawGuest, share: Share, stream: bytes) -> None:
    """None is loaded: QEMU ends, whatever the damage would have written where; the whole one is."""
    section = Section.find(stream, share)
    loaded = {}
    for name, damage in DAMAGES.items():
        at, value = damage(section)
        assert stream[at : at + len(value)] != value, f"{name}: this is what is there"
        path = write(raw_guest, name, stream[:at] + value + stream[at + len(value) :])
        try:
            expect_load_fails(raw_guest, path)
        except (Violation, QemuDied) as exc:
            loaded[name] = exc.message
    assert not loaded
    use(load_stream(raw_guest, write(raw_guest, "whole", stream)).driver(share))


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_streams_that_end_too_early(raw_guest: RawGuest, share: Share, stream: bytes) -> None:
    """At the beginning, in the memory, in the device's section, and right after it: they are not loaded."""
    section = Section.find(stream, share)
    for length in (0, 100, section.config - 400, section.config + 2, section.after + 10):
        expect_load_fails(raw_guest, write(raw_guest, f"{length}-bytes", stream[:length]))


@pytest.mark.any_plug
def test_the_guest_finds_the_device_as_it_was(
    guest: Guest, hotplug: Hotplug, migration: Migration, share: Share
) -> None:
    """Virtio's modern registers and PCI's configuration, as a guest reads them, before and after."""
    hotplug.plug(share)
    guest.mount(share).unmount()
    before = registers(guest, share)
    migration.migrate()
    assert registers(guest, share) == before
    mount = guest.mount(share)
    mount.expect_usable()
    mount.unmount()
