"""Blocked while mounted: QEMU refuses migrate and savevm for as long as a share is mounted, and only then.

``query-migrate`` lists one reason for each mounted device in ``blocked-reasons``: its path and mount tag.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable

import pytest

from harness.actions.hotplug import Hotplug
from harness.actions.migration import Migration, Outgoing, blocked_reason, expect_blocked_by, expect_reason
from harness.actions.modes import MODES, in_mode
from harness.actions.raw_migration import migrate_raw
from harness.actions.run_state import RunState
from harness.actions.snapshot import Snapshot
from harness.errors import CommandFailed, QemuError
from harness.guest.commands import Commands
from harness.guest.guest import Guest
from harness.guest.mount import Mount, expect_no_mount
from harness.guest.mount_user import mount_in_use
from harness.holds.hold import STAT, Hold
from harness.ninep.client import NineError, RawDriver, RawGuest
from harness.plugin.thorough import by_default
from harness.qemu.blockers import blocked_reasons
from harness.qemu.spec import Share


@pytest.mark.always
@pytest.mark.any_plug
def test_migrate_is_refused_while_mounted(
    guest: Guest, hotplug: Hotplug, migration: Migration, share: Share
) -> None:
    """migrate is refused from mount to umount, and the refusal names the share's path and mount tag."""
    hotplug.plug(share)
    migration.expect_not_blocked()
    mount = guest.mount(share)
    migration.expect_refused(share)
    mount.expect_usable()
    migration.expect_refused(share)
    mount.unmount()
    migration.expect_not_blocked()
    migration.migrate()


@pytest.mark.always
@pytest.mark.any_plug
def test_savevm_is_refused_while_mounted(
    guest: Guest, hotplug: Hotplug, snapshot: Snapshot, share: Share
) -> None:
    """savevm, and the snapshot-save job where QEMU has it, are refused until the share is unmounted."""
    hotplug.plug(share)
    mount = guest.mount(share)
    mount.expect_usable()
    snapshot.expect_refused(share)
    mount.unmount()
    snapshot.savevm("unmounted")
    if snapshot.has_jobs:
        snapshot.snapshot_save("unmounted-job")


@pytest.mark.thorough
@pytest.mark.any_plug
def test_each_mounted_share_blocks_by_itself(
    guest: Guest, hotplug: Hotplug, migration: Migration, shares: tuple[Share, ...]
) -> None:
    """Each mounted device has its own reason in blocked-reasons; unmounting one leaves the other's."""
    first, second = shares[:2]
    hotplug.plug(first)
    hotplug.plug(second)
    mount = guest.mount(first)
    other = guest.mount(second)
    for used in (mount, other):
        used.expect_usable()
    migration.expect_blocked_by(first, second)
    mount.unmount()
    migration.expect_blocked_by(second)
    other.unmount()
    migration.expect_not_blocked()


@pytest.mark.thorough
@pytest.mark.any_plug
def test_migrate_while_a_mount_is_being_made(
    guest: Guest, migration: Migration, hotplug: Hotplug, share: Share, hold: Hold
) -> None:
    """While a Tattach is in flight, migrate is refused or waits for it, and the guest's mount does not
    hang."""
    hotplug.plug(share)
    with hold.requests(share, *STAT) as held:
        mounting = Mount.request(guest, share)
        held.wait_caught()
        outgoing: Outgoing | None = None
        try:
            outgoing = migration.request_migrate()
        except QemuError as refusal:
            expect_reason(refusal, share)
            held.waiting()
        completed = outgoing is not None and outgoing.observe(while_=held.waiting)
    if outgoing is not None:
        outgoing.wait_completed()
    ended = mounting.ends_within(2.0)
    where = "where it was" if outgoing is None else "on the destination"
    assert ended, f"the guest's mount hangs {where}: its Tattach was lost"
    assert not completed, "migrate completed with a Tattach in flight"
    if mounting.wait().returncode == 0:
        expect_mounted(Mount(guest, share, f"/mnt/{share.id}"), migration)
    else:
        expect_nothing_mounted(guest, migration)
    expect_mounted(guest.mount(share), migration)


def expect_mounted(mount: Mount, migration: Migration) -> None:
    """The mount can be used, blocks migration, and can be unmounted."""
    mount.expect_usable()
    migration.expect_refused(mount.share)
    mount.unmount()
    expect_nothing_mounted(mount.guest, migration)


def expect_nothing_mounted(guest: Commands, migration: Migration) -> None:
    """The guest has no 9p mount and no mount command that still runs, and nothing blocks migration."""
    expect_no_mount(guest)
    migration.expect_not_blocked()


