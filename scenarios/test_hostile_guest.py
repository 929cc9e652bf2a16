"""A hostile guest cannot hurt QEMU: a device forced out with requests in flight is drained, and is gone."""

from __future__ import annotations

from harness.actions.hostile import HostileGuest
from harness.actions.hotplug import Hotplug
from harness.actions.migration import Migration
from harness.guest import transfer
from harness.guest.guest import Guest
from harness.holds.hold import Hold
from harness.qemu.spec import Share


def test_a_forced_eject_with_a_request_in_flight(
    guest: Guest, hotplug: Hotplug, hostile: HostileGuest, share: Share, hold: Hold
) -> None:
    """The device waits for the worker thread that still writes into its request, and only then goes."""
    hotplug.plug(share)
    mount = guest.mount(share)
    with hold.requests(share) as held:
        transfer.reader(mount)
        held.wait_caught()
        ejection = hostile.request_eject(share)
        deleted_while_held = ejection.observe(while_=held.waiting)
    ejection.wait_completed()
    guest.succeed("true")
    assert not deleted_while_held, "the device was freed under a request in flight"


def test_a_forced_eject_while_mounted(
    guest: Guest, hotplug: Hotplug, hostile: HostileGuest, migration: Migration, share: Share
) -> None:
    """The device takes its migration blocker with it."""
    hotplug.plug(share)
    mount = guest.mount(share)
    mount.expect_usable()
    migration.expect_blocked_by(share)
    hostile.eject(share)
    migration.expect_not_blocked()
