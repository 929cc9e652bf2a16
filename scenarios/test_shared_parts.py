"""Shared parts are counted: unplugging one device leaves the others working, also with requests in flight.

Devices share QEMU's worker threads, possibly an fsdev, and an interrupt line.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.actions.hostile import HostileGuest
from harness.actions.hotplug import Hotplug
from harness.actions.migration import Migration
from harness.actions.run_state import RunState
from harness.errors import QemuError
from harness.guest.device import sysfs_folder
from harness.guest.guest import Guest
from harness.guest.transfer import reader
from harness.guest.workload import Workload
from harness.holds.hold import Hold
from harness.holds.throttle import require_throttling, throttled
from harness.ninep.client import RawDriver, RawGuest
from harness.ninep.intx import InterruptLine
from harness.plugin.thorough import by_default
from harness.qemu.spec import Share
from harness.testbed import Testbed

#: Fast enough that no request waits for long: the throttle only has to exist.
_BYTES_PER_S = 64 << 20


@pytest.fixture(params=["own_fsdevs", "one_fsdev", "one_throttled_fsdev"])
def shares(request: pytest.FixtureRequest, testbed: Testbed) -> tuple[Share, ...]:
    """Two shares: with an fsdev each, with one that both use, or with one that both use and that is
    throttled."""
    first, second = testbed.shares[:2]
    if request.param == "own_fsdevs":
        return testbed.declare(first, second)
    if request.param == "one_throttled_fsdev":
        first = throttled(first, bytes_per_s=_BYTES_PER_S)
        require_throttling(testbed.cell.qemu)
    return testbed.declare(first, second.beside(first))


@pytest.mark.always
@pytest.mark.any_plug
@pytest.mark.parametrize("unplugged", ["first", "second"])
def test_unplugging_one_leaves_the_other_working(
    guest: Guest, hotplug: Hotplug, shares: tuple[Share, ...], unplugged: str
) -> None:
    """Unplug one of two devices: the other reads and writes as before, and is then unplugged as well."""
    leaving, staying = shares if unplugged == "first" else reversed(shares)
    for share in shares:
        hotplug.plug(share)
        mount = guest.mount(share)
        mount.expect_intact("before", mount.write("before", size_kib=64))
        mount.unmount()
    mount = guest.mount(staying)
    hotplug.unplug(leaving)
    mount.expect_intact("after", mount.write("after", size_kib=64))
    mount.unmount()
    hotplug.unplug(staying)


@pytest.mark.thorough
def test_others_come_and_go_beside_a_workload(
    guest: Guest, hotplug: Hotplug, run_state: RunState, testbed: Testbed
) -> None:
    """Devices are plugged, used and unplugged, and the machine is stopped and continued, beside a
    workload on another device: the workload loses no byte."""
    busy, *others = testbed.shares[:3]
    hotplug.plug(busy)
    mount = guest.mount(busy)
    workload = Workload.start(mount)
    for other in others:
        hotplug.plug(other)
        mount_of_other = guest.mount(other)
        mount_of_other.expect_usable()
        workload.wait_progress()
        mount_of_other.unmount()
        hotplug.unplug(other)
        run_state.stop()
        run_state.cont()
    workload.wait_progress()
    workload.stop()
    mount.unmount()
    hotplug.unplug(busy)
    workload.expect_acknowledged()


@pytest.fixture
def three_shares(request: pytest.FixtureRequest, testbed: Testbed) -> tuple[Share, ...]:
    """Two shares that are not throttled, with an fsdev each or with one that both use, and a third."""
    first, second, third = testbed.shares[:3]
    return testbed.declare(first, second.beside(first) if request.param == "one_fsdev" else second, third)


#: The legacy interface is in I/O ports, which read as ones when nothing is there. The guest reads the
#: status of the ejected device when it finds, at the next plug, that the device is gone, and warns that it is
#: not 0 (Linux: ``drivers/virtio/virtio.c``, ``virtio_dev_remove``). The modern interface is in memory, which
#: reads as zeros.
_ALL_ONES = "the status of a legacy device that is gone reads as ones"


def _is_legacy(guest: Guest, share: Share) -> bool:
    """Whether the guest drives the device by the legacy interface: without VIRTIO_F_VERSION_1 (bit 32)."""
    return guest.succeed(f"cat {sysfs_folder(guest.machine, share)}/virtio*/features").strip()[32] == "0"


@pytest.mark.always
@pytest.mark.any_plug
@pytest.mark.parametrize(
    "three_shares", by_default("one_fsdev", of=["own_fsdevs", "one_fsdev"]), indirect=True
)
def test_one_has_a_request_in_flight_while_the_other_comes_and_goes(
    guest: Guest,
    hotplug: Hotplug,
    hostile: HostileGuest,
    migration: Migration,
    three_shares: tuple[Share, ...],
    hold: Hold,
) -> None:
    """While one device has a request in flight, plugs that fail, an unplug and a forced eject of another
    device complete and leave the request alone. Migration is blocked by the mounted devices only."""
    leaving, staying, third = three_shares
    late = replace(leaving, device_options={"romfile": "/nowhere/harness.rom"})
    hotplug.plug(staying)
    mount = guest.mount(staying)
    with hold.requests(staying) as held:
        work = reader(mount)
        held.wait_caught()

        def expect_undisturbed() -> None:
            held.in_flight()
            work.in_progress()
            migration.expect_blocked_by(staying)

        for failing in (replace(leaving, device_options={"fsdev": "nowhere"}), late):
            with pytest.raises(QemuError):
                hotplug.plug(failing)
            expect_undisturbed()
        hotplug.plug(leaving)
        mount_of_leaving = guest.mount(leaving)
        guest.succeed(f"ls -l {mount_of_leaving.mountpoint}/")
        migration.expect_blocked_by(staying, leaving)
        mount_of_leaving.unmount()
        expect_undisturbed()
        hotplug.unplug(leaving)
        expect_undisturbed()
        hotplug.plug(leaving)
        if _is_legacy(guest, leaving):
            guest.tolerate(r"drivers/virtio/virtio\.c.* virtio_dev_remove|Call [Tt]race:", why=_ALL_ONES)
        hostile.eject(leaving)
        expect_undisturbed()
        hotplug.plug(third)
        guest.mount(third).expect_usable()
        held.in_flight()
    work.wait_finished().expect_intact()
    mount.expect_intact("after", mount.write("after", size_kib=64))
    mount.unmount()
    migration.expect_blocked_by(third)
    hotplug.unplug(staying)


@pytest.fixture
def on_one_interrupt_line(testbed: Testbed) -> tuple[Share, Share]:
    """Two shares whose devices have the same interrupt line."""
    first, second = testbed.shares[0], replace(testbed.shares[1], device_options={"addr": _SAME_LINE})
    testbed.declare(first, second)
    return first, second


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_an_unplug_lets_the_interrupt_line_go(
    on_one_interrupt_line: tuple[Share, Share], raw_guest: RawGuest
) -> None:
    """An unplugged device stops raising the interrupt line that it shares; the other one's interrupt stays.

    A line that stays up makes the guest's kernel disable it for all devices ("irq N: nobody cared").
    """
    leaving, staying = on_one_interrupt_line
    guest, line = raw_guest, InterruptLine(raw_guest.qtest)

    def interrupt(driver: RawDriver) -> None:
        driver.version()
        assert line.asserted, f"{driver.share.id} answered, but raised no interrupt"

    neighbour = guest.plug(staying)
    assert not line.asserted, "the interrupt line is up, but no device has raised an interrupt"
    interrupt(guest.plug(leaving))
    guest.eject(leaving)
    assert not line.asserted, "the interrupt line is still up, but the device that raised it is gone"

    interrupt(neighbour)
    interrupt(guest.plug(leaving))
    guest.eject(leaving)
    assert line.asserted, "the neighbour's interrupt was lost"
    assert neighbour.acknowledge()
    assert not line.asserted, "the neighbour's interrupt was acknowledged, but the line is still up"

    interrupt(neighbour)
    guest.system_reset()
    assert not InterruptLine(guest.qtest).asserted, "the interrupt line survived a reset"


#: A slot with the first share's interrupt line. The slots have four lines in turn (QEMU:
#: ``hw/pci-host/i440fx.c``, ``pci_slot_get_pirq``).
_SAME_LINE = "0x14"
