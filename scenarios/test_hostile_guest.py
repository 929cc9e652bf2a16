"""A hostile guest cannot hurt QEMU: QEMU drains a device that is ejected or reset with requests in flight.

Whatever the guest does, QEMU must not crash, leak, keep a migration blocker or touch a file outside the
export. In the first scenarios the guest's root is hostile. In the others the raw client, a 9p client in
Python over qtest (:mod:`harness.ninep.client`), sends what no kernel sends.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from harness.actions.drain import happens_while
from harness.actions.hostile import HostileGuest
from harness.actions.hotplug import Hotplug
from harness.actions.migration import Migration, expect_blocked_by
from harness.actions.run_state import RunState
from harness.background import Background
from harness.deadline import check_during
from harness.errors import QemuError, Unsupported, Violation
from harness.guest import transfer
from harness.guest.guest import Guest
from harness.guest.job import Job
from harness.guest.mount import Mount, TagState
from harness.holds.hold import Hold
from harness.ninep import messages as p9
from harness.ninep.client import MSIZE, NineError, RawDriver, RawGuest, Request
from harness.ninep.messages import T
from harness.ninep.session import (
    ANSWERED,
    BROKEN,
    count_virtio_errors,
    outcome,
    wait_answered_or_broken,
    wait_outcome,
)
from harness.plugin.thorough import by_default
from harness.qemu.acpi import eject_writes
from harness.qemu.binary import require_property
from harness.qemu.deletion import Deletion
from harness.qemu.machine import Machine
from harness.qemu.machine_types.machine_type import AcpiEject
from harness.qemu.spec import Share
from harness.testbed import Testbed


@pytest.mark.always
def test_a_forced_eject_with_a_request_in_flight(
    guest: Guest, hotplug: Hotplug, hostile: HostileGuest, share: Share, hold: Hold
) -> None:
    """QEMU removes the device only after the worker thread has finished the request in flight."""
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


@pytest.mark.always
def test_a_forced_eject_while_mounted(
    guest: Guest, hotplug: Hotplug, hostile: HostileGuest, migration: Migration, share: Share
) -> None:
    """The forced eject of a mounted share ends its migration blocker."""
    hotplug.plug(share)
    mount = guest.mount(share)
    mount.expect_usable()
    migration.expect_blocked_by(share)
    hostile.eject(share)
    migration.expect_not_blocked()


@pytest.mark.thorough
@pytest.mark.any_plug
def test_a_driver_unbound_with_a_request_in_flight(
    guest: Guest, hotplug: Hotplug, migration: Migration, share: Share, hold: Hold
) -> None:
    """Unbinding the guest's driver waits for the last user of the mount; until then the device works and
    blocks migration."""
    hotplug.plug(share)
    mount = guest.mount(share)
    with hold.requests(share) as held:
        reader = transfer.reader(mount)
        held.wait_caught()
        unbinding = Job(guest, guest.unbind_9p_command, "unbinding the driver")
        wait_delisted(mount)
        migration.expect_blocked_by(share)
        unbinding.expect_running()
        held.in_flight()
    reader.wait_finished().expect_intact()
    mount.unmount()
    unbinding.wait_succeeded()
    migration.expect_not_blocked()
    assert guest.mount_tags() == []


def wait_delisted(mount: Mount) -> None:
    """Wait until the guest's driver has begun to release the device."""
    mount.guest.machine.wait_until(
        lambda: mount.tag_state() is TagState.DELISTED,
        what="the driver to release the device",
        timeout_s=10,
        interval_s=0.1,
    )


