"""Unplug is refused while busy: device_del is accepted, but completes only when the share is no longer used.

Until then the device stays and works, and no byte is lost. A mount keeps the share busy, and so do a request
in flight and a process that uses a detached mount.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from harness.actions.bad_plugs import BadPlug
from harness.actions.hotplug import Hotplug, Unplug, UnplugState
from harness.actions.migration import Migration
from harness.actions.run_state import RunState
from harness.deadline import check_during
from harness.guest import transfer
from harness.guest.guest import Guest
from harness.guest.job import Job
from harness.guest.mount import Mount
from harness.guest.mount_user import KINDS, mount_in_use
from harness.guest.transfer import Transfer
from harness.guest.workload import Workload
from harness.holds.hold import DATA, FSYNC, READDIR, STAT, Hold, require_counted_requests
from harness.ninep.client import RawGuest
from harness.plugin.thorough import by_default
from harness.qemu.deletion import Deletion
from harness.qemu.machine import Machine
from harness.qemu.spec import Share
from harness.testbed import Testbed

pytestmark = pytest.mark.unplug("asks")


@pytest.mark.always
def test_device_del_waits_for_a_mounted_share(
    guest: Guest, hotplug: Hotplug, migration: Migration, share: Share
) -> None:
    """The device stays and works until the share is unmounted."""
    hotplug.plug(share)
    mount = guest.mount(share)
    unplug = hotplug.request_unplug(share)
    unplug.wait_seen_by_guest()
    unplug.expect_withheld(while_=mount.expect_usable)
    mount.expect_intact("during", mount.write("during", size_kib=64))
    mount.unmount()
    unplug.wait_completed()
    migration.expect_not_blocked()


@dataclass(frozen=True)
class Request:
    """A kind of I/O: the system calls that QEMU makes for it on the host, and how the guest starts it."""

    calls: tuple[str, ...]
    begin: Callable[[Mount], Transfer | Job]


REQUESTS = {
    "read": Request(DATA, transfer.reader),
    "write": Request(DATA, transfer.writer),
    "fsync": Request(FSYNC, transfer.writer),
    "readdir": Request(READDIR, lambda mount: Job(mount.guest, f"ls {mount.mountpoint}", "listing")),
    "getattr": Request(STAT, lambda mount: Job(mount.guest, f"stat {mount.mountpoint}/file", "stat")),
}


@pytest.mark.always
@pytest.mark.any_plug
@pytest.mark.parametrize("kind", by_default("write", "fsync", of=REQUESTS))
def test_device_del_waits_for_a_request(
    guest: Guest, hotplug: Hotplug, share: Share, hold: Hold, kind: str
) -> None:
    """The device stays until the request in flight has completed without an error and the share is
    unmounted."""
    (share.path / "file").write_text("content")
    hotplug.plug(share)
    mount = guest.mount(share)
    with hold.requests(share, *REQUESTS[kind].calls) as held:
        work = REQUESTS[kind].begin(mount)
        held.wait_caught()
        unplug = hotplug.request_unplug(share)
        unplug.wait_seen_by_guest()
        unplug.expect_withheld(while_=held.in_flight)
    if isinstance(work, Transfer):
        work.wait_finished().expect_intact()
    else:
        work.wait_succeeded()
    mount.unmount()
    unplug.wait_completed()


@pytest.mark.any_plug
@pytest.mark.parametrize("count", [pytest.param(24, marks=pytest.mark.thorough), 128])
def test_device_del_waits_for_many_requests(
    guest: Guest, hotplug: Hotplug, share: Share, hold: Hold, count: int
) -> None:
    """The same with many requests in flight, up to the ring's size; each reader reads its whole file."""
    require_counted_requests(guest.machine)
    hotplug.plug(share)
    mount = guest.mount(share)
    with hold.requests(share) as held:
        readers = transfer.Readers(mount, count)
        held.wait_in_flight(count)
        unplug = hotplug.request_unplug(share)
        unplug.wait_seen_by_guest()
        unplug.expect_withheld(while_=held.in_flight)
    readers.wait_finished()
    mount.unmount()
    unplug.wait_completed()


@pytest.mark.any_plug
@pytest.mark.parametrize("cache", by_default("mmap", of=["none", "mmap"]))
def test_device_del_waits_for_a_workload(guest: Guest, hotplug: Hotplug, share: Share, cache: str) -> None:
    """The device stays while a workload runs (files, mappings, locks, renames, deep trees), and every
    byte that was acknowledged is on the host."""
    hotplug.plug(share)
    mount = guest.mount(share, options=f"cache={cache}")
    workload = Workload.start(mount)
    unplug = hotplug.request_unplug(share)
    unplug.wait_seen_by_guest()
    unplug.expect_withheld(while_=workload.wait_progress)
    workload.stop()
    mount.unmount()
    unplug.wait_completed()
    workload.expect_acknowledged()


