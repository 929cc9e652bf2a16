"""A share's whole life in one guest: plugged, mounted, used, unmounted, unplugged."""

from __future__ import annotations

import errno
import os
import random

import pytest

from harness.actions.hotplug import Hotplug
from harness.actions.migration import Migration
from harness.errors import GuestError
from harness.guest.guest import Guest
from harness.guest.mount import Mount, host_sha256
from harness.guest.variant import Variant
from harness.holds.hold import DATA, FSYNC, Hold
from harness.plugin.thorough import by_default
from harness.qemu.spec import Share


@pytest.mark.always
@pytest.mark.thorough("q35-pcie")
def test_plug_mount_use_unmount_unplug(guest: Guest, hotplug: Hotplug, share: Share) -> None:
    """Bytes written on either side are read on the other, and the device goes when it is free.

    Little by little, and in requests as large as there can be: of the kernel's own ``msize`` (128 KiB), and
    of the largest that virtio's ring takes (500 KiB; kernel: ``net/9p/trans_virtio.c``, ``maxsize``).
    """
    (share.path / "from-host").write_bytes(random.Random(0).randbytes(_LARGE_KIB * 1024 + 1))
    sent = host_sha256(share.path / "from-host")
    hotplug.plug(share)
    mount = guest.mount(share)
    mount.expect_intact("from-host", sent)
    mount.expect_intact("from-guest", mount.write("from-guest", size_kib=512))
    expect_large_requests(mount, sent)
    mount.unmount()
    mount = guest.mount(share, options="msize=512000")
    expect_large_requests(mount, sent)
    mount.unmount()
    hotplug.unplug(share)


#: More than two requests of any msize.
_LARGE_KIB = 1024


def expect_large_requests(mount: Mount, sent: str) -> None:
    """What is read, and written, with one system call arrives, however far into the file."""
    mount.expect_intact("from-host", sent, block_kib=2 * _LARGE_KIB)
    written = mount.write("large", size_kib=_LARGE_KIB, block_kib=_LARGE_KIB)
    mount.expect_intact("large", written, block_kib=_LARGE_KIB)


@pytest.mark.always
@pytest.mark.thorough("q35-pcie")
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


@pytest.mark.any_plug
def test_a_share_is_used_over_the_serial_console(guest: Guest, hotplug: Hotplug, share: Share) -> None:
    """The same life without a network: every command goes through the console."""
    guest.use("console")
    hotplug.plug(share)
    mount = guest.mount(share)
    mount.expect_intact("from-guest", mount.write("from-guest", size_kib=64))
    mount.unmount()
    hotplug.unplug(share)


@pytest.mark.thorough
@pytest.mark.any_plug
def test_the_whole_life_of_any_kind_of_share(
    guest: Guest, hotplug: Hotplug, migration: Migration, share: Share, variant: Variant
) -> None:
    """Every guarantee in one life: blocked while mounted, busy until unmounted, alive where it arrives."""
    hotplug.plug(share)
    mount = guest.mount(share, options=variant.mount_options)
    use(mount, variant, "before")
    migration.expect_refused(share)
    unplug = hotplug.request_unplug(share)
    unplug.wait_seen_by_guest()
    unplug.expect_withheld(while_=lambda: use(mount, variant, "during"))
    mount.unmount()
    unplug.wait_completed()

    hotplug.plug(share)
    migration.migrate()
    mount = guest.mount(share, options=variant.mount_options)
    use(mount, variant, "after")
    mount.unmount()
    hotplug.unplug(share)


#: What a share that cannot be written to says, by its driver (QEMU: ``hw/9pfs/9p-synth.c``, ``synth_open2``).
_CANNOT_BE_WRITTEN = {"local": errno.EROFS, "synth": errno.ENOSYS}


def use(mount: Mount, variant: Variant, name: str) -> None:
    """Read what the host wrote, and write where that is allowed."""
    mount.guest.succeed(f"ls {mount.mountpoint}/")
    if variant.files:
        (mount.share.path / f"host-{name}").write_bytes(name.encode() * 4096)
        mount.expect_intact(f"host-{name}", host_sha256(mount.share.path / f"host-{name}"))
    if variant.writable:
        mount.expect_intact(name, mount.write(name, size_kib=64))
    else:
        said = mount.guest.fail(f"touch {mount.mountpoint}/refused").stderr
        assert os.strerror(_CANNOT_BE_WRITTEN[mount.share.fsdriver]) in said, said


@pytest.mark.any_plug
def test_an_export_that_transfers_less_than_asked(
    guest: Guest, hotplug: Hotplug, share: Share, hold: Hold
) -> None:
    """A short count is no error and no end: QEMU goes on with the rest, and every byte arrives."""
    hotplug.plug(share)
    mount = guest.mount(share)
    with hold.halving(share) as rule:
        written = mount.write("from-guest", size_kib=192)
        assert rule.hits, "nothing was written through the export"
        seen = rule.hits
        mount.expect_intact("from-guest", written)
        assert rule.hits > seen, "nothing was read through the export"
    mount.unmount()
    hotplug.unplug(share)


FAILURES = {
    "read_eio": (errno.EIO, DATA, "cat file"),
    "write_enospc": (errno.ENOSPC, DATA, "echo content > new"),
    "fsync_eio": (errno.EIO, FSYNC, "dd if=/dev/zero of=new bs=1024 count=1 conv=fsync"),
    "read_estale": (errno.ESTALE, DATA, "cat file"),
}


@pytest.mark.any_plug
@pytest.mark.parametrize("failure", by_default("read_eio", "fsync_eio", of=FAILURES))
def test_an_export_whose_file_system_fails(
    guest: Guest, hotplug: Hotplug, migration: Migration, share: Share, hold: Hold, failure: str
) -> None:
    """The guest gets the error, and nothing else changes: the share works, blocks, and can be unplugged."""
    number, calls, command = FAILURES[failure]
    (share.path / "file").write_text("content")
    hotplug.plug(share)
    mount = guest.mount(share)
    with hold.failing(share, number, *calls) as rule:
        said = guest.fail(f"cd {mount.mountpoint} && {command}").stderr
        assert os.strerror(number) in said, "the guest got another error"
        assert rule.hits, "the command failed for another reason"
    migration.expect_blocked_by(share)
    mount.expect_intact("later", mount.write("later", size_kib=64))
    try:
        mount.expect_intact("file", host_sha256(share.path / "file"))
    except GuestError as exc:
        raise AssertionError("the file stays unreadable after the error is gone") from exc
    mount.unmount()
    migration.expect_not_blocked()
    hotplug.unplug(share)