@pytest.mark.thorough
@pytest.mark.any_plug
@pytest.mark.parametrize("how", ["system_reset", "reboot"])
def test_a_reset_with_a_request_in_flight(
    guest: Guest,
    hotplug: Hotplug,
    migration: Migration,
    run_state: RunState,
    share: Share,
    hold: Hold,
    how: str,
) -> None:
    """The reset waits for the request in flight: no RESET event before. After it the share can be
    mounted."""
    hotplug.plug(share)
    mount = guest.mount(share)
    with hold.requests(share) as held, guest.machine.qmp.listen("RESET") as resets:
        transfer.reader(mount)
        held.wait_caught()
        reset = Background(getattr(run_state, how))
        run_state.wait_reset_begun()
        reset_while_held = happens_while(
            guest.machine, lambda: bool(resets.events), while_=held.waiting, what="the reset"
        )
    reset.wait(timeout_s=guest.machine.timeout_scale.seconds(30))
    migration.expect_not_blocked()
    assert not reset_while_held, "the machine was reset (RESET) with a request in flight"
    mount = guest.mount(share)
    mount.expect_usable()
    mount.unmount()
    hotplug.unplug(share)


@pytest.mark.thorough
@pytest.mark.any_plug
def test_a_panic_with_a_request_in_flight(
    guest: Guest,
    hotplug: Hotplug,
    migration: Migration,
    run_state: RunState,
    hostile: HostileGuest,
    share: Share,
    hold: Hold,
) -> None:
    """A guest that panicked with a mounted share blocks migration until it is reset; then the share can be
    mounted again."""
    hotplug.plug(share)
    mount = guest.mount(share)
    boot_id = guest.boot_id
    with hold.requests(share) as held:
        transfer.reader(mount)
        held.wait_caught()
        hostile.panic()
        held.in_flight()
        migration.expect_blocked_by(share)
    migration.expect_blocked_by(share)
    run_state.system_reset(boot_id=boot_id)
    migration.expect_not_blocked()
    mount = guest.mount(share)
    mount.expect_usable()
    mount.unmount()
    hotplug.unplug(share)


@pytest.mark.thorough
@pytest.mark.any_plug
def test_the_module_unloaded_and_loaded(
    guest: Guest, hotplug: Hotplug, migration: Migration, share: Share
) -> None:
    """The guest's 9p module cannot be unloaded while a share is mounted. Loaded again, it finds the
    device."""
    hotplug.plug(share)
    mount = guest.mount(share)
    assert "Resource temporarily unavailable" in guest.fail("rmmod 9pnet_virtio").stderr
    mount.expect_usable()
    mount.unmount()
    guest.succeed("rmmod 9pnet_virtio")
    migration.expect_not_blocked()
    guest.succeed("insmod /lib/modules/$(grep -m 1 9pnet_virtio /lib/modules/order)")
    mount = guest.mount(share)
    mount.expect_usable()
    migration.expect_blocked_by(share)
    mount.unmount()
    hotplug.unplug(share)


@pytest.fixture
def on_a_fixed_bus(testbed: Testbed) -> RawGuest:
    """A machine that was started with the first share, on a bus that forbids hotplug."""
    fixed, share = testbed.cell.machine_type.require_fixed_place(), testbed.shares[0]
    fixed.require(testbed.cell.qemu)
    testbed.declare(replace(share, device_options={"bus": fixed.bus, "addr": fixed.addr}))
    return RawGuest(testbed, plugged=frozenset([share.id]), arguments=fixed.arguments)


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_an_eject_from_a_bus_that_forbids_hotplug(on_a_fixed_bus: RawGuest) -> None:
    """The guest cannot eject a device that the host cannot unplug, whatever bus number it writes."""
    guest = on_a_fixed_bus
    (share,) = guest.machine.spec.shares
    driver = guest.driver(share)
    driver.version()
    eject = guest.machine.spec.machine_type.eject
    assert isinstance(eject, AcpiEject)
    for bsel in range(3):
        for port, value in eject.writes(bsel, driver.addr):
            guest.qtest.outl(port, value)
    with Deletion(guest.machine, share.id) as deletion:
        assert deletion.present(), "the guest ejected a device from a bus that forbids hotplug"
    driver.version()
    driver.attach(1)
    expect_blocked_by(guest.machine, share)


