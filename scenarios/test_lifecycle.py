"""Lifecycle: a share is plugged, mounted, used, unmounted and unplugged in one guest, and plugged again.

Also in unusual circumstances: while the guest boots, in every slot at once, with other device properties,
over the serial console, and with a file system on the host that fails.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from harness.actions.hotplug import PLUG_TIMEOUT_S, UNPLUG_TIMEOUT_S, Hotplug, expect_gone_in_guest
from harness.actions.migration import Migration
from harness.deadline import check_during
from harness.errors import GuestError
from harness.guest.guest import BOOT_TIMEOUT_S, Guest
from harness.guest.mount import Mount, host_sha256
from harness.guest.variant import Variant
from harness.holds.hold import DATA, FSYNC, Hold
from harness.plugin.thorough import by_default
from harness.qemu.binary import properties, require_property
from harness.qemu.deletion import Deletion
from harness.qemu.machine import Machine
from harness.qemu.spec import Share, Value
from harness.testbed import Testbed


@pytest.mark.always
@pytest.mark.thorough("q35-pcie")
def test_plug_mount_use_unmount_unplug(guest: Guest, hotplug: Hotplug, share: Share) -> None:
    """The guest reads what the host wrote and the host what the guest wrote; then the device is unplugged.

    Files are transferred in small requests, in requests of the kernel's default ``msize`` (128 KiB), and in
    the largest that the virtqueue takes (500 KiB; kernel: ``net/9p/trans_virtio.c``, ``maxsize``).
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


#: KiB in a file: more than two requests of any msize.
_LARGE_KIB = 1024


def expect_large_requests(mount: Mount, sent: str) -> None:
    """Read and write a file with system calls that are larger than a request; all bytes arrive."""
    mount.expect_intact("from-host", sent, block_kib=2 * _LARGE_KIB)
    written = mount.write("large", size_kib=_LARGE_KIB, block_kib=_LARGE_KIB)
    mount.expect_intact("large", written, block_kib=_LARGE_KIB)


@pytest.mark.always
@pytest.mark.thorough("q35")
def test_a_share_can_be_plugged_again(guest: Guest, hotplug: Hotplug, share: Share) -> None:
    """The same id, mount tag and slot can be used again after an unplug, and the files are still there."""
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


@pytest.mark.thorough("pc", "q35")
@pytest.mark.cold
def test_plugs_while_the_guest_boots(testbed: Testbed) -> None:
    """Devices are plugged at three moments between power-on and the first process. The guest finds each
    of them, at the latest in a PCI rescan. They, and the device of the command line, can be used and
    unplugged."""
    cold, *others = testbed.shares
    guest = testbed.begin_boot(testbed.spec(plugged=frozenset([cold.id])))
    machine = guest.machine
    for share, line in zip(others, ("", "devtmpfs: initialized", "Run /init"), strict=True):
        wait_printed(machine, line)
        machine.device_add(share)
    guest.wait_booted()
    guest.succeed("[ ! -e /sys/bus/pci/rescan ] || echo 1 > /sys/bus/pci/rescan")
    hotplug = Hotplug(guest)
    wait_listed(guest, *testbed.shares)
    use_and_unplug(guest, hotplug, *testbed.shares)


def wait_printed(machine: Machine, line: str) -> None:
    """Wait until the guest's kernel has printed ``line``."""
    machine.wait_until(
        lambda: machine.kernel_log.contains(line),
        what=f"the kernel to print {line!r}",
        timeout_s=BOOT_TIMEOUT_S,
    )


def use_and_unplug(guest: Guest, hotplug: Hotplug, *shares: Share) -> None:
    """Mount and use each share, then unplug all of them without waiting in between."""
    for share in shares:
        mount = guest.mount(share)
        mount.expect_usable()
        mount.unmount()
    for unplug in [hotplug.request_unplug(share) for share in shares]:
        unplug.wait_completed()


def wait_listed(guest: Guest, *shares: Share) -> None:
    """Wait until the guest lists the mount tags of these shares, and no others."""
    wanted = sorted(share.mount_tag for share in shares)
    guest.machine.wait_until(
        lambda: sorted(guest.mount_tags(more_than=len(shares) - 1)) == wanted,
        what=f"the guest to list {', '.join(wanted)}",
        timeout_s=PLUG_TIMEOUT_S,
    )


@pytest.mark.thorough
def test_every_place_at_once(guest: Guest, hotplug: Hotplug, testbed: Testbed) -> None:
    """All slots are plugged at the same time, and unplugged at the same time. They are plugged again at
    once, or up to two seconds later, when a guest with native PCIe hotplug still handles the unplug."""
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
    """device_del comes before the guest has seen the device. The device is unplugged, at the latest after a
    further device_del, and its slot can be used again."""
    machine = guest.machine
    for share in shares:
        machine.device_add(share)
        unplug_with_repeats(hotplug, share)
    for share in shares:
        machine.device_add(share)
    wait_listed(guest, *shares)
    for share in shares:
        guest.mount(share).expect_usable()


def unplug_with_repeats(hotplug: Hotplug, share: Share) -> None:
    """Repeat ``device_del`` until the device is gone: a guest that still handles the plug ignores it."""
    machine = hotplug.guest.machine
    with Deletion(machine, share.id) as deletion:

        def gone() -> bool:
            unplug = hotplug.request_unplug(share)
            unplug.expect_granted_or_under_way(f"Device '{share.id}' not found")
            return deletion.reported

        machine.wait_until(
            gone, what=f"{share.id} to go", timeout_s=UNPLUG_TIMEOUT_S, interval_s=0.5, watch=machine.watch
        )
        deletion.confirm()
    expect_gone_in_guest(hotplug.guest, share)


