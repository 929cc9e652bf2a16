"""Migrates when unmounted: the device works in a new QEMU that takes over the guest's memory."""

from __future__ import annotations

import pytest

from harness.actions import live_update
from harness.actions.hotplug import Hotplug
from harness.actions.migration import Migration
from harness.qemu.spec import Share
from harness.testbed import Testbed


@pytest.mark.thorough
@pytest.mark.parametrize("plugged", ["hot", "cold"])
@pytest.mark.parametrize("mode", live_update.MODES)
def test_an_unmounted_device_is_taken_over(testbed: Testbed, share: Share, plugged: str, mode: str) -> None:
    """Two live updates, one after the other, of a device that was used before; then it is unplugged."""
    live_update.require(testbed, mode)
    on_command_line = [share.id] if plugged == "cold" else []
    guest = testbed.boot(live_update.updatable(testbed, plugged=on_command_line), cold=True)
    hotplug, migration = Hotplug(guest), Migration(guest, testbed)
    if plugged == "hot":
        hotplug.plug(share)
    for number in range(2):
        mount = guest.mount(share)
        written = mount.write(f"before{number}", size_kib=64)
        mount.unmount()

        live_update.update(migration, testbed, mode)

        mount = guest.mount(share)
        mount.expect_intact(f"before{number}", written)
        mount.expect_intact(f"after{number}", mount.write(f"after{number}", size_kib=64))
        migration.expect_blocked_by(share)
        mount.unmount()
    hotplug.unplug(share)