#: Numbers of buses that the machine has not: within the registers' range, and beyond it.
NO_BUSES = (7, 255, 256, 0x7FFFFFFF, 0xFFFFFFFF)


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_the_registers_of_a_bus_that_is_not_there(raw_guest: RawGuest, share: Share) -> None:
    """The registers of ACPI hotplug say that the device's slot can be ejected; with another bus selected they
    are 0, and ejecting every slot of it changes nothing."""
    machine, qtest = raw_guest.machine, raw_guest.qtest
    # It came with the last of the registers.
    require_property(machine.spec.qemu, share.driver, "acpi-index")
    eject = machine.spec.machine_type.eject
    assert isinstance(eject, AcpiEject)
    driver = raw_guest.plug(share)
    (select, bsel), _ = eject_writes(machine, share)
    qtest.outl(select, bsel)
    registers = {name: qtest.inl(eject.base + offset) for name, offset in eject.REGISTERS.items()}
    assert registers["select"] == bsel
    assert registers["removable"] & 1 << driver.addr
    assert registers["eject"] == registers["down"] == 0
    for number in NO_BUSES:
        qtest.outl(eject.base + eject.REGISTERS["select"], number)
        for name in ("index", "eject"):
            for slot in range(32):
                qtest.outl(eject.base + eject.REGISTERS[name], 1 << slot)
        for name in ("up", "down", "eject", "index"):
            assert qtest.inl(eject.base + eject.REGISTERS[name]) == 0, (name, number)
    with Deletion(machine, share.id) as deletion:
        assert deletion.present(), "an eject on a bus that is not there has deleted the device"
    driver.version()
    raw_guest.eject(share)


@pytest.mark.pin_machine("q35-pcie")
def test_a_slot_that_the_guest_has_locked(
    guest: Guest, hotplug: Hotplug, hostile: HostileGuest, shares: tuple[Share, ...]
) -> None:
    """While the guest has engaged the slot's electromechanical interlock, device_del and device_add are
    refused and change nothing; without it they work."""
    share = shares[0]
    hotplug.plug(share)
    lock = hostile.slot_lock(share)
    mount = guest.mount(share)
    lock.toggle()
    with pytest.raises(QemuError, match=LOCKED):
        guest.machine.qmp.execute("device_del", {"id": share.id})
    mount.expect_usable()
    mount.unmount()
    lock.toggle()
    hotplug.unplug(share)
    lock.toggle()
    with pytest.raises(QemuError, match=LOCKED):
        hotplug.plug(share)
    lock.toggle()
    hotplug.plug(share)
    mount = guest.mount(share)
    mount.expect_usable()
    mount.unmount()
    hotplug.unplug(share)


#: QEMU: ``hw/pci/pcie.c``, ``pcie_cap_slot_plug_common``.
LOCKED = "slot is electromechanically locked"


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_an_eject_with_the_queue_live(raw_guest: RawGuest, shares: tuple[Share, ...]) -> None:
    """The device is ejected while its queue is in use. Its ioeventfd, if it has one, is removed with it,
    and the next device in that slot works."""
    for ioeventfd in (True, False, True):
        share, other = (replace(share, device_options={"ioeventfd": ioeventfd}) for share in shares[:2])
        beside, driver = raw_guest.plug(other), raw_guest.plug(share)
        for one in (beside, driver):
            one.version()
            one.attach(1)
            one.clunk(1)
        raw_guest.eject(share)
        beside.version()
        raw_guest.plug(share).version()
        raw_guest.system_reset()
        raw_guest.driver(share).version()
        raw_guest.eject(share)
        raw_guest.eject(other)
    raw_guest.machine.quit()