@pytest.mark.thorough
def test_two_functions_of_one_slot(guest: Guest, hotplug: Hotplug, testbed: Testbed) -> None:
    """The guest sees the functions of a slot only once function 0 is plugged, which has to be the last. A
    function that it has not seen can be unplugged. An unplug of one function unplugs the whole slot."""
    testbed.cell.machine_type.require_pci()
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
    with Deletion(machine, one.id) as deletion:
        hotplug.unplug(zero)
        deletion.wait(timeout_s=UNPLUG_TIMEOUT_S)
    hotplug.plug(first)
    guest.mount(first).expect_usable()


@pytest.mark.thorough
@pytest.mark.pin_machine("pc")
def test_a_device_with_other_properties(
    guest: Guest, hotplug: Hotplug, share: Share, testbed: Testbed
) -> None:
    """Devices with other properties for notification, interrupts and ring layout are plugged, used and
    unplugged."""
    known = properties(testbed.cell.qemu, share.driver)
    rom = testbed.folder / "rom"
    rom.write_bytes(b"\x55\xaa".ljust(2048, b"\0"))
    with_rom: dict[str, Value] = {"romfile": str(rom), "acpi-index": 7}
    for options in (with_rom, *PROPERTIES):
        if not known.issuperset(options):
            continue
        with noting(options):
            hotplug.plug(replace(share, device_options=options))
            mount = guest.mount(share)
            mount.expect_intact("file", mount.write("file", size_kib=64))
            mount.unmount()
            hotplug.unplug(share)


@pytest.mark.thorough
@pytest.mark.pin_machine("q35-pcie")
def test_a_device_that_reports_errors(guest: Guest, hotplug: Hotplug, share: Share, testbed: Testbed) -> None:
    """A device with PCI Express error reporting is plugged, used and unplugged, twice in the same slot."""
    require_property(testbed.cell.qemu, share.driver, "aer")
    reporting = replace(share, device_options={"aer": True})
    for _ in range(2):
        hotplug.plug(reporting)
        mount = guest.mount(reporting)
        mount.expect_intact("file", mount.write("file", size_kib=64))
        mount.unmount()
        hotplug.unplug(reporting)


#: Sets of properties of virtio-9p-pci (QEMU: ``-device virtio-9p-pci,help``).
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
def noting(options: object) -> Iterator[None]:
    """Add the options to an error of the block, as a note."""
    try:
        yield
    except BaseException as exc:
        exc.add_note(f"with {options}")
        raise


@pytest.mark.thorough
@pytest.mark.any_plug
def test_a_share_is_used_over_the_serial_console(guest: Guest, hotplug: Hotplug, share: Share) -> None:
    """A share is plugged, mounted, used and unplugged over the serial console, without a network."""
    guest.use("console")
    hotplug.plug(share)
    mount = guest.mount(share)
    mount.expect_intact("from-guest", mount.write("from-guest", size_kib=64))
    mount.unmount()
    hotplug.unplug(share)


@pytest.mark.thorough
@pytest.mark.any_plug
@pytest.mark.unplug("asks")
def test_the_whole_life_of_any_kind_of_share(
    guest: Guest, hotplug: Hotplug, migration: Migration, share: Share, variant: Variant
) -> None:
    """A share of any kind blocks migration while mounted, is not unplugged until it is unmounted, and works
    after a migration."""
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


#: The errno of a write to a share that cannot be written to, by fsdriver (QEMU: ``hw/9pfs/9p-synth.c``,
#: ``synth_open2``).
_CANNOT_BE_WRITTEN = {"local": errno.EROFS, "synth": errno.ENOSYS}


def use(mount: Mount, variant: Variant, name: str) -> None:
    """Read a file that the host wrote, and write one; the write has to fail where the share is read-only."""
    mount.guest.succeed(f"ls {mount.mountpoint}/")
    if variant.files:
        (mount.share.path / f"host-{name}").write_bytes(name.encode() * 4096)
        mount.expect_intact(f"host-{name}", host_sha256(mount.share.path / f"host-{name}"))
    if variant.writable:
        mount.expect_intact(name, mount.write(name, size_kib=64))
    else:
        stderr = mount.guest.fail(f"touch {mount.mountpoint}/refused").stderr
        assert os.strerror(_CANNOT_BE_WRITTEN[mount.share.fsdriver]) in stderr, stderr


@pytest.mark.any_plug
def test_an_export_that_transfers_less_than_asked(
    guest: Guest, hotplug: Hotplug, share: Share, hold: Hold
) -> None:
    """The host transfers half of each read and write: QEMU transfers the rest as well, and every byte
    arrives."""
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


#: The errno that the host's file system gives, for which system calls, and the guest's command that gets
#: it.
FAILURES = {
    "read_eio": (errno.EIO, DATA, "cat file"),
    "write_enospc": (errno.ENOSPC, DATA, "echo content > new"),
    "fsync_eio": (errno.EIO, FSYNC, "dd if=/dev/zero of=new bs=1024 count=1 conv=fsync"),
    "read_estale": (errno.ESTALE, DATA, "cat file"),
}


@pytest.mark.any_plug
@pytest.mark.parametrize("failure", by_default("read_estale", "fsync_eio", of=FAILURES))
def test_an_export_whose_file_system_fails(
    guest: Guest, hotplug: Hotplug, migration: Migration, share: Share, hold: Hold, failure: str
) -> None:
    """The guest gets the errno of the host's file system. Afterwards the share works, blocks migration
    and can be unplugged."""
    number, calls, command = FAILURES[failure]
    (share.path / "file").write_text("content")
    hotplug.plug(share)
    mount = guest.mount(share)
    with hold.failing(share, number, *calls) as rule:
        stderr = guest.fail(f"cd {mount.mountpoint} && {command}").stderr
        assert os.strerror(number) in stderr, "the guest got another error"
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
