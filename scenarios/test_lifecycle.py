"""A share's whole life in one guest: plugged, mounted, used, unmounted, unplugged."""

from __future__ import annotations

from harness.actions.hotplug import Hotplug
from harness.guest.guest import Guest
from harness.guest.mount import host_sha256
from harness.qemu.spec import Share


def test_plug_mount_use_unmount_unplug(guest: Guest, hotplug: Hotplug, share: Share) -> None:
    """Bytes written on either side are read on the other, and the device goes when it is free."""
    (share.path / "from-host").write_bytes(bytes(range(256)) * 1024)
    hotplug.plug(share)
    mount = guest.mount(share)
    mount.expect_intact("from-host", host_sha256(share.path / "from-host"))
    mount.expect_intact("from-guest", mount.write("from-guest", size_kib=512))
    mount.unmount()
    hotplug.unplug(share)


def test_a_share_can_be_plugged_again(guest: Guest, hotplug: Hotplug, share: Share) -> None:
    """The same id, tag and place serve a second time, and the files are still there."""
    hotplug.plug(share)
    mount = guest.mount(share)
    written = mount.write("kept", size_kib=64)
    mount.unmount()
    hotplug.unplug(share)

    hotplug.plug(share)
    mount = guest.mount(share)
    mount.expect_intact("kept", written)
    mount.unmount()
    hotplug.unplug(share)


def test_a_share_is_used_over_the_serial_console(guest: Guest, hotplug: Hotplug, share: Share) -> None:
    """The same life without a network: every command goes through the console."""
    guest.use("console")
    hotplug.plug(share)
    mount = guest.mount(share)
    mount.expect_intact("from-guest", mount.write("from-guest", size_kib=64))
    mount.unmount()
    hotplug.unplug(share)