def plug_and_open(raw_guest: RawGuest, share: Share) -> RawDriver:
    """Plug the device in and start a session that has the export attached (fid 1) and a file open (fid
    2)."""
    (share.path / "file").write_text("content")
    driver = raw_guest.plug(share)
    driver.version()
    driver.attach(1)
    driver.walk(1, 2, "file")
    driver.open(2)
    expect_blocked_by(raw_guest.machine, share)
    return driver


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_attach_twice_and_clunk_the_first(raw_guest: RawGuest, share: Share) -> None:
    """An export that is attached twice blocks migration until both fids are clunked."""
    driver = plug_and_open(raw_guest, share)
    driver.attach(9)
    driver.clunk(1)
    driver.walk(9, 3, "file")
    driver.open(3)
    assert driver.read(3, 0, 100) == b"content"
    expect_blocked_by(raw_guest.machine, share)
    driver.clunk(9)
    expect_blocked_by(raw_guest.machine)


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_a_version_in_the_middle_ends_the_session(raw_guest: RawGuest, share: Share) -> None:
    """Tversion clunks every fid of the session before, and so ends the blocker."""
    driver = plug_and_open(raw_guest, share)
    driver.version()
    expect_blocked_by(raw_guest.machine)
    with pytest.raises(NineError, match=r"EINVAL|ENOENT"):
        driver.read(2, 0, 100)
    driver.attach(1)
    expect_blocked_by(raw_guest.machine, share)


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_a_device_reset_ends_the_session(raw_guest: RawGuest, share: Share) -> None:
    """A virtio reset ends the blocker of a session that was not clunked."""
    plug_and_open(raw_guest, share).reset()
    expect_blocked_by(raw_guest.machine)


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_a_system_reset_ends_the_session(raw_guest: RawGuest, share: Share) -> None:
    """A system reset ends the blocker, and the device can be used again."""
    plug_and_open(raw_guest, share)
    raw_guest.system_reset()
    expect_blocked_by(raw_guest.machine)
    driver = raw_guest.driver(share)
    driver.version()
    driver.attach(1)
    expect_blocked_by(raw_guest.machine, share)


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_an_eject_ends_the_blocker(raw_guest: RawGuest, share: Share) -> None:
    """The eject of a device ends the blocker of a session that was not clunked."""
    plug_and_open(raw_guest, share)
    raw_guest.eject(share)
    expect_blocked_by(raw_guest.machine)


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_a_flush_of_itself_is_answered(raw_guest: RawGuest, share: Share) -> None:
    """A Tflush whose oldtag is its own tag is answered, and the session goes on."""
    driver = plug_and_open(raw_guest, share)
    driver.flush(77, tag=77)
    assert driver.read(2, 0, 100) == b"content"


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_a_flush_waits_for_the_request_it_flushes(raw_guest: RawGuest, share: Share, hold: Hold) -> None:
    """Rflush frees the old tag, so it must not be sent while the old request may still be answered."""
    expect_flush_to_wait(raw_guest, share, hold)


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_a_flush_waits_for_a_request_with_a_high_tag(raw_guest: RawGuest, share: Share, hold: Hold) -> None:
    """The same when the highest bit of the tag is set: a tag has 16 bits, none of which is a sign."""
    expect_flush_to_wait(raw_guest, share, hold, tag=0x8001)


def expect_flush_to_wait(raw_guest: RawGuest, share: Share, hold: Hold, *, tag: int | None = None) -> None:
    """Assert that the Tflush of a read in flight is answered only after the read has ended."""
    driver = plug_and_open(raw_guest, share)
    with hold.requests(share) as held:
        read = driver.send(T.READ, p9.read(2, 0, 100), tag=tag)
        held.wait_caught()
        answered = driver.answered()
        flush = driver.send(T.FLUSH, p9.flush(read.tag))
        # in_flight() sends a QMP command: once that is answered, QEMU's main loop has read the Tflush.
        held.in_flight()
        check_during(raw_guest.machine.timeout_scale.seconds(0.1), lambda: driver.expect_answered(answered))
        held.in_flight()
    driver.wait_answer(flush)
    assert driver.read(2, 0, 100) == b"content"


