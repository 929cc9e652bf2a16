"""Unplug is refused while busy: device_del is accepted, and completes only once the share is free."""

from __future__ import annotations

from harness.actions.hotplug import Hotplug
from harness.actions.migration import Migration
from harness.guest.guest import Guest
from harness.qemu.spec import Share


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