@pytest.mark.thorough
@pytest.mark.any_plug
@pytest.mark.parametrize("kind", KINDS)
def test_device_del_waits_for_the_last_user(
    guest: Guest, hotplug: Hotplug, migration: Migration, share: Share, kind: str
) -> None:
    """After ``umount -l`` the device and its blocker stay until no process uses the mount."""
    hotplug.plug(share)
    mount = guest.mount(share)
    with mount_in_use(mount, kind) as mount_user:
        mount.detach()
        migration.expect_blocked_by(share)
        unplug = hotplug.request_unplug(share)
        unplug.wait_seen_by_guest()
        unplug.expect_withheld(while_=mount_user.expect_present)
        migration.expect_blocked_by(share)
    unplug.wait_completed()
    migration.expect_not_blocked()


@pytest.mark.thorough
@pytest.mark.any_plug
def test_device_del_waits_for_a_mount_inside(
    guest: Guest, hotplug: Hotplug, shares: tuple[Share, ...]
) -> None:
    """A share is mounted inside another one's mount: the outer device stays until both are unmounted."""
    outer, inner = shares[:2]
    (outer.path / "inside").mkdir()
    hotplug.plug(outer)
    hotplug.plug(inner)
    outer_mount = guest.mount(outer)
    inner_mount = guest.mount(inner, at=f"{outer_mount.mountpoint}/inside")
    unplug = hotplug.request_unplug(outer)
    unplug.wait_seen_by_guest()
    assert "Device or resource busy" in guest.fail(f"umount {outer_mount.mountpoint}").stderr
    unplug.expect_withheld(while_=inner_mount.expect_usable)
    inner_mount.unmount()
    outer_mount.unmount()
    unplug.wait_completed()
    hotplug.unplug(inner)


@pytest.mark.thorough("pc", "q35-pcie")
def test_a_second_device_del(guest: Guest, hotplug: Hotplug, share: Share) -> None:
    """A second device_del, whether accepted or refused, does not remove a mounted share's device."""
    hotplug.plug(share)
    mount = guest.mount(share)
    unplug = hotplug.request_unplug(share)
    unplug.wait_seen_by_guest()
    again = hotplug.request_unplug(share)
    unplug.expect_withheld(while_=mount.expect_usable)
    mount.unmount()
    unplug.wait_completed()
    again.expect_granted_or_under_way()


@pytest.mark.thorough("pc", "q35")
def test_device_del_again_and_again(guest: Guest, hotplug: Hotplug, shares: tuple[Share, ...]) -> None:
    """Repeated device_del neither cancels nor forces the unplug that is pending. The id and the slot stay
    taken until it completes, and are free afterwards."""
    share, other = shares[:2]
    hotplug.plug(share)
    mount = guest.mount(share)
    unplug = hotplug.request_unplug(share)
    id_again = replace(other, id=share.id, fsdev_of=other.id)
    place_again = replace(other, slot=share.slot)
    for _ in range(_REPEATS):
        check_during(guest.machine.timeout_scale.seconds(_PAUSE_S), guest.machine.watch)
        hotplug.request_unplug(share).expect_granted_or_under_way()
        for taken, refusal in ((id_again, "Duplicate .*"), (place_again, "PCI: slot .* not available .*")):
            BadPlug(taken, refusal).expect_refused(guest.machine)
    mount.expect_usable()
    mount.unmount()
    unplug.wait_completed()
    hotplug.plug(share)
    guest.mount(share).expect_usable()


#: How often device_del is repeated, and seconds in between. A second press of the attention button within
#: five seconds cancels an unplug (kernel: ``drivers/pci/hotplug/pciehp_ctrl.c``,
#: ``pciehp_handle_button_press``).
_REPEATS, _PAUSE_S = 3, 0.3


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
@pytest.mark.parametrize("before", ["the_machine_starts", "the_guest_is_up"])
def test_device_del_that_no_guest_handles(raw_guest: RawGuest, share: Share, before: str) -> None:
    """device_del while no guest handles it: the device stays, and device_del can be repeated any number of
    times."""
    machine = raw_guest.machine
    machine.device_add(share)
    if before == "the_guest_is_up":
        run_for_a_moment(machine)
    machine.qmp.execute("device_del", {"id": share.id})
    run_for_a_moment(machine)
    for _ in range(2):
        machine.qmp.execute("device_del", {"id": share.id})
    with Deletion(machine, share.id) as deletion:
        assert deletion.present(), "the device was removed, although no guest released it"
    raw_guest.eject(share)
    machine.device_add(share)


