"""Blocked while mounted: migrate and savevm are refused, by name, for as long as a share is mounted."""

from __future__ import annotations

from harness.actions.hotplug import Hotplug
from harness.actions.migration import Migration, expect_reason
from harness.actions.snapshot import Snapshot
from harness.errors import QemuError
from harness.guest.guest import Guest
from harness.guest.mount import Mount
from harness.holds.hold import STAT, Hold
from harness.qemu.spec import Share


def test_migrate_is_refused_while_mounted(
    guest: Guest, hotplug: Hotplug, migration: Migration, share: Share
) -> None:
    """The refusal names the share's own path and tag; it comes with the mount and goes with it."""
    hotplug.plug(share)
    migration.expect_not_blocked()
    mount = guest.mount(share)
    migration.expect_refused(share)
    mount.expect_usable()
    mount.unmount()
    migration.expect_not_blocked()
    migration.migrate()


def test_savevm_is_refused_while_mounted(
    guest: Guest, hotplug: Hotplug, snapshot: Snapshot, share: Share
) -> None:
    """savevm and the snapshot-save job alike; both work once the share is unmounted."""
    hotplug.plug(share)
    mount = guest.mount(share)
    snapshot.expect_refused(share)
    mount.expect_usable()
    mount.unmount()
    snapshot.savevm("unmounted")
    snapshot.snapshot_save("unmounted-job")


def test_each_mounted_share_blocks_by_itself(
    guest: Guest, hotplug: Hotplug, migration: Migration, shares: tuple[Share, ...]
) -> None:
    """One reason for each mounted device; unmounting one leaves the other's."""
    first, second = shares[:2]
    hotplug.plug(first)
    hotplug.plug(second)
    mount = guest.mount(first)
    other = guest.mount(second)
    migration.expect_blocked_by(first, second)
    mount.unmount()
    migration.expect_blocked_by(second)
    other.unmount()
    migration.expect_not_blocked()


def test_migrate_while_a_mount_is_being_made(
    guest: Guest, migration: Migration, hotplug: Hotplug, share: Share, hold: Hold
) -> None:
    """A Tattach in flight: migrate is refused, or waits for it; the guest's mount never hangs."""
    hotplug.plug(share)
    with hold.requests(share, *STAT) as held:
        mounting = Mount.request(guest, share)
        held.wait_caught()
        try:
            outgoing = migration.request_migrate()
        except QemuError as refusal:
            expect_reason(refusal, share)
            return
        completed = outgoing.observe(while_=held.waiting)
    outgoing.wait_completed()
    ended = mounting.ends_within(2.0)
    assert ended, "the guest's mount hangs on the destination: its Tattach was lost"
    assert not completed, "migrate completed with a Tattach in flight"