@pytest.mark.always
@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
@pytest.mark.parametrize("end", ["device_reset", "system_reset"])
def test_a_reset_waits_for_a_request_in_flight(
    raw_guest: RawGuest, share: Share, hold: Hold, end: str
) -> None:
    """A reset does not complete while a request's system call is held; then the device works again."""
    driver = plug_and_open(raw_guest, share)
    with hold.requests(share) as held:
        driver.send(T.READ, p9.read(2, 0, 100))
        held.wait_caught()
        reset = Background(driver.reset if end == "device_reset" else raw_guest.system_reset)
        done_while_held = happens_while(
            raw_guest.machine, lambda: reset.done, while_=held.waiting, what=f"the {end}"
        )
    reset.wait(timeout_s=raw_guest.machine.timeout_scale.seconds(30))
    expect_blocked_by(raw_guest.machine)
    driver = raw_guest.driver(share)
    driver.version()
    driver.attach(1)
    assert not done_while_held, "the reset was done with a request in flight"


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_a_name_that_leads_out_of_the_export(raw_guest: RawGuest, share: Share) -> None:
    """Names with a slash, or ``..``, neither find nor create a file outside the export."""
    outside = share.path.parent / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    driver = plug_and_open(raw_guest, share)
    for name in ("../outside/secret", "/", "../outside", ""):
        with pytest.raises(NineError, match="ENOENT"):
            driver.walk(1, 9, name)
    with pytest.raises(NineError, match="ENOENT"):
        driver.call(T.MKDIR, p9.mkdir(1, "../outside/made"))
    with pytest.raises(NineError, match="EEXIST"):
        driver.call(T.MKDIR, p9.mkdir(1, ".."))
    driver.walk(1, 9, "..")  # The parent of the export's root is that root itself.
    with pytest.raises(NineError, match="ENOENT"):
        driver.walk(9, 10, "outside")
    assert [path.name for path in outside.iterdir()] == ["secret"]


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_a_link_of_the_host_that_leads_out_of_the_export(raw_guest: RawGuest, share: Share) -> None:
    """QEMU does not follow a symbolic link on the host that leads out of the export: only the guest does."""
    outside = share.path.parent / "outside"
    outside.mkdir()
    secret = outside / "secret"
    secret.write_text("secret")
    (share.path / "folder").symlink_to(outside)
    (share.path / "linked").symlink_to(secret)
    before = secret.stat()
    driver = plug_and_open(raw_guest, share)
    walked = driver.call(T.WALK, p9.walk(1, 9, "folder", "secret"))
    assert int.from_bytes(walked[:2], "little") == 1, "a walk followed the link"
    driver.walk(1, 3, "folder")
    driver.walk(1, 4, "linked")
    requests = {
        "mkdir": (T.MKDIR, p9.mkdir(3, "made")),
        "symlink": (T.SYMLINK, p9.symlink(3, "made", "x")),
        "mknod": (T.MKNOD, p9.mknod(3, "made")),
        "create": (T.LCREATE, p9.create(3, "made")),
        "link": (T.LINK, p9.link(3, 2, "made")),
        "rename": (T.RENAMEAT, p9.fid_and_name(1, "file") + p9.fid_and_name(3, "made")),
        "unlink": (T.UNLINKAT, p9.unlinkat(3, "secret")),
        "open": (T.LOPEN, p9.open_(3)),
        "open a file": (T.LOPEN, p9.open_(4)),
        "chmod": (T.SETATTR, p9.setattr_(4, 0o777)),
        "truncate": (T.SETATTR, p9.truncate(4, 1)),
        "enlarge": (T.SETATTR, p9.truncate(4, 1000)),
    }
    for what, (kind, body) in requests.items():
        seen = outcome(driver, kind, body)
        assert seen in ("ENOTDIR", "ELOOP", "EINVAL"), f"{what}: {seen}"
    # These are done to the link itself, or refused, as the host's kernel and file system decide.
    for kind, body in (
        (T.SETATTR, p9.set_fields(4, p9.UID | p9.GID, uid=3, gid=3)),
        (T.SETATTR, p9.set_fields(4, p9.ATIME | p9.MTIME, time_s=1)),
        (T.LINK, p9.link(1, 4, "another")),
        (T.RENAME, p9.rename(4, 1, "moved")),
        (T.REMOVE, p9.fid(4)),
    ):
        outcome(driver, kind, body)
    after = secret.stat()
    assert [path.name for path in outside.iterdir()] == ["secret"]
    assert secret.read_text() == "secret"
    assert (after.st_mode, after.st_nlink, after.st_uid, after.st_mtime_ns) == (
        before.st_mode,
        before.st_nlink,
        before.st_uid,
        before.st_mtime_ns,
    )


