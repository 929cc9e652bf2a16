"""No leak: after an unplug, and after a plug that failed, QEMU holds nothing of the device.

Each scenario is a cycle that a leak hunt repeats (:class:`LeakHunt`): threads, fds, heap, memory regions,
QOM objects and blockers must not grow from cycle to cycle.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from harness.actions.bad_plugs import bad_plugs, unrealizable
from harness.actions.hotplug import Hotplug, plug_refusals, unplug_without_guest
from harness.actions.migration import expect_blocked_by, under_way
from harness.errors import QemuError, Unsupported
from harness.guest.guest import Guest
from harness.guest.variant import DEVICE_KINDS
from harness.leaks.hunt import MANY_REQUESTS, SAVING, LeakHunt
from harness.ninep import messages as p9
from harness.ninep.client import NineError, RawDriver, RawGuest, make_files
from harness.ninep.messages import T
from harness.ninep.session import METADATA, outcome
from harness.plugin.thorough import by_default
from harness.qemu.machine import Machine
from harness.qemu.spec import Share
from harness.testbed import Testbed


@pytest.mark.always
@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("q35-pcie")
@pytest.mark.pin_variant(*DEVICE_KINDS)
@pytest.mark.usefixtures("variant")
def test_plug_and_unplug_without_a_guest(leak_hunt: LeakHunt, share: Share) -> None:
    """realize and unrealize alone. On a machine that was never started, device_del completes at once."""

    def cycle(machine: Machine) -> None:
        machine.device_add(share)
        unplug_without_guest(machine, share)

    leak_hunt.repeat_without_guest(cycle)


@pytest.mark.thorough
@pytest.mark.pin_machine("pc")
def test_plug_mount_use_unmount_unplug(leak_hunt: LeakHunt, share: Share) -> None:
    """A real guest mounts and uses the share between plug and unplug."""

    def cycle(guest: Guest) -> None:
        hotplug = Hotplug(guest)
        hotplug.plug(share)
        mount = guest.mount(share)
        mount.expect_usable()
        mount.unmount()
        hotplug.unplug(share)

    leak_hunt.repeat(cycle)


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_the_tables_of_remapped_inodes(leak_hunt: LeakHunt, share: Share, testbed: Testbed) -> None:
    """A session on an export with ``multidevs=remap``, whose inode numbers QEMU maps to its own."""
    (remapped,) = testbed.declare(replace(share, fsdev_options={"multidevs": "remap"}))
    make_files(share.path, 3)

    def cycle(guest: RawGuest) -> None:
        driver = guest.plug(remapped)
        driver.version()
        driver.attach(1)
        driver.walk(1, 2)
        driver.open(2)
        assert b"file2" in driver.readdir(2)
        driver.clunk_all()
        guest.eject(remapped)

    leak_hunt.repeat_raw(cycle, MANY_REQUESTS)


#: Exports whose sessions use other code of QEMU than that of a plain folder.
EXPORTS: dict[str, Callable[[Share], Share]] = {
    "synth": lambda share: replace(share, fsdriver="synth"),
    "readonly": lambda share: replace(share, fsdev_options={"readonly": "on"}),
    **{model: functools.partial(replace, security_model=model) for model in ("mapped-xattr", "mapped-file")},
}
#: The names of mapped-file's metadata, and others that no file may have (QEMU: ``hw/9pfs/9p-local.c``,
#: ``local_is_mapped_file_metadata``).
REFUSED_NAMES = (*METADATA, ".", "..", "a/b", "", "n" * 300)
NAMES_A_CYCLE = 2


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
@pytest.mark.parametrize("export", by_default("mapped-file", of=EXPORTS))
def test_a_session_on_each_export(leak_hunt: LeakHunt, share: Share, testbed: Testbed, export: str) -> None:
    """Walks, listings, changes and every message with a name that is refused, two names in each cycle;
    all fids are clunked."""
    (declared,) = testbed.declare(EXPORTS[export](share))
    make_files(share.path, 3)
    (share.path / "folder").mkdir()
    # Each comes up in each part of the hunt.
    names = itertools.cycle(REFUSED_NAMES)
    assert len(REFUSED_NAMES) <= NAMES_A_CYCLE * MANY_REQUESTS.part

    def cycle(guest: RawGuest) -> None:
        if share.id not in guest.machine.plugged:
            guest.plug(declared)
        driver = guest.driver(declared)
        driver.version()
        driver.attach(1)
        for fid in (2, 3):
            driver.walk(1, fid)
        driver.open(2)
        driver.readdir(2)
        driver.walk(1, 4, "..")
        for fid, name in ((5, "file0"), (6, "folder"), (7, "nothing")):
            outcome(driver, T.WALK, p9.walk(1, fid, name))
        for name in itertools.islice(names, NAMES_A_CYCLE):
            for kind, body in about(name):
                outcome(driver, kind, body)
        for kind, body in (
            (T.SETATTR, p9.set_fields(5, p9.MODE | p9.UID, mode=0o100640, uid=3)),
            (T.MKDIR, p9.mkdir(6, "made")),
            (T.MKNOD, p9.mknod(6, "node")),
            (T.SYMLINK, p9.symlink(6, "link", "to")),
            (T.LINK, p9.link(6, 5, "linked")),
            (T.RENAMEAT, p9.renameat(6, "node", "moved")),
            *((T.UNLINKAT, p9.unlinkat(6, name)) for name in ("moved", "link", "linked")),
            (T.UNLINKAT, p9.unlinkat(6, "made", p9.REMOVEDIR)),
            (T.STATFS, p9.fid(1)),
        ):
            outcome(driver, kind, body)
        for fid in range(1, 8):
            outcome(driver, T.CLUNK, p9.fid(fid))

    leak_hunt.repeat_raw(cycle, MANY_REQUESTS)


def about(name: str) -> Iterator[tuple[T, bytes]]:
    """Every message of 9P2000.L that has the name of a file; fid 1 is the folder, 3 a clone, 5 a file."""
    yield T.WALK, p9.walk(1, 9, name)
    yield T.LCREATE, p9.create(3, name)
    yield T.MKDIR, p9.mkdir(1, name)
    yield T.MKNOD, p9.mknod(1, name)
    yield T.SYMLINK, p9.symlink(1, name, "to")
    yield T.LINK, p9.link(1, 5, name)
    yield T.RENAME, p9.rename(5, 1, name)
    yield T.RENAMEAT, p9.renameat(1, "file1", name)
    yield T.RENAMEAT, p9.renameat(1, name, "new")
    yield T.UNLINKAT, p9.unlinkat(1, name)
    yield T.UNLINKAT, p9.unlinkat(1, name, p9.REMOVEDIR)


#: The ways in which a session ends before its device is ejected.
ENDINGS: dict[str, Callable[[RawGuest, RawDriver], None]] = {
    "clunked": lambda _, driver: driver.clunk_all(),
    "version": lambda _, driver: driver.version(),
    "device_reset": lambda _, driver: driver.reset(),
    "system_reset": lambda guest, _: guest.system_reset(),
    "ejected": lambda _guest, _driver: None,
}


@pytest.mark.thorough
@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_session_with_open_files_that_ends_in_any_way(
    leak_hunt: LeakHunt, share: Share, ending: str
) -> None:
    """A session with open files, folders and extended attributes ends in each way; then the device is
    ejected."""
    make_files(share.path, 3)

    def cycle(guest: RawGuest) -> None:
        driver = guest.plug(share)
        driver.version()
        driver.attach(1)
        driver.walk(1, 2)
        driver.create(2, "made")
        driver.write(2, 0, b"x" * 1000)
        driver.walk(1, 3, "file0")
        driver.open(3)
        assert driver.read(3, 0, 100) == b"file0"
        driver.walk(1, 4)
        driver.open(4)
        with contextlib.suppress(NineError):  # The host's file system may have no extended attributes.
            driver.xattrwalk(3, 5)
        ENDINGS[ending](guest, driver)
        guest.eject(share)

    leak_hunt.repeat_raw(cycle, MANY_REQUESTS)


def session(driver: RawDriver) -> None:
    """Attach, read a file and a folder, clunk everything."""
    driver.version()
    driver.attach(1)
    driver.walk(1, 2, "file0")
    driver.open(2)
    assert driver.read(2, 0, 100) == b"file0"
    driver.walk(1, 3)
    driver.open(3)
    driver.readdir(3)
    driver.clunk_all()


#: In a cycle of the next scenario.
SESSIONS = 5


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_mount_and_umount_without_unplug(leak_hunt: LeakHunt, share: Share) -> None:
    """One device stays plugged and is used by one session after another."""
    make_files(share.path, 3)

    def cycle(guest: RawGuest) -> None:
        if share.id not in guest.machine.plugged:
            guest.plug(share)
        # Several, so that what one attach in twenty leaks shows in each part of a default run's hunt.
        for _ in range(SESSIONS):
            session(guest.driver(share))

    leak_hunt.repeat_raw(cycle, MANY_REQUESTS)


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_heavy_use(leak_hunt: LeakHunt, share: Share) -> None:
    """Many requests of every kind, also failing ones, before the device is ejected."""
    make_files(share.path, 2)

    def cycle(guest: RawGuest) -> None:
        driver = guest.plug(share)
        driver.version()
        driver.attach(1)
        for number in range(2):
            driver.walk(1, 10 + number, f"file{number}")
            driver.open(10 + number)
            driver.read(10 + number, 0, 100)
            with pytest.raises(NineError):
                driver.walk(1, 900, "nothing")
            with pytest.raises(NineError):
                driver.read(10 + number, 1 << 63, 100)
            with pytest.raises(NineError):
                driver.write(10 + number, 0, b"opened for reading")
        driver.walk(1, 2)
        driver.create(2, "made")
        for number in range(4):
            driver.write(2, 4096 * number, b"x" * 4096)
        for kind, body in EVERY_KIND:
            driver.call(kind, body)
        extended_attributes(driver)
        with pytest.raises(NineError):
            driver.attach(1)
        driver.flush(4711)
        driver.clunk_all()
        guest.eject(share)

    leak_hunt.repeat_raw(cycle, MANY_REQUESTS)


#: Requests about fid 1, the export's root, and fid 2, an open file. Together they leave the folder as it
#: was.
EVERY_KIND = (
    (T.FSYNC, p9.fsync(2)),
    (T.STATFS, p9.fid(1)),
    (T.GETATTR, p9.getattr_(2)),
    (T.SETATTR, p9.setattr_(2, 0o600)),
    (T.LOCK, p9.lock(2)),
    (T.GETLOCK, p9.getlock(2)),
    (T.LINK, p9.link(1, 2, "linked")),
    (T.RENAMEAT, p9.renameat(1, "linked", "renamed")),
    (T.UNLINKAT, p9.unlinkat(1, "renamed")),
    (T.SYMLINK, p9.symlink(1, "symbolic", "target")),
    (T.WALK, p9.walk(1, 800, "symbolic")),
    (T.READLINK, p9.fid(800)),
    (T.CLUNK, p9.fid(800)),
    (T.UNLINKAT, p9.unlinkat(1, "symbolic")),
    (T.MKNOD, p9.mknod(1, "node")),
    (T.UNLINKAT, p9.unlinkat(1, "node")),
    (T.MKDIR, p9.mkdir(1, "folder")),
    (T.WALK, p9.walk(1, 801, "folder")),
    (T.LOPEN, p9.open_(801)),
    (T.READDIR, p9.read(801, 0, 4096)),
    (T.CLUNK, p9.fid(801)),
    (T.UNLINKAT, p9.unlinkat(1, "folder", p9.REMOVEDIR)),
)


def extended_attributes(driver: RawDriver) -> None:
    """Set, read, list and remove an attribute; errors of a file system without attributes are ignored."""
    for value in (b"value", b""):
        driver.call(T.WALK, p9.walk(1, 802, "file0"))
        driver.call(T.XATTRCREATE, p9.xattrcreate(802, "user.harness", len(value)))
        if value:
            driver.write(802, 0, value)
            with contextlib.suppress(NineError):
                driver.xattrwalk(10, 803, "user.harness")
            with contextlib.suppress(NineError):
                driver.xattrwalk(10, 804)
        with contextlib.suppress(NineError):
            driver.call(T.CLUNK, p9.fid(802))


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_a_bridge_that_comes_and_goes(leak_hunt: LeakHunt, share: Share) -> None:
    """A PCI bridge is plugged and ejected: nothing of its bus stays, in memory or in a stream."""

    def cycle(guest: RawGuest) -> None:
        machine = guest.machine
        place = machine.spec.machine_type.place(share.slot)
        bridge = {"driver": "pci-bridge", "id": "bridge", "chassis_nr": 7, **place}
        with machine.qmp.listen("DEVICE_DELETED") as events:
            machine.qmp.execute("device_add", bridge)
            guest.request_eject(share)  # Of what is in its slot.
            timeout_s = machine.timeout_scale.seconds(10)
            events.wait(what="DEVICE_DELETED of the bridge", timeout_s=timeout_s, watch=machine.watch)

    leak_hunt.repeat_raw(cycle, SAVING)


@pytest.mark.thorough
@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_loadvm_over_a_mounted_share(leak_hunt: LeakHunt, share: Share) -> None:
    """loadvm ends the session of a mounted share, and leaves no fid, fd or blocker of it."""
    make_files(share.path, 3)

    def cycle(guest: RawGuest) -> None:
        if share.id not in guest.machine.plugged:
            guest.plug(share)
            assert not guest.machine.qmp.hmp("savevm unmounted")
        driver = guest.driver(share)
        driver.version()
        driver.attach(1)
        driver.walk(1, 2, "file0")
        driver.open(2)
        assert not guest.machine.qmp.hmp("loadvm unmounted")
        expect_blocked_by(guest.machine)

    def control(guest: RawGuest) -> None:
        if not guest.machine.qmp.hmp("info snapshots").count("unmounted"):
            assert not guest.machine.qmp.hmp("savevm unmounted")
        assert not guest.machine.qmp.hmp("loadvm unmounted")

    # loadvm itself leaks its channel (QEMU: migration/savevm.c, qemu_fopen_bdrv); the control measures
    # that.
    leak_hunt.repeat_raw(cycle, SAVING, control=control)


@pytest.mark.thorough
@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_an_unmounted_device_is_saved(leak_hunt: LeakHunt, share: Share) -> None:
    """The device is saved in a snapshot before it is ejected: nothing of it or its vmstate description
    stays."""
    make_files(share.path, 3)

    def control(guest: RawGuest) -> None:
        assert not guest.machine.qmp.hmp("savevm unmounted")

    def cycle(guest: RawGuest) -> None:
        session(guest.plug(share))
        control(guest)
        guest.eject(share)

    # savevm itself leaks its channel and, in 10.0, the writer of the vmstate description; the control
    # measures that.
    leak_hunt.repeat_raw(cycle, SAVING, control=control)


@pytest.mark.thorough
@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_an_unmounted_device_begins_to_migrate(leak_hunt: LeakHunt, share: Share) -> None:
    """A migration begins and is cancelled before the device is ejected: nothing of the device stays."""
    make_files(share.path, 3)

    def cycle(guest: RawGuest) -> None:
        session(guest.plug(share))
        with under_way(guest.machine):
            pass
        guest.eject(share)

    leak_hunt.repeat_raw(cycle, SAVING)


@pytest.mark.always
@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("q35-pcie")
@pytest.mark.parametrize(
    "wrong", by_default("long_tag", of=["fsdev", "no_tag", "long_tag", "path", "busy_id"])
)
def test_a_plug_that_fails(leak_hunt: LeakHunt, shares: tuple[Share, ...], wrong: str) -> None:
    """device_add fails with each error of realize, beside a device that stays plugged."""
    share, other = shares[:2]
    broken = {
        **unrealizable(share),
        "path": share,
        "busy_id": replace(share, id=other.id, fsdev_of=share.id),
    }[wrong]

    def cycle(machine: Machine) -> None:
        if other.id not in machine.plugged:
            machine.device_add(other)
        with without(share.path) if wrong == "path" else contextlib.nullcontext():
            with pytest.raises(QemuError) as refused:
                machine.device_add(broken)
            assert refused.value.desc in plug_refusals(wrong, broken)

    leak_hunt.repeat_without_guest(cycle)


@pytest.mark.thorough
@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("q35-pcie")
@pytest.mark.parametrize("wrong", ["rom_missing", "iommu_of_a_legacy_device"])
def test_a_plug_that_fails_late(
    leak_hunt: LeakHunt, shares: tuple[Share, ...], testbed: Testbed, wrong: str
) -> None:
    """device_add fails late: the PCI bus or the virtio bus refuses the device before, in or after
    realize."""
    share, other = shares[:2]
    refused = bad_plugs(testbed.cell.qemu, testbed.cell.machine_type, testbed.folder, share, other)
    if wrong not in refused:
        raise Unsupported(f"this QEMU's {share.driver} has no such properties: {wrong}")

    def cycle(machine: Machine) -> None:
        if other.id not in machine.plugged:
            machine.device_add(other)
        refused[wrong].expect_refused(machine)

    leak_hunt.repeat_without_guest(cycle)


@contextlib.contextmanager
def without(path: Path) -> Iterator[None]:
    """Rename the folder for the duration of the block."""
    away = path.rename(path.with_suffix(".away"))
    try:
        yield
    finally:
        away.rename(path)
