"""Unplug is refused while busy: device_del is accepted, and completes only once the share is free."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from harness.actions.bad_plugs import BadPlug
from harness.actions.hotplug import Hotplug, UnplugState
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


@pytest.mark.always
def test_device_del_waits_for_a_mounted_share(
    guest: Guest, hotplug: Hotplug, migration: Migration, share: Share
) -> None:
    """The device stays, and works, until it is unmounted; no byte is lost."""
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
    """A kind of I/O: the system calls that it becomes in QEMU, and how the guest begins it."""

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
@pytest.mark.parametrize("kind", by_default("write", of=REQUESTS))
def test_device_del_waits_for_a_request(
    guest: Guest, hotplug: Hotplug, share: Share, hold: Hold, kind: str
) -> None:
    """With a request in flight the device stays; the request ends well, and only then the device goes."""
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


@pytest.mark.thorough
@pytest.mark.any_plug
@pytest.mark.parametrize("count", [24, 128])
def test_device_del_waits_for_many_requests(
    guest: Guest, hotplug: Hotplug, share: Share, hold: Hold, count: int
) -> None:
    """Up to as many as the ring takes; each reader gets its own file to the end."""
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


@pytest.mark.thorough
@pytest.mark.any_plug
@pytest.mark.parametrize("cache", ["none", "mmap"])
def test_device_del_waits_for_a_workload(guest: Guest, hotplug: Hotplug, share: Share, cache: str) -> None:
    """Files, mappings, locks, renames, deep trees: the workers get on, and each acknowledged byte stays."""
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


@pytest.mark.any_plug
@pytest.mark.parametrize("kind", by_default("open_file", of=KINDS))
def test_device_del_waits_for_the_last_user(
    guest: Guest, hotplug: Hotplug, migration: Migration, share: Share, kind: str
) -> None:
    """Detached with ``umount -l`` and used on by somebody: for so long the device, and its blocker, stay."""
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
    """A share mounted inside another's: neither goes before it is unmounted, the inner one first."""
    outer, inner = shares[:2]
    (outer.path / "inside").mkdir()
    hotplug.plug(outer)
    hotplug.plug(inner)
    around = guest.mount(outer)
    within = guest.mount(inner, at=f"{around.mountpoint}/inside")
    unplug = hotplug.request_unplug(outer)
    unplug.wait_seen_by_guest()
    assert "Device or resource busy" in guest.fail(f"umount {around.mountpoint}").stderr
    unplug.expect_withheld(while_=within.expect_usable)
    within.unmount()
    around.unmount()
    unplug.wait_completed()
    hotplug.unplug(inner)


@pytest.mark.thorough
def test_a_second_device_del(guest: Guest, hotplug: Hotplug, share: Share) -> None:
    """Accepted or refused, it does not push the device out."""
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
    """While the guest decides it is asked once more, and again: that neither calls the unplug off nor hurts.
    Meanwhile the id and the place are taken, and afterwards they are free."""
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


#: A guest with native PCIe hotplug waits for five seconds whether the button is pressed again (kernel:
#: ``drivers/pci/hotplug/pciehp_ctrl.c``, ``pciehp_handle_button_press``).
_REPEATS, _PAUSE_S = 3, 0.3


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
@pytest.mark.parametrize("before", ["the_machine_starts", "the_guest_is_up"])
def test_device_del_that_nobody_hears(raw_guest: RawGuest, share: Share, before: str) -> None:
    """No guest listens yet: the device stays, and may be asked for again, as often as it takes."""
    machine = raw_guest.machine
    machine.device_add(share)
    if before == "the_guest_is_up":
        run_for_a_moment(machine)
    machine.qmp.execute("device_del", {"id": share.id})
    run_for_a_moment(machine)
    for _ in range(2):
        machine.qmp.execute("device_del", {"id": share.id})
    with Deletion(machine, share.id) as deletion:
        assert deletion.present(), "the device went, and no guest let it go"
    raw_guest.eject(share)
    machine.device_add(share)


@pytest.mark.thorough
@pytest.mark.cold
@pytest.mark.pin_machine("q35-pcie")
def test_device_del_without_a_hotplug_driver(testbed: Testbed, share: Share) -> None:
    """The guest has no driver for its PCIe ports, and never hears: the device stays, and may be asked for
    again when five seconds are over."""
    spec = testbed.spec(plugged=frozenset([share.id]))
    deaf = ("-append", f"{spec.boot.cmdline} pcie_ports=compat")
    hotplug = Hotplug(testbed.begin_boot(replace(spec, extra=deaf)))
    machine = hotplug.guest.machine
    machine.qmp.execute("device_del", {"id": share.id})

    def accepted() -> bool:
        again = hotplug.request_unplug(share)
        again.expect_granted_or_under_way()
        return again.refusal is None

    machine.wait_until(accepted, what="device_del to be accepted again", timeout_s=10, interval_s=0.5)
    with Deletion(machine, share.id) as deletion:
        assert deletion.present(), "the device went, and no guest let it go"


def run_for_a_moment(machine: Machine) -> None:
    """Its clock goes on, and its firmware does not get far."""
    machine.qmp.execute("cont")
    check_during(0.02, machine.watch_process)
    machine.qmp.execute("stop")


@pytest.mark.thorough
def test_device_del_then_reset(
    guest: Guest, hotplug: Hotplug, run_state: RunState, migration: Migration, share: Share
) -> None:
    """The reset ends the guest's use: the device goes, or stays and works, and can be unplugged."""
    hotplug.plug(share)
    guest.mount(share)
    unplug = hotplug.request_unplug(share)
    unplug.wait_seen_by_guest()
    run_state.system_reset()
    if share.mount_tag in guest.mount_tags():
        mount = guest.mount(share)
        mount.expect_usable()
        mount.unmount()
        hotplug.unplug(share)
    unplug.wait_completed()
    migration.expect_not_blocked()


@pytest.mark.thorough("q35", "q35-pcie")
def test_device_del_then_migrate(guest: Guest, hotplug: Hotplug, migration: Migration, share: Share) -> None:
    """The mounted share still blocks; once it has gone, the guest migrates without it."""
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


@pytest.mark.thorough("q35", "q35-pcie")
def test_device_del_while_stopped(guest: Guest, hotplug: Hotplug, run_state: RunState, share: Share) -> None:
    """A stopped guest grants nothing; it does as soon as it runs again."""
    hotplug.plug(share)
    mount = guest.mount(share)
    mount.expect_usable()
    mount.unmount()
    run_state.stop()
    unplug = hotplug.request_unplug(share)
    unplug.expect_pending(while_=run_state.expect_stopped)
    run_state.cont()
    unplug.wait_completed()


@pytest.mark.thorough("q35", "q35-pcie")
def test_device_del_before_the_guest_is_up(testbed: Testbed, share: Share) -> None:
    """It may be lost, or wait for the guest; asked once more when the guest is up, the device goes."""
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
    """One share is busy, another free: whatever order the guest makes of it, both go, and the next comes."""
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
