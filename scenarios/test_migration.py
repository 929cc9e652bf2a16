"""Migrates when unmounted: the device works on the destination, and after savevm and loadvm."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from harness.actions.hotplug import UNPLUG_TIMEOUT_S, Hotplug
from harness.actions.migration import Migration
from harness.actions.run_state import RunState
from harness.actions.snapshot import Snapshot
from harness.actions.stream import STREAMS
from harness.errors import QemuError
from harness.guest.guest import Guest
from harness.guest.mount import host_sha256
from harness.plugin.thorough import by_default
from harness.qemu.deletion import Deletion
from harness.qemu.spec import Share
from harness.testbed import Testbed


@pytest.mark.always
@pytest.mark.parametrize("plugged", by_default("hot", of=["hot", "cold"]))
def test_an_unmounted_device_arrives_alive(testbed: Testbed, share: Share, plugged: str) -> None:
    """A device that was hotplugged, or on the source's command line, can be mounted, used and unplugged
    on the destination."""
    guest = testbed.boot(testbed.spec(plugged=frozenset([share.id] if plugged == "cold" else [])))
    hotplug, migration = Hotplug(guest), Migration(guest, testbed)
    if plugged == "hot":
        hotplug.plug(share)
    mount = guest.mount(share)
    written = mount.write("before", size_kib=64)
    mount.unmount()

    migration.migrate()

    mount = guest.mount(share)
    mount.expect_intact("before", written)
    mount.expect_intact("after", mount.write("after", size_kib=64))
    migration.expect_refused(share)
    mount.unmount()
    hotplug.unplug(share)


@pytest.mark.thorough("pc", "q35")
@pytest.mark.parametrize("plugged", by_default("hot", of=["hot", "cold"]))
def test_a_device_is_plugged_again_where_it_arrived(testbed: Testbed, share: Share, plugged: str) -> None:
    """On the destination the device is unplugged, and one with the same id, slot and tag plugged, which
    migrates in turn."""
    guest = testbed.boot(testbed.spec(plugged=frozenset([share.id] if plugged == "cold" else [])))
    hotplug, migration = Hotplug(guest), Migration(guest, testbed)
    if plugged == "hot":
        hotplug.plug(share)
    for number in range(2):
        migration.migrate()
        mount = guest.mount(share)
        mount.expect_intact(f"leg{number}", mount.write(f"leg{number}", size_kib=64))
        migration.expect_blocked_by(share)
        mount.unmount()
        hotplug.unplug(share)
        hotplug.plug(share)
    hotplug.unplug(share)
    migration.migrate()


@pytest.mark.thorough("pc", "q35-pcie")
def test_a_plug_that_the_guest_has_not_seen_arrives(
    guest: Guest, hotplug: Hotplug, migration: Migration, run_state: RunState, share: Share, testbed: Testbed
) -> None:
    """A device that was plugged while the guest was stopped: the guest finds it on the destination, where it
    runs again."""
    wait_listed = hotplug.plug_waiter(share)
    run_state.stop()
    guest.machine.device_add(share)
    migrate_stopped(migration, testbed)
    run_state.cont()
    wait_listed()
    mount = guest.mount(share)
    mount.expect_usable()
    mount.unmount()
    hotplug.unplug(share)


@pytest.mark.thorough
@pytest.mark.unplug("asks")
def test_an_unplug_that_the_guest_has_not_seen_completes_where_it_arrives(
    guest: Guest, hotplug: Hotplug, migration: Migration, run_state: RunState, share: Share, testbed: Testbed
) -> None:
    """A device_del while the guest is stopped: the guest gives the device up on the destination, where it
    runs again."""
    hotplug.plug(share)
    guest.mount(share).unmount()
    run_state.stop()
    hotplug.request_unplug(share).expect_pending(while_=run_state.expect_stopped)
    migrate_stopped(migration, testbed)
    with Deletion(guest.machine, share.id) as deletion:
        run_state.cont()
        deletion.wait_reported(timeout_s=UNPLUG_TIMEOUT_S)
        deletion.confirm()
    assert share.mount_tag not in guest.mount_tags()


def migrate_stopped(migration: Migration, testbed: Testbed) -> None:
    """Migrate a guest that is stopped, which stays stopped on the destination, and end the source."""
    source = testbed.machines[-1]
    migration.request_migrate(stopped=True).wait_arrived(status="paused")
    source.quit()


@pytest.mark.thorough
@pytest.mark.any_plug
@pytest.mark.parametrize("used", [False, True])
def test_a_device_of_the_command_line_goes_before_a_migration(
    testbed: Testbed, share: Share, used: bool
) -> None:
    """A device of the command line is unplugged before the migration; one is plugged on the destination."""
    guest = testbed.boot(testbed.spec(plugged=frozenset([share.id])))
    hotplug, migration = Hotplug(guest), Migration(guest, testbed)
    if used:
        guest.mount(share).unmount()
    hotplug.unplug(share)
    migration.migrate()
    hotplug.plug(share)
    mount = guest.mount(share)
    mount.expect_usable()
    mount.unmount()
    hotplug.unplug(share)


@pytest.mark.thorough
@pytest.mark.any_plug
def test_loadvm_without_the_device(guest: Guest, hotplug: Hotplug, snapshot: Snapshot, share: Share) -> None:
    """loadvm of a snapshot with the device fails while the device is unplugged, and works once it is
    plugged."""
    hotplug.plug(share)
    guest.succeed("echo saved > /tmp/state")
    snapshot.savevm("with")
    hotplug.unplug(share)
    machine = guest.machine
    with pytest.raises(QemuError, match=r"Unknown (savevm )?section or instance '.*virtio-9p'"):
        snapshot.loadvm("with")
    machine.device_add(share)
    assert (
        machine.qmp.hmp("loadvm with", timeout_s=machine.timeout_scale.seconds(30), watch=machine.watch) == ""
    )
    guest.disconnect()
    machine.qmp.execute("cont", watch=machine.watch)
    assert guest.succeed("cat /tmp/state") == "saved\n"
    mount = guest.mount(share)
    mount.expect_usable()
    mount.unmount()
    hotplug.unplug(share)


@pytest.mark.always
@pytest.mark.thorough("q35", "q35-pcie")
def test_a_device_is_alive_after_loadvm(
    guest: Guest, hotplug: Hotplug, snapshot: Snapshot, share: Share
) -> None:
    """After loadvm the device can be mounted, and shows the files that the host has now."""
    hotplug.plug(share)
    snapshot.savevm("plugged")
    guest.succeed("touch /tmp/after-savevm")
    mount = guest.mount(share)
    written = mount.write("kept", size_kib=64)
    mount.unmount()

    snapshot.loadvm("plugged")

    assert guest.fail("test -e /tmp/after-savevm").returncode == 1
    mount = guest.mount(share)
    mount.expect_intact("kept", written)
    mount.unmount()
    hotplug.unplug(share)


@pytest.mark.thorough
@pytest.mark.any_plug
def test_a_device_is_alive_after_the_snapshot_jobs(
    guest: Guest, hotplug: Hotplug, snapshot: Snapshot, share: Share
) -> None:
    """The same with the jobs snapshot-save and snapshot-load."""
    snapshot.require_jobs()
    hotplug.plug(share)
    snapshot.snapshot_save("plugged")
    guest.succeed("touch /tmp/after-save")
    snapshot.snapshot_load("plugged")
    assert guest.fail("test -e /tmp/after-save").returncode == 1
    mount = guest.mount(share)
    mount.expect_usable()
    mount.unmount()
    hotplug.unplug(share)


#: A background snapshot write-protects the guest's memory (``userfaultfd``), which fails for memory that is
#: mapped from a template: this guest is booted.
COLD = "background-snapshot"
WAYS = [
    *by_default("file", of=[way for way in STREAMS if way != COLD]),
    pytest.param(COLD, marks=[pytest.mark.cold, pytest.mark.thorough]),
]


@pytest.mark.any_plug
@pytest.mark.parametrize("way", WAYS)
def test_an_unmounted_device_arrives_in_any_way(
    guest: Guest, hotplug: Hotplug, migration: Migration, share: Share, way: str
) -> None:
    """The device works on the destination, whatever carries the stream."""
    migration.require(STREAMS[way])
    hotplug.plug(share)
    mount = guest.mount(share)
    mount.expect_usable()
    mount.unmount()
    migration.migrate(STREAMS[way])
    mount = guest.mount(share)
    mount.expect_intact("after", mount.write("after", size_kib=64))
    mount.unmount()
    hotplug.unplug(share)


@pytest.mark.thorough
@pytest.mark.any_plug
def test_there_and_back_twenty_times(
    guest: Guest, hotplug: Hotplug, migration: Migration, share: Share
) -> None:
    """Twenty migrations in a row: the device is used after each of them, and unplugged at the end."""
    hotplug.plug(share)
    for number in range(20):
        migration.migrate()
        mount = guest.mount(share)
        mount.expect_intact(f"leg{number}", mount.write(f"leg{number}", size_kib=4))
        mount.unmount()
    hotplug.unplug(share)


@pytest.mark.thorough
@pytest.mark.any_plug
def test_files_that_changed_in_between(
    guest: Guest, hotplug: Hotplug, migration: Migration, share: Share
) -> None:
    """On the destination the guest sees the files that the host changed, made and removed before the
    migration."""
    hotplug.plug(share)
    mount = guest.mount(share)
    for name in ("changed", "gone"):
        mount.expect_intact(name, mount.write(name, size_kib=16))
    mount.unmount()
    (share.path / "changed").write_bytes(b"another content")
    (share.path / "new").write_bytes(b"new")
    (share.path / "gone").unlink()
    migration.migrate()
    mount = guest.mount(share)
    for name in ("changed", "new"):
        mount.expect_intact(name, host_sha256(share.path / name))
    assert guest.fail(f"test -e {mount.mountpoint}/gone").returncode == 1


#: The texts of a destination that has no device for the section. With native PCIe hotplug the root port may
#: fail first.
LOAD_ERRORS = ("/virtio-9p'", "Failed to load pcie-root-port")


@pytest.mark.any_plug
@pytest.mark.parametrize(
    "difference", by_default("without_the_device", of=["without_the_device", "at_another_address"])
)
def test_a_destination_that_does_not_match(
    guest: Guest, hotplug: Hotplug, migration: Migration, share: Share, difference: str
) -> None:
    """A destination without the device, or with it in another slot, exits with an error that names it;
    the guest goes on in the source, and its device works."""
    elsewhere = replace(share, slot=share.slot + 1)
    changes: dict[str, dict[str, Any]] = {
        "without_the_device": {"plugged": frozenset()},
        "at_another_address": {"shares": (elsewhere,)},
    }
    hotplug.plug(share)
    error = migration.expect_not_loaded(lambda spec: replace(spec, **changes[difference]))
    assert any(text in error for text in LOAD_ERRORS), error
    mount = guest.mount(share)
    mount.expect_usable()
    mount.unmount()
    hotplug.unplug(share)


@pytest.mark.thorough
@pytest.mark.any_plug
def test_a_destination_with_another_tag(
    guest: Guest, hotplug: Hotplug, migration: Migration, share: Share
) -> None:
    """A destination with another mount tag is accepted. The guest keeps the tag that it has read until
    its driver is bound again."""
    hotplug.plug(share)
    other = replace(share, mount_tag="other")
    migration.migrate(change=lambda spec: replace(spec, shares=(other,)))
    assert guest.mount_tags() == [share.mount_tag]
    guest.mount(share).unmount()
    guest.rebind_9p()
    assert guest.mount_tags() == ["other"]
    mount = guest.mount(other)
    mount.expect_usable()
    mount.unmount()
    hotplug.unplug(other)