@pytest.mark.thorough
@pytest.mark.any_plug
@pytest.mark.parametrize("version", ["9p2000.L", "9p2000.u"])
def test_blocked_whatever_the_protocol(
    guest: Guest, hotplug: Hotplug, migration: Migration, share: Share, version: str
) -> None:
    """A mount blocks migration in 9P2000.u as in 9P2000.L."""
    hotplug.plug(share)
    mount = guest.mount(share, options=f"version={version}")
    mount.expect_usable()
    migration.expect_refused(share)
    mount.unmount()
    migration.expect_not_blocked()
    migration.migrate()


@pytest.mark.any_plug
def test_the_blocker_is_of_the_device_that_is_mounted(
    guest: Guest, hotplug: Hotplug, migration: Migration, shares: tuple[Share, ...]
) -> None:
    """The blocker of a mounted device stays while another device is plugged, mounted and unplugged."""
    mounted, other = shares[:2]
    hotplug.plug(mounted)
    mount = guest.mount(mounted)
    hotplug.plug(other)
    migration.expect_blocked_by(mounted)
    second = guest.mount(other)
    migration.expect_blocked_by(mounted, other)
    second.unmount()
    hotplug.unplug(other)
    migration.expect_blocked_by(mounted)
    mount.unmount()
    migration.expect_not_blocked()


@pytest.mark.thorough
@pytest.mark.any_plug
def test_a_detached_share_blocks_until_its_last_user_is_gone(
    guest: Guest, hotplug: Hotplug, migration: Migration, share: Share
) -> None:
    """``umount -l`` ends the blocker at once if no process uses the mount, else when the last one has
    gone."""
    hotplug.plug(share)
    guest.mount(share).detach()
    migration.expect_not_blocked()
    mount = guest.mount(share)
    with mount_in_use(mount, "open_file"):
        mount.detach()
        migration.expect_refused(share)
    migration.expect_not_blocked()
    migration.migrate()


@pytest.mark.always
@pytest.mark.any_plug
@pytest.mark.parametrize("how", by_default("system_reset", of=["system_reset", "reboot"]))
def test_a_reset_ends_the_blocker(
    guest: Guest, hotplug: Hotplug, migration: Migration, run_state: RunState, share: Share, how: str
) -> None:
    """A reset ends the blocker of a mounted share; the share can be mounted again, and the guest
    migrates."""
    hotplug.plug(share)
    mount = guest.mount(share)
    mount.expect_usable()
    migration.expect_blocked_by(share)
    run_state.system_reset() if how == "system_reset" else run_state.reboot()
    migration.expect_not_blocked()
    mount = guest.mount(share)
    mount.expect_usable()
    migration.expect_blocked_by(share)
    mount.unmount()
    migration.migrate()


@pytest.mark.any_plug
def test_loadvm_ends_the_blocker(
    guest: Guest, hotplug: Hotplug, migration: Migration, snapshot: Snapshot, share: Share
) -> None:
    """loadvm of a snapshot without a mount ends the blocker of the share that is mounted now."""
    hotplug.plug(share)
    snapshot.savevm("unmounted")
    guest.mount(share).expect_usable()
    migration.expect_blocked_by(share)
    snapshot.loadvm("unmounted")
    migration.expect_not_blocked()
    mount = guest.mount(share)
    mount.expect_usable()
    migration.expect_blocked_by(share)
    mount.unmount()
    migration.migrate()


@pytest.mark.thorough
@pytest.mark.any_plug
def test_the_driver_unbound_and_bound(
    guest: Guest, hotplug: Hotplug, migration: Migration, share: Share
) -> None:
    """Unbinding and binding the guest's driver leaves no blocker, and the share can be mounted again."""
    hotplug.plug(share)
    guest.mount(share).unmount()
    guest.rebind_9p()
    migration.expect_not_blocked()
    mount = guest.mount(share)
    migration.expect_blocked_by(share)
    mount.unmount()
    migration.expect_not_blocked()


#: QEMU answers EINVAL when it cannot stat the export's root (``hw/9pfs/9p.c``, ``v9fs_attach``).
MOUNT_FAILS = "Invalid argument"


@pytest.mark.any_plug
def test_a_mount_that_fails_blocks_nothing(
    guest: Guest, hotplug: Hotplug, migration: Migration, share: Share, hold: Hold
) -> None:
    """A mount that fails, because the host's file system does, leaves no blocker; a later mount blocks."""
    hotplug.plug(share)
    with hold.failing(share, errno.EIO, *STAT) as rule:
        with pytest.raises(CommandFailed, match=MOUNT_FAILS):
            guest.mount(share)
        assert rule.hits, "the mount failed for another reason"
    expect_nothing_mounted(guest, migration)
    expect_mounted(guest.mount(share), migration)
    migration.migrate()


