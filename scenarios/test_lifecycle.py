"""A share's whole life in one guest: plugged, mounted, used, unmounted, unplugged."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from harness.actions.hotplug import PLUG_TIMEOUT_S, UNPLUG_TIMEOUT_S, Hotplug, expect_unknown
from harness.actions.migration import Migration
from harness.deadline import check_during
from harness.errors import GuestError
from harness.guest.guest import BOOT_TIMEOUT_S, Guest
from harness.guest.mount import Mount, host_sha256
from harness.guest.variant import Variant
from harness.holds.hold import DATA, FSYNC, Hold
from harness.plugin.thorough import by_default
from harness.qemu.binary import properties
from harness.qemu.deletion import Deletion
from harness.qemu.machine import Machine
from harness.qemu.spec import Share, Value
from harness.testbed import Testbed


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


@pytest.mark.thorough
@pytest.mark.cold
def test_plugs_while_the_guest_boots(testbed: Testbed) -> None:
    """At any time between power-on and the first process: the device stays, and is found at the latest when
    the guest looks for new devices. One that was there before is unplugged like any other."""
    cold, *others = testbed.shares
    guest = testbed.begin_boot(testbed.spec(plugged=frozenset([cold.id])))
    machine = guest.machine
    for share, line in zip(others, ("", "PCI host bridge to bus", "Run /init"), strict=True):
        wait_printed(machine, line)
        machine.device_add(share)
    guest.wait_booted()
    guest.succeed("echo 1 > /sys/bus/pci/rescan")
    hotplug = Hotplug(guest)
    wait_listed(guest, *testbed.shares)
    use_and_unplug(guest, hotplug, *testbed.shares)


def wait_printed(machine: Machine, line: str) -> None:
    """Wait until the guest's kernel has printed it."""
    machine.wait_until(
        lambda: machine.kernel_log.contains(line), what=f"the kernel's {line!r}", timeout_s=BOOT_TIMEOUT_S
    )


def use_and_unplug(guest: Guest, hotplug: Hotplug, *shares: Share) -> None:
    """Each is mounted and used; then all are unplugged, without waiting for one another."""
    for share in shares:
        mount = guest.mount(share)
        mount.expect_usable()
        mount.unmount()
    for unplug in [hotplug.request_unplug(share) for share in shares]:
        unplug.wait_completed()


def wait_listed(guest: Guest, *shares: Share) -> None:
    """Wait until the guest has the tags of all of these, and no other."""
    wanted = sorted(share.mount_tag for share in shares)
    guest.machine.wait_until(
        lambda: sorted(guest.mount_tags(more_than=len(shares) - 1)) == wanted,
        what=f"the guest to list {', '.join(wanted)}",
        timeout_s=PLUG_TIMEOUT_S,
    )


@pytest.mark.thorough
def test_every_place_at_once(guest: Guest, hotplug: Hotplug, testbed: Testbed) -> None:
    """All are plugged, and later unplugged, without waiting for one another; and plugged again at once, or
    some seconds later: the guest is still busy with the unplug then (native PCIe)."""
    machine = guest.machine
    for share in testbed.shares:
        machine.device_add(share)
    wait_listed(guest, *testbed.shares)
    use_and_unplug(guest, hotplug, *testbed.shares)
    for share, pause_s in zip(testbed.shares, (0, 0.3, 1, 2), strict=True):
        check_during(machine.timeout_scale.seconds(pause_s), machine.watch)
        machine.device_add(share)
    wait_listed(guest, *testbed.shares)
    for share in testbed.shares:
        guest.mount(share).expect_usable()


@pytest.mark.thorough
@pytest.mark.any_plug
def test_an_unplug_right_after_the_plug(guest: Guest, hotplug: Hotplug, shares: tuple[Share, ...]) -> None:
    """The guest may not have seen the device yet: it goes all the same, at the latest when it is asked again,
    and the place can be used again."""
    machine = guest.machine
    for share in shares:
        machine.device_add(share)
        insist(hotplug, share)
    for share in shares:
        machine.device_add(share)
    wait_listed(guest, *shares)
    for share in shares:
        guest.mount(share).expect_usable()


