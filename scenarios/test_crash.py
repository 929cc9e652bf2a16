"""No crash in a vmstate change: QEMU does not call into a device that was unplugged or failed to be plugged.

After an unplug, stop, cont, migrate, savevm, loadvm, reset and quit all work.
"""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from harness.actions.bad_plugs import bad_plugs, unrealizable
from harness.actions.hotplug import Hotplug, plug_refusals
from harness.actions.migration import Migration, expect_blocked_by, wait_load_failed
from harness.actions.raw_migration import cancel, migrate_to_the_pause, require_pause, switch_over
from harness.actions.run_state import RunState
from harness.actions.snapshot import Snapshot
from harness.actions.stream import PAUSED, SLOW
from harness.errors import QemuError
from harness.guest.guest import Guest
from harness.guest.variant import Variant
from harness.ninep.client import RawGuest
from harness.qemu.malloc_perturb import MallocPerturb
from harness.qemu.spec import Share
from harness.testbed import Testbed


@pytest.fixture
def after_unplug(guest: Guest, hotplug: Hotplug, share: Share) -> Guest:
    """A guest in which a share was plugged, mounted, used, unmounted and unplugged."""
    hotplug.plug(share)
    mount = guest.mount(share)
    mount.expect_usable()
    mount.unmount()
    hotplug.unplug(share)
    return guest


@pytest.mark.always
@pytest.mark.any_plug
def test_stop_and_cont_after_unplug(after_unplug: Guest, run_state: RunState) -> None:
    """stop and cont would call a stale vm change state handler (the bug that the 2015 series fixed)."""
    run_state.stop()
    run_state.cont()
    after_unplug.succeed("true")


@pytest.mark.always
def test_migrate_after_unplug(after_unplug: Guest, migration: Migration) -> None:
    """The stream has no section of the unplugged device, which the destination does not have."""
    migration.expect_not_blocked()
    migration.migrate()
    after_unplug.succeed("true")


@pytest.mark.always
@pytest.mark.any_plug
def test_savevm_and_loadvm_after_unplug(after_unplug: Guest, snapshot: Snapshot) -> None:
    """Neither savevm nor loadvm calls a stale vmstate handler."""
    snapshot.savevm("unplugged")
    snapshot.loadvm("unplugged")
    after_unplug.succeed("true")


@pytest.mark.always
@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_system_reset_after_an_eject(raw_guest: RawGuest, share: Share) -> None:
    """system_reset calls no stale reset handler, also the second time; the device can be plugged again."""
    for _ in range(2):
        driver = raw_guest.plug(share)
        driver.version()
        driver.attach(1)
        raw_guest.eject(share)
        raw_guest.system_reset()
    raw_guest.plug(share).version()


@pytest.mark.thorough
@pytest.mark.any_plug
def test_system_reset_after_unplug(after_unplug: Guest, run_state: RunState) -> None:
    """system_reset calls no stale reset handler, and the guest boots again."""
    run_state.system_reset()
    after_unplug.succeed("true")


@pytest.mark.thorough
@pytest.mark.any_plug
def test_screendump_after_unplug(testbed: Testbed, share: Share) -> None:
    """screendump of a machine with a display works after an unplug."""
    testbed.cell.machine_type.require_pci()
    guest = testbed.boot(replace(testbed.spec(), extra=("-device", "VGA,addr=0x1d")))
    hotplug, run_state = Hotplug(guest), RunState(guest)
    run_state.require_screendump()
    hotplug.plug(share)
    guest.mount(share).unmount()
    hotplug.unplug(share)
    picture = run_state.screendump()
    header = re.match(rb"P6\s(\d+) (\d+)\s255\s", picture)
    assert header, picture[:20]
    width, height = map(int, header.groups())
    assert width * height > 0
    assert len(picture) == header.end() + 3 * width * height


@pytest.mark.always
@pytest.mark.any_plug
def test_quit_after_unplug(after_unplug: Guest) -> None:
    """QEMU exits cleanly on quit after an unplug."""
    after_unplug.machine.quit()


def change_every_state(guest: Guest, testbed: Testbed, *, boots: bool = True) -> None:
    """stop, cont, savevm, loadvm, migrate; then reset, stop, cont and quit on the destination.

    :param boots: wait until the guest has booted after the reset. The destination has never had a device that
        the source has removed, so its guest's boot shows nothing of it.
    """
    run_state, snapshot = RunState(guest), Snapshot(guest)
    run_state.stop()
    run_state.cont()
    snapshot.savevm("everything")
    snapshot.loadvm("everything")
    Migration(guest, testbed).migrate()
    reset = run_state.begin_system_reset()
    if boots:
        run_state.wait_booted_again(reset)
    run_state.stop()
    run_state.cont()
    if boots:
        guest.succeed("true")
    guest.machine.quit()