#: Attributes of a file outside: no request may read, list, set or remove them.
_SECRET_ATTRIBUTE = "user.secret"


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
@pytest.mark.parametrize("model", by_default("none", of=["none", "mapped-xattr"]))
def test_attributes_behind_a_link_that_leads_out_of_the_export(
    testbed: Testbed, share: Share, model: str
) -> None:
    """The extended attributes of the target of a symbolic link on the host stay out of reach."""
    (modelled,) = testbed.declare(replace(share, security_model=model))
    secret = share.path.parent / "secret"
    secret.touch()
    try:
        os.setxattr(secret, _SECRET_ATTRIBUTE, b"secret")
    except OSError as exc:
        raise Unsupported(f"the file system of {secret} has no attributes: {exc.strerror}") from exc
    (share.path / "linked").symlink_to(secret)
    driver = plug_and_open(RawGuest(testbed), modelled)
    driver.walk(1, 3, "linked")
    for name in ("", _SECRET_ATTRIBUTE):
        if outcome(driver, T.XATTRWALK, p9.xattrwalk(3, 4, name)) == ANSWERED:
            assert not driver.read(4, 0, 100), name or "the list of attributes"
            driver.clunk(4)
    for name, value in ((_SECRET_ATTRIBUTE, b""), (_SECRET_ATTRIBUTE, b"changed"), ("user.new", b"new")):
        driver.walk(1, 5, "linked")
        if outcome(driver, T.XATTRCREATE, p9.xattrcreate(5, name, len(value))) == ANSWERED and value:
            driver.write(5, 0, value)
        outcome(driver, T.CLUNK, p9.fid(5))
    assert {name: os.getxattr(secret, name) for name in os.listxattr(secret)} == {
        _SECRET_ATTRIBUTE: b"secret"
    }


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_a_folder_that_becomes_a_link_out_of_the_export(raw_guest: RawGuest, share: Share) -> None:
    """A folder is replaced by a symbolic link on the host: the fids that were below it do not follow the
    link."""
    outside = share.path.parent / "outside"
    for folder in (share.path / "folder", outside):
        (folder / "sub").mkdir(parents=True)
        (folder / "sub" / "file").write_text("content")
    driver = plug_and_open(raw_guest, share)
    driver.walk(1, 3, "folder", "sub")
    driver.walk(1, 4, "folder", "sub", "file")
    (share.path / "folder").rename(share.path / "was")
    (share.path / "folder").symlink_to(outside)
    requests = {
        "mkdir": (T.MKDIR, p9.mkdir(3, "made")),
        "create": (T.LCREATE, p9.create(3, "made")),
        "unlink": (T.UNLINKAT, p9.unlinkat(3, "file")),
        "rename": (T.RENAMEAT, p9.renameat(3, "file", "other")),
        "open": (T.LOPEN, p9.open_(4)),
        "getattr": (T.GETATTR, p9.getattr_(4)),
        "chmod": (T.SETATTR, p9.setattr_(4, 0o777)),
    }
    for kind, body in requests.values():
        with pytest.raises(NineError, match=r"ENOTDIR|ELOOP"):
            driver.call(kind, body)
    assert [path.name for path in (outside / "sub").iterdir()] == ["file"]


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_special_files_of_the_host_are_not_opened(raw_guest: RawGuest, share: Share) -> None:
    """QEMU does not open the host's FIFOs and sockets: the guest opens its own ones in its own kernel."""
    os.mkfifo(share.path / "fifo")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(share.path / "socket"))
    driver = plug_and_open(raw_guest, share)
    for fid, name in enumerate(("fifo", "socket"), start=3):
        driver.walk(1, fid, name)
        driver.call(T.GETATTR, p9.getattr_(fid))
        with pytest.raises(NineError, match="ENXIO"):
            driver.open(fid)
        driver.call(T.GETATTR, p9.getattr_(fid))