def insist(hotplug: Hotplug, share: Share) -> None:
    """``device_del`` until the device goes: a guest that is busy with the plug does not listen."""
    machine = hotplug.guest.machine
    with Deletion(machine, share.id) as deletion:

        def goes() -> bool:
            asked = hotplug.request_unplug(share)
            asked.expect_granted_or_under_way(f"Device '{share.id}' not found")
            return deletion.reported

        machine.wait_until(
            goes, what=f"{share.id} to go", timeout_s=UNPLUG_TIMEOUT_S, interval_s=0.5, watch=machine.watch
        )
        deletion.confirm()
    expect_unknown(hotplug.guest, share)


@pytest.mark.thorough
def test_two_functions_of_one_slot(guest: Guest, hotplug: Hotplug, testbed: Testbed) -> None:
    """The guest sees neither before function 0 comes, which is the last; then both. A function that it has
    not seen can be taken back. An unplug of one takes the whole slot."""
    first, second = testbed.shares[:2]
    place = first.device(testbed.cell.machine_type)
    function = {"bus": place["bus"], "multifunction": True}
    zero = replace(first, device_options={**function, "addr": f"{place['addr']}.0"})
    one = replace(second, device_options={**function, "addr": f"{place['addr']}.1"})
    machine = guest.machine
    machine.device_add(one)
    assert guest.mount_tags() == []
    hotplug.request_unplug(one).wait_completed()
    machine.device_add(one)
    machine.device_add(zero)
    wait_listed(guest, zero, one)
    for share in (zero, one):
        mount = guest.mount(share)
        mount.expect_usable()
        mount.unmount()
    with Deletion(machine, one.id) as with_it:
        hotplug.unplug(zero)
        with_it.wait(timeout_s=UNPLUG_TIMEOUT_S)
    hotplug.plug(first)
    guest.mount(first).expect_usable()


@pytest.mark.thorough
@pytest.mark.pin_machine("pc")
def test_a_device_with_other_properties(
    guest: Guest, hotplug: Hotplug, share: Share, testbed: Testbed
) -> None:
    """However it notifies, interrupts and lays out its rings: it is plugged, used and unplugged."""
    known = properties(testbed.cell.qemu, share.driver)
    rom = testbed.folder / "rom"
    rom.write_bytes(b"\x55\xaa".ljust(2048, b"\0"))
    with_rom: dict[str, Value] = {"romfile": str(rom), "acpi-index": 7}
    for options in (with_rom, *PROPERTIES):
        if not known.issuperset(options):
            continue
        with named(options):
            hotplug.plug(replace(share, device_options=options))
            mount = guest.mount(share)
            mount.expect_intact("file", mount.write("file", size_kib=64))
            mount.unmount()
            hotplug.unplug(share)


#: Of virtio-9p-pci, virtio-pci and PCI devices (QEMU: ``-device virtio-9p-pci,help``).
PROPERTIES: tuple[dict[str, Value], ...] = (
    {"ioeventfd": False, "event_idx": False},
    {"disable-modern": True, "disable-legacy": "off"},
    {"disable-legacy": "on", "packed": True},
    {"disable-legacy": "on", "packed": True, "event_idx": False, "ioeventfd": False},
    {"disable-legacy": "on", "modern-pio-notify": True, "page-per-vq": True},
    {"disable-legacy": "on", "in_order": True},
    {"indirect_desc": False, "vectors": 1},
    {"vectors": 0, "rombar": 0},
    {"vectors": 1 << 16},
    {"disable-legacy": "on", "iommu_platform": True},
)


@contextmanager
def named(options: object) -> Iterator[None]:
    """What fails says with which options."""
    try:
        yield
    except BaseException as exc:
        exc.add_note(f"with {options}")
        raise


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