@pytest.mark.any_plug
def test_everything_after_an_unplug_with_malloc_perturb(testbed: Testbed, share: Share) -> None:
    """Freed memory is overwritten, so a list that still has the device has an invalid pointer."""
    testbed.attach(MallocPerturb())
    guest = testbed.boot()
    hotplug = Hotplug(guest)
    hotplug.plug(share)
    mount = guest.mount(share)
    mount.expect_usable()
    mount.unmount()
    hotplug.unplug(share)
    change_every_state(guest, testbed, boots=False)


@pytest.mark.any_plug
def test_everything_after_a_plug_that_failed(
    guest: Guest, hotplug: Hotplug, shares: tuple[Share, ...], testbed: Testbed
) -> None:
    """device_add fails with each error of realize in turn; then every state change works."""
    share, other = shares[:2]
    failing = unrealizable(share) | {"path": replace(share, path=other.path, fsdev_of=other.id)}
    away = other.path.rename(other.path.with_suffix(".away"))
    for what, wrong in failing.items():
        with pytest.raises(QemuError) as refused:
            hotplug.plug(wrong)
        assert refused.value.desc in plug_refusals(what, wrong)
    away.rename(other.path)
    change_every_state(guest, testbed, boots=False)


@pytest.mark.any_plug
def test_everything_after_a_plug_that_failed_late(
    guest: Guest, hotplug: Hotplug, shares: tuple[Share, ...], testbed: Testbed
) -> None:
    """device_add fails late, in the PCI bus or the virtio bus: id, slot and mount tag are free again, and
    every state change works."""
    share, other = shares[:2]
    hotplug.plug(other)
    other_mount = guest.mount(other)
    machine = guest.machine
    refused = bad_plugs(testbed.cell.qemu, testbed.cell.machine_type, testbed.folder, share, other)
    for bad in refused.values():
        bad.expect_refused(machine)
    expect_blocked_by(machine, other)
    assert guest.mount_tags() == [other.mount_tag]
    other_mount.expect_usable()
    other_mount.unmount()
    hotplug.plug(share)
    mount = guest.mount(share)
    mount.expect_usable()
    mount.unmount()
    hotplug.unplug(share)
    hotplug.unplug(other)
    change_every_state(guest, testbed, boots=False)


@pytest.mark.thorough
@pytest.mark.unplug("asks")
def test_everything_after_an_unplug_that_had_to_wait(
    guest: Guest, hotplug: Hotplug, share: Share, testbed: Testbed
) -> None:
    """Two device_del while the share is mounted; the unplug completes after umount, and every state change
    works."""
    hotplug.plug(share)
    mount = guest.mount(share)
    unplug = hotplug.request_unplug(share)
    unplug.wait_seen_by_guest()
    again = hotplug.request_unplug(share)
    unplug.expect_withheld(while_=mount.expect_usable)
    mount.unmount()
    unplug.wait_completed()
    again.expect_granted_or_under_way()
    change_every_state(guest, testbed)


@pytest.mark.thorough
def test_everything_after_a_replug(
    guest: Guest, hotplug: Hotplug, share: Share, testbed: Testbed, variant: Variant
) -> None:
    """A device with the same id and mount tag is plugged three times; the third stays plugged during
    every state change."""
    for _ in range(2):
        hotplug.plug(share)
        guest.mount(share, options=variant.mount_options).unmount()
        hotplug.unplug(share)
    hotplug.plug(share)
    change_every_state(guest, testbed)


#: How far a migration gets before its source quits.
PHASES = {"active": SLOW, "before_switchover": PAUSED}


@pytest.mark.thorough
@pytest.mark.any_plug
@pytest.mark.parametrize("phase", PHASES)
def test_quit_while_the_guest_migrates(
    guest: Guest, hotplug: Hotplug, migration: Migration, share: Share, phase: str
) -> None:
    """QEMU exits cleanly on quit during a migration, and the destination exits because its stream ends."""
    migration.require(PHASES[phase])
    hotplug.plug(share)
    outgoing = migration.request_migrate(PHASES[phase])
    outgoing.destination.expect_exit("its source quits")
    guest.machine.quit()
    wait_load_failed(outgoing.destination)


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
@pytest.mark.parametrize("ends", ["completes", "is cancelled"])
def test_a_reset_before_the_switchover(raw_guest: RawGuest, share: Share, ends: str) -> None:
    """system_reset of a source that waits for migrate-continue. Whether the migration then completes or is
    cancelled, the device works where the guest goes on."""
    require_pause(raw_guest)
    raw_guest.plug(share).version()
    destination = migrate_to_the_pause(raw_guest)
    raw_guest.system_reset()
    if ends == "completes":
        raw_guest = switch_over(raw_guest, destination)
    else:
        cancel(raw_guest, destination)
    driver = raw_guest.driver(share)
    driver.version()
    driver.attach(1)
    expect_blocked_by(raw_guest.machine, share)
    driver.clunk_all()
    raw_guest.eject(share)