@pytest.mark.cold
@pytest.mark.pin_machine("q35-pcie")
def test_device_del_without_a_hotplug_driver(testbed: Testbed, share: Share) -> None:
    """A guest without a driver for PCIe ports ignores device_del: the device stays, and device_del is
    accepted again after five seconds."""
    spec = testbed.spec(plugged=frozenset([share.id]))
    without_driver = ("-append", f"{spec.boot.cmdline} pcie_ports=compat")
    hotplug = Hotplug(testbed.begin_boot(replace(spec, extra=without_driver)))
    machine = hotplug.guest.machine
    machine.qmp.execute("device_del", {"id": share.id})

    def accepted() -> bool:
        again = hotplug.request_unplug(share)
        again.expect_granted_or_under_way()
        return again.refusal is None

    machine.wait_until(accepted, what="device_del to be accepted again", timeout_s=10, interval_s=0.5)
    with Deletion(machine, share.id) as deletion:
        assert deletion.present(), "the device was removed, although no guest released it"


def run_for_a_moment(machine: Machine) -> None:
    """Run the machine for 20 ms: long enough for its timers, too short for its firmware to boot."""
    machine.qmp.execute("cont")
    check_during(0.02, machine.watch_process)
    machine.qmp.execute("stop")


@pytest.mark.thorough
def test_device_del_then_reset(
    guest: Guest, hotplug: Hotplug, run_state: RunState, migration: Migration, share: Share
) -> None:
    """A reset while the unplug is pending: the device is then removed, or it works and can be unplugged."""
    hotplug.plug(share)
    guest.mount(share)
    unplug = hotplug.request_unplug(share)
    unplug.wait_seen_by_guest()
    run_state.system_reset()
    if share.mount_tag in guest.mount_tags():
        mount = guest.mount(share)
        mount.expect_usable()
        mount.unmount()
        when_accepted(hotplug, share).wait_completed()
    unplug.wait_completed()
    migration.expect_not_blocked()


#: Seconds in which device_del has to be accepted again.
PENDING_S = 10.0


def when_accepted(hotplug: Hotplug, share: Share) -> Unplug:
    """Repeat device_del until QEMU accepts it.

    With native PCIe hotplug a request counts as pending for five seconds, also if the guest has forgotten
    it in a reset (QEMU: ``hw/pci/pcie.c``, ``pcie_cap_slot_unplug_request_cb``; ``system/qdev-monitor.c``,
    ``qmp_device_del``).
    """
    requests: list[Unplug] = []

    def accepted() -> bool:
        requests.append(hotplug.request_unplug(share))
        requests[-1].expect_granted_or_under_way()
        return requests[-1].refusal is None

    hotplug.guest.machine.wait_until(
        accepted, what=f"device_del of {share.id} to be accepted", timeout_s=PENDING_S, interval_s=0.5
    )
    return requests[-1]


@pytest.mark.thorough
def test_device_del_then_migrate(guest: Guest, hotplug: Hotplug, migration: Migration, share: Share) -> None:
    """A mounted share blocks migration while its unplug is pending; afterwards the guest migrates without
    it."""
    hotplug.plug(share)
    mount = guest.mount(share)
    unplug = hotplug.request_unplug(share)
    unplug.wait_seen_by_guest()
    migration.expect_refused(share)
    mount.expect_usable()
    mount.unmount()
    unplug.wait_completed()
    migration.migrate()
    assert share.mount_tag not in guest.mount_tags()


@pytest.mark.thorough
def test_device_del_while_stopped(guest: Guest, hotplug: Hotplug, run_state: RunState, share: Share) -> None:
    """The unplug of an unmounted share waits while the guest is stopped, and completes after cont."""
    hotplug.plug(share)
    mount = guest.mount(share)
    mount.expect_usable()
    mount.unmount()
    run_state.stop()
    unplug = hotplug.request_unplug(share)
    unplug.expect_pending(while_=run_state.expect_stopped)
    run_state.cont()
    unplug.wait_completed()


@pytest.mark.thorough
def test_device_del_before_the_guest_is_up(testbed: Testbed, share: Share) -> None:
    """A device_del before the guest has booted may be ignored; repeated after the boot, it completes."""
    guest = testbed.begin_boot(testbed.spec(plugged=frozenset([share.id])))
    hotplug = Hotplug(guest)
    early = hotplug.request_unplug(share)
    guest.wait_booted()
    later = hotplug.request_unplug(share)
    later.expect_granted_or_under_way(f"Device '{share.id}' not found")
    early.wait_completed()
    assert share.mount_tag not in guest.mount_tags()


@pytest.mark.thorough
def test_the_other_hotplug_waits_behind_a_busy_share(
    guest: Guest, hotplug: Hotplug, shares: tuple[Share, ...]
) -> None:
    """device_del of a busy share and of a free one: both complete once the first is unmounted, in whatever
    order, and another device can be plugged."""
    busy, free, later = shares[:3]
    hotplug.plug(busy)
    hotplug.plug(free)
    mount = guest.mount(busy)
    unplug = hotplug.request_unplug(busy)
    unplug.wait_seen_by_guest()
    other = hotplug.request_unplug(free)
    unplug.expect_withheld(while_=mount.expect_usable)
    mount.unmount()
    unplug.wait_completed()
    other.wait_completed()
    assert other.state is UnplugState.COMPLETED
    hotplug.plug(later)
    guest.mount(later).expect_usable()
