"""Migrates when unmounted: the device arrives alive, and survives savevm and loadvm."""

from __future__ import annotations

from harness.actions.hotplug import Hotplug
from harness.actions.migration import Migration
from harness.actions.snapshot import Snapshot
from harness.guest.guest import Guest
from harness.qemu.spec import Share


def test_an_unmounted_device_arrives_alive(
    guest: Guest, hotplug: Hotplug, migration: Migration, share: Share
) -> None:
    """On the destination the guest mounts it, uses it, and lets it be unplugged."""
    hotplug.plug(share)
    mount = guest.mount(share)
    written = mount.write("before", size_kib=64)
    mount.unmount()

    migration.migrate()

    mount = guest.mount(share)
    mount.expect_intact("before", written)
    mount.expect_intact("after", mount.write("after", size_kib=64))
    migration.expect_refused(share)
    mount.unmount()
    hotplug.unplug(share)


def test_a_device_is_alive_after_loadvm(
    guest: Guest, hotplug: Hotplug, snapshot: Snapshot, share: Share
) -> None:
    """savevm, use, loadvm: the device of the past mounts, and sees the host's files of today."""
    hotplug.plug(share)
    snapshot.savevm("plugged")
    guest.succeed("touch /tmp/after-savevm")
    mount = guest.mount(share)
    written = mount.write("kept", size_kib=64)
    mount.unmount()

    snapshot.loadvm("plugged")

    guest.fail("test -e /tmp/after-savevm")
    mount = guest.mount(share)
    mount.expect_intact("kept", written)
    mount.unmount()
    hotplug.unplug(share)


def test_a_device_is_alive_after_the_snapshot_jobs(
    guest: Guest, hotplug: Hotplug, snapshot: Snapshot, share: Share
) -> None:
    """The same through snapshot-save and snapshot-load."""
    hotplug.plug(share)
    snapshot.snapshot_save("plugged")
    guest.succeed("touch /tmp/after-save")
    snapshot.snapshot_load("plugged")
    guest.fail("test -e /tmp/after-save")
    mount = guest.mount(share)
    mount.expect_usable()
    mount.unmount()
    hotplug.unplug(share)