@dataclass(frozen=True)
class Malformed:
    """A malformed message and its permitted outcomes.

    :ivar allowed: names of errnos, :data:`BROKEN`, or :data:`ANSWERED`.
    :ivar at_most: the number of bytes of a file that the answer may have.
    """

    send: Callable[[RawDriver], Request]
    allowed: tuple[str, ...]
    at_most: int | None = None


#: More than fits into an answer of MSIZE bytes, and less than the reply buffer has room for.
_BEYOND_MSIZE = MSIZE + 1000
MALFORMED = {
    "size_zero": Malformed(lambda d: d.send(T.CLUNK, p9.fid(99), size=0), ("ENOENT", BROKEN)),
    "size_beyond_the_buffer": Malformed(
        lambda d: d.send(T.CLUNK, p9.fid(99), size=1 << 31), ("ENOENT", BROKEN)
    ),
    "no_body": Malformed(lambda d: d.send(T.READ), ("ENOBUFS", BROKEN)),  # ENOBUFS before 2.10.
    "unknown_type": Malformed(lambda d: d.send(250, b"junk"), ("ENOTSUP",)),
    "unknown_fid": Malformed(lambda d: d.send(T.READ, p9.read(4711, 0, 10)), ("EINVAL", "ENOENT")),
    "short_read": Malformed(lambda d: d.send(T.READ, p9.read(2, 0, 3)), (ANSWERED,), 3),
    "read_beyond_msize": Malformed(
        lambda d: d.send(T.READ, p9.read(2, 0, _BEYOND_MSIZE)),
        (ANSWERED, BROKEN),
        MSIZE - p9.READ_HEADER,
    ),
    "huge_read": Malformed(
        lambda d: d.send(T.READ, p9.read(2, 0, 0xFFFFFFFF)),
        (ANSWERED, BROKEN),
        MSIZE - p9.READ_HEADER,
    ),
    "walk_of_dots": Malformed(
        lambda d: d.send(T.WALK, p9.walk(1, 8, "..", "..", "..", "etc")), (ANSWERED, "ENOENT")
    ),
    "name_with_slash": Malformed(lambda d: d.send(T.WALK, p9.walk(1, 8, "../../etc")), ("ENOENT",)),
    "attach_in_use": Malformed(lambda d: d.send(T.ATTACH, p9.attach(1)), ("EINVAL",)),
    "flush_of_nothing": Malformed(lambda d: d.send(T.FLUSH, p9.flush(0x7FFF)), (ANSWERED,)),
}


def send_malformed(machine: Machine, driver: RawDriver, malformed: Malformed) -> str:
    """Send the message; its outcome.

    :raises Violation: when the answer is larger than the session's msize, or has more than was asked for.
    """
    answered, virtio_errors = driver.answered(), count_virtio_errors(machine)
    request = malformed.send(driver)
    if wait_answered_or_broken(machine, driver, answered, virtio_errors) == BROKEN:
        return BROKEN
    seen = wait_outcome(driver, request)
    if seen == ANSWERED and malformed.at_most is not None:
        body = driver.wait_answer(request)
        count = int.from_bytes(body[:4], "little")
        if count != len(body) - 4 or count > malformed.at_most:
            raise Violation(f"Rread says {count} and has {len(body) - 4} bytes, asked: {malformed.at_most}")
    return seen


@pytest.mark.always
@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
@pytest.mark.parametrize("what", MALFORMED)
def test_a_message_that_no_kernel_sends(raw_guest: RawGuest, share: Share, what: str) -> None:
    """QEMU answers a malformed message or marks the device broken; a reset ends the session, and the device
    works again and can be ejected."""
    driver = plug_and_open(raw_guest, share)
    (share.path / "file").write_bytes(b"x" * 2 * _BEYOND_MSIZE)
    seen = send_malformed(raw_guest.machine, driver, MALFORMED[what])
    assert seen in MALFORMED[what].allowed
    raw_guest.system_reset()
    expect_blocked_by(raw_guest.machine)
    driver = raw_guest.driver(share)
    driver.version()
    driver.attach(1)
    driver.clunk(1)
    raw_guest.eject(share)