def sequence(seed: int, devices: int) -> list[int]:
    """A random order of devices. At each step that device is mounted, or unmounted if it is mounted; at
    the end none is mounted."""
    chosen = random.Random(seed)
    steps = [chosen.randrange(devices) for _ in range(5 * devices)]
    left = [device for device in range(devices) if steps.count(device) % 2]
    return [*steps, *chosen.sample(left, len(left))]


#: The ways in which the raw client ends a session.
ENDS: tuple[Callable[[RawDriver], None], ...] = (RawDriver.clunk_all, RawDriver.version, RawDriver.reset)


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
@pytest.mark.parametrize("devices", [2, 3, 4])
def test_devices_block_in_any_order(raw_guest: RawGuest, shares: tuple[Share, ...], devices: int) -> None:
    """Each device blocks exactly while its export is attached, whatever the others do and however its
    session ends."""
    drivers = [raw_guest.plug(share) for share in shares[:devices]]
    mounted: dict[int, Share] = {}
    for number, device in enumerate(sequence(devices, devices)):
        if mounted.pop(device, None):
            ENDS[number % len(ENDS)](drivers[device])
            if ENDS[number % len(ENDS)] is RawDriver.reset:
                drivers[device] = raw_guest.driver(shares[device])
        else:
            drivers[device].version()
            drivers[device].attach(1)
            drivers[device].walk(1, 2)
            mounted[device] = shares[device]
        expect_blocked_by(raw_guest.machine, *mounted.values())
    assert not mounted
    migrate_raw(raw_guest)


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
@pytest.mark.parametrize("attaches", [2, 3])
def test_an_export_that_is_attached_several_times_blocks_once(
    raw_guest: RawGuest, share: Share, attaches: int
) -> None:
    """An export attached several times, as by ``access=user``, has one blocker, which ends with the last
    clunk."""
    driver = raw_guest.plug(share)
    for _ in range(2):
        driver.version()
        for fid in range(attaches):
            driver.attach(fid)
            expect_blocked_by(raw_guest.machine, share)
        for fid in reversed(range(1, attaches)):
            driver.clunk(fid)
            expect_blocked_by(raw_guest.machine, share)
        driver.clunk(0)
        expect_blocked_by(raw_guest.machine)
    for fid in range(attaches):
        driver.attach(fid)
    driver.version()
    expect_blocked_by(raw_guest.machine)


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_an_attach_that_fails_leaves_the_blocker_as_it_was(
    raw_guest: RawGuest, share: Share, hold: Hold
) -> None:
    """A Tattach fails, because the host's file system does or the fid is in use: blocked-reasons stays
    the same before, during and after a session."""
    driver = raw_guest.plug(share)

    def fails() -> None:
        with hold.failing(share, errno.EIO, *STAT), pytest.raises(NineError):
            driver.attach(7)

    driver.version()
    fails()
    expect_blocked_by(raw_guest.machine)
    driver.attach(1)
    with pytest.raises(NineError):
        driver.attach(1)
    fails()
    expect_blocked_by(raw_guest.machine, share)
    driver.fids.add(1)
    driver.clunk_all()
    fails()
    expect_blocked_by(raw_guest.machine)


@pytest.mark.any_plug
@pytest.mark.parametrize("mode", by_default("normal", "cpr-reboot", of=MODES))
def test_blocked_in_each_mode(guest: Guest, hotplug: Hotplug, share: Share, mode: str) -> None:
    """A mounted share blocks migration in every mode, also in those that restart QEMU (``cpr-*``)."""
    machine = guest.machine
    with in_mode(machine, mode):
        hotplug.plug(share)
        without = blocked_reasons(machine)
        mount = guest.mount(share)
        mount.expect_usable()
        assert sorted(blocked_reasons(machine)) == sorted([*without, blocked_reason(share)])
        with pytest.raises(QemuError) as refused:
            machine.qmp.execute("migrate", {"uri": "exec:cat > /dev/null"}, watch=machine.watch)
        # The error names only the first blocker. For cpr-transfer it may name none: QEMU first demands a
        # second channel (migration/migration.c, qmp_migrate). So the list is compared above.
        reasons = [*without, blocked_reason(share), "missing 'cpr' migration channel"]
        assert any(reason in str(refused.value) for reason in reasons)
        mount.unmount()
        assert blocked_reasons(machine) == without
