"""Refusal: QEMU refuses hotplug where it is not possible, with the right error, and changes nothing.

On buses that forbid it, for ids that are taken or unknown, and during a migration. Devices that are plugged
keep working.
"""

from __future__ import annotations

import errno
import re
from dataclasses import replace

import pytest

from harness.actions.bad_plugs import BadPlug
from harness.actions.hotplug import Hotplug, plug_refusals
from harness.actions.migration import Migration, expect_blocked_by, under_way
from harness.actions.snapshot import Snapshot
from harness.actions.stream import PAUSED, stalled
from harness.deadline import check_during
from harness.errors import CommandFailed, QemuError, Violation
from harness.guest.guest import Guest
from harness.guest.mount import expect_no_mount
from harness.holds.hold import Hold
from harness.leaks.hunt import LeakHunt
from harness.ninep.client import NineError, RawGuest
from harness.plugin.thorough import by_default
from harness.qemu.binary import refusal_to_start, require_options, require_property
from harness.qemu.blockers import lists_blocked_reasons
from harness.qemu.deletion import Deletion
from harness.qemu.machine import Machine
from harness.qemu.machine_types.machine_type import FixedPlace
from harness.qemu.machine_types.root_ports import FIXED_PLACE
from harness.qemu.spec import Share, Value
from harness.testbed import Testbed


@pytest.fixture
def fixed(testbed: Testbed) -> FixedPlace:
    """A slot of this machine type whose bus forbids hotplug."""
    return testbed.cell.machine_type.require_fixed_place()


@pytest.fixture
def shares(testbed: Testbed, fixed: FixedPlace) -> tuple[Share, ...]:
    """Two shares for that slot, and two that can be hotplugged."""
    there = {"bus": fixed.bus, "addr": fixed.addr}
    first, second, *others = testbed.shares
    return testbed.declare(
        replace(first, device_options=there), replace(second, device_options=there), *others
    )


@pytest.fixture
def cold_plugged(testbed: Testbed, fixed: FixedPlace, shares: tuple[Share, ...]) -> Guest:
    """A guest that was started with the first share in the slot that forbids hotplug."""
    fixed.require(testbed.cell.qemu)
    spec = testbed.spec(plugged=frozenset([shares[0].id]))
    return testbed.boot(replace(spec, extra=fixed.arguments))


def refusal(machine: Machine, command: str, **arguments: str | bool | int) -> str:
    """The text of QEMU's error for a command that it has to refuse."""
    with pytest.raises(QemuError) as refused:
        machine.qmp.execute(command, arguments)
    return refused.value.desc


@pytest.mark.always
@pytest.mark.no_guest_kernel
@pytest.mark.thorough("q35")
def test_a_bus_that_forbids_hotplug(testbed: Testbed, fixed: FixedPlace, shares: tuple[Share, ...]) -> None:
    """On a bus that forbids hotplug, device_add and device_del are refused, and the device there stays."""
    share, other = shares[:2]
    spec = testbed.spec(plugged=frozenset([share.id])).without_kernel()
    machine = testbed.launch(replace(spec, extra=("-S", *fixed.arguments)))
    with Deletion(machine, share.id) as deletion:
        assert refusal(machine, "device_del", id=share.id) in fixed.refusals
        with pytest.raises(QemuError) as refused:
            machine.device_add(other)
        assert refused.value.desc in fixed.refusals
        assert deletion.present()


@pytest.mark.thorough
def test_a_share_on_a_bus_that_forbids_hotplug(
    cold_plugged: Guest, fixed: FixedPlace, shares: tuple[Share, ...]
) -> None:
    """The refusals leave a share usable that is mounted there, and one that was unmounted."""
    share, other = shares[:2]
    machine = cold_plugged.machine
    mount = cold_plugged.mount(share)
    assert refusal(machine, "device_del", id=share.id) in fixed.refusals
    with pytest.raises(QemuError) as refused:
        machine.device_add(other)
    assert refused.value.desc in fixed.refusals
    mount.expect_intact("after", mount.write("after", size_kib=64))
    mount.unmount()
    assert refusal(machine, "device_del", id=share.id) in fixed.refusals
    cold_plugged.mount(share).unmount()


def _refused_by_its_bus(testbed: Testbed, share: Share) -> str:
    """QEMU's text when the bus of a share's place has no hotplug (QEMU: ``system/qdev-monitor.c``)."""
    return f"Bus '{testbed.cell.machine_type.place(share.slot)['bus']}' does not support hotplugging"


@pytest.mark.unplug("refused")
def test_a_machine_without_hotplug(testbed: Testbed) -> None:
    """device_add and device_del are refused. The share of the command line stays usable, mounted and
    unmounted, and blocks migration as long as it is mounted."""
    share, other = testbed.shares[:2]
    guest = testbed.boot(testbed.spec(plugged=frozenset([share.id])))
    hotplug = Hotplug(guest)
    migration = Migration(guest, testbed)
    mount = guest.mount(share)
    mount.expect_intact("before", mount.write("before", size_kib=64))
    assert refusal(guest.machine, "device_del", id=share.id) == _refused_by_its_bus(testbed, share)
    with pytest.raises(QemuError) as refused:
        hotplug.plug(other)
    assert refused.value.desc == _refused_by_its_bus(testbed, other)
    for_pci = {"driver": "virtio-9p-pci", "fsdev": other.fsdev, "mount_tag": "pci"}
    assert refusal(guest.machine, "device_add", **for_pci) == "No 'PCI' bus found for device 'virtio-9p-pci'"
    mount.expect_intact("after", mount.write("after", size_kib=64))
    migration.expect_blocked_by(share)
    mount.unmount()
    migration.expect_not_blocked()
    assert refusal(guest.machine, "device_del", id=share.id) == _refused_by_its_bus(testbed, share)
    guest.mount(share).unmount()


@pytest.mark.no_guest_kernel
@pytest.mark.unplug("refused")
def test_refused_plugs_leave_nothing(testbed: Testbed) -> None:
    """device_add, refused again and again, leaves nothing behind."""

    def cycle(machine: Machine) -> None:
        with pytest.raises(QemuError, match="does not support hotplugging"):
            machine.device_add(testbed.shares[0])

    LeakHunt(testbed).repeat_without_guest(cycle)


@pytest.mark.any_plug
def test_names_that_are_taken_or_unknown(guest: Guest, hotplug: Hotplug, testbed: Testbed) -> None:
    """device_add of an id that is taken and device_del of an unknown id are refused."""
    share, other = testbed.shares[2:]
    hotplug.plug(share)
    mount = guest.mount(share)
    taken = replace(other, id=share.id, fsdev_of=other.id)
    with pytest.raises(QemuError) as refused:
        hotplug.plug(taken)
    assert refused.value.desc in plug_refusals("busy_id", taken)
    assert refusal(guest.machine, "device_del", id="unknown") == "Device 'unknown' not found"
    mount.expect_usable()
    mount.unmount()
    hotplug.unplug(share)


#: Types that device_add cannot make: unknown, of no device, abstract, or part of another device.
NO_DRIVERS = (
    "nothing",
    "memory-backend-ram",
    "device",
    "pci-device",
    "virtio-device",
    "virtio-pci",
    "i440FX",
)
#: QEMU: ``softmmu/qdev-monitor.c`` (later ``system/``), ``qdev_get_device_class``.
_NO_DRIVER = r"'.*' is not a valid device model name|Parameter 'driver' expects .*device type"


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_drivers_that_are_no_devices(raw_guest: RawGuest, share: Share) -> None:
    """device_add of what is no device that can be plugged is refused, and says so."""
    driver = raw_guest.plug(share)
    for name in NO_DRIVERS:
        with pytest.raises(QemuError) as refused:
            raw_guest.machine.qmp.execute("device_add", {"driver": name, "id": "other"})
        assert re.fullmatch(_NO_DRIVER, refused.value.desc), refused.value.desc
    driver.version()


#: Calls of a realize (QEMU: ``hw/9pfs/9p-local.c``, ``local_init``; ``hw/9pfs/9p.c``,
#: ``v9fs_device_realize_common``), and QEMU's errors when they fail.
FAILING = {
    "openat": ".*([Ff]ailed to|Could not) open '{0}'.*",
    "fstatfs": ".*failed to stat file system at '{0}'.*",
    "newfstatat": "share path {0} does not exist",
}


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
@pytest.mark.parametrize("call", by_default("fstatfs", of=FAILING))
def test_a_plug_whose_export_fails(hold: Hold, raw_guest: RawGuest, share: Share, call: str) -> None:
    """device_add is refused when the export's file system fails, names the export, and works afterwards."""
    refusal = FAILING[call].format(re.escape(str(share.path)))
    with hold.failing(share, errno.EIO, call, main_thread=True) as rule:
        BadPlug(share, refusal).expect_refused(raw_guest.machine)
        assert rule.hits, f"QEMU made no {call}"
    raw_guest.plug(share).version()


@pytest.fixture
def indexable(testbed: Testbed) -> tuple[Share, Share]:
    """Two shares, on a QEMU whose devices have the property ``acpi-index``, from which the guest names
    them."""
    require_property(testbed.cell.qemu, testbed.shares[0].driver, "acpi-index")
    return testbed.shares[0], testbed.shares[1]


def with_index(share: Share, index: int) -> Share:
    """The share's device with that ``acpi-index``."""
    return replace(share, device_options={"acpi-index": index})


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_an_acpi_index_that_is_taken(indexable: tuple[Share, Share], raw_guest: RawGuest) -> None:
    """An ``acpi-index`` belongs to one device at a time, from plug to unplug; it is at most 16383."""
    share, other = indexable
    machine = raw_guest.machine
    raw_guest.plug(with_index(share, 5))
    BadPlug(with_index(other, 5), "a PCI device with acpi-index = 5 already exist").expect_refused(machine)
    BadPlug(with_index(other, 16384), "acpi-index should be less or equal to 16383").expect_refused(machine)
    raw_guest.plug(with_index(other, 16383))
    raw_guest.eject(share)
    raw_guest.eject(other)
    raw_guest.plug(with_index(other, 5))


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
@pytest.mark.parametrize("fails", ["early", "late"])
def test_an_acpi_index_after_a_plug_that_failed(
    indexable: tuple[Share, Share], raw_guest: RawGuest, fails: str
) -> None:
    """A plug that failed leaves its ``acpi-index`` free."""
    share = indexable[0]
    wrong: dict[str, Value] = {"fsdev": "nowhere"} if fails == "early" else {"romfile": "/nowhere/rom"}
    bad = replace(share, device_options={"acpi-index": 5, **wrong})
    BadPlug(bad, ".*nowhere.*").expect_refused(raw_guest.machine)
    try:
        raw_guest.plug(with_index(share, 5))
    except QemuError as exc:
        raise AssertionError(f"a plug that failed keeps its acpi-index: {exc.desc}") from exc


@pytest.mark.any_plug
def test_hotplug_during_a_migration(
    guest: Guest, hotplug: Hotplug, migration: Migration, testbed: Testbed
) -> None:
    """device_add and device_del are refused during a migration, and work after it was cancelled."""
    share, other = testbed.shares[2:]
    hotplug.plug(share)
    with migration.under_way():
        with pytest.raises(QemuError) as refused:
            hotplug.plug(other)
        assert refused.value.desc == "device_add not allowed while migrating"
        assert refusal(guest.machine, "device_del", id=share.id) == "device_del not allowed while migrating"
    mount = guest.mount(share)
    mount.expect_usable()
    mount.unmount()
    hotplug.unplug(share)
    hotplug.plug(other)


@pytest.mark.thorough
@pytest.mark.any_plug
def test_a_refused_plug_while_the_stream_stalls(guest: Guest, testbed: Testbed) -> None:
    """A destination that stops reading stalls the migration; device_add is still refused at once."""
    machine, share = guest.machine, testbed.shares[2]
    with stalled(machine):
        plug = machine.qmp.request("device_add", share.device(machine.spec.machine_type))
        check_during(machine.timeout_scale.seconds(1.0), machine.watch_process, until=lambda: plug.done)
        answered_while_stalled = plug.done
    with pytest.raises(QemuError) as refused:
        plug.wait()
    assert refused.value.desc == "device_add not allowed while migrating"
    guest.succeed("true")
    assert answered_while_stalled, "QMP hung in device_add for as long as the migration stream stalled"


@pytest.mark.any_plug
def test_a_mount_during_a_migration(
    guest: Guest, hotplug: Hotplug, migration: Migration, testbed: Testbed
) -> None:
    """A mount cannot block a migration that has begun: it is refused with EBUSY, and works after the
    migration."""
    share = testbed.shares[2]
    hotplug.plug(share)
    with migration.under_way():
        with pytest.raises(CommandFailed, match="Device or resource busy"):
            guest.mount(share)
        expect_no_mount(guest)
        if lists_blocked_reasons(guest.machine):  # Older QEMUs cannot be asked during a migration.
            migration.expect_not_blocked()
    expect_no_mount(guest)
    migration.expect_not_blocked()
    mount = guest.mount(share)
    mount.expect_usable()
    migration.expect_blocked_by(share)
    mount.unmount()
    migration.expect_not_blocked()


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_an_attach_with_only_migratable(testbed: Testbed, shares: tuple[Share, ...]) -> None:
    """With -only-migratable nothing may block migration: Tattach fails with EACCES, and the device can be
    used for nothing and unplugged."""
    require_options(testbed.cell.qemu, "-only-migratable")
    guest, share = RawGuest(testbed, arguments=("-only-migratable",)), shares[2]
    driver = guest.plug(share)
    driver.version()
    for _ in range(2):
        with pytest.raises(NineError) as refused:
            driver.attach(1)
        assert refused.value.errno == errno.EACCES
        expect_blocked_by(guest.machine)
    guest.eject(share)


@pytest.mark.any_plug
def test_only_migratable(testbed: Testbed, shares: tuple[Share, ...]) -> None:
    """With -only-migratable nothing may block migration: the device is plugged, but its mount fails with
    EACCES."""
    require_options(testbed.cell.qemu, "-only-migratable")
    guest = testbed.boot(replace(testbed.spec(), extra=("-only-migratable",)))
    hotplug, share = Hotplug(guest), shares[2]
    hotplug.plug(share)
    with pytest.raises(CommandFailed, match="Permission denied"):
        guest.mount(share)
    expect_no_mount(guest)
    expect_blocked_by(guest.machine)
    hotplug.unplug(share)


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("q35")
def test_a_root_port_that_forbids_hotplug(testbed: Testbed) -> None:
    """With ACPI hotplug as well, a device cannot be plugged into a root port with ``hotplug=off``."""
    machine = testbed.launch(replace(testbed.spec().without_kernel(), extra=("-S", *FIXED_PLACE.arguments)))
    there: dict[str, Value] = {"bus": FIXED_PLACE.bus, "addr": FIXED_PLACE.addr}
    share = replace(testbed.shares[0], device_options=there)
    BadPlug(share, f"Bus '{FIXED_PLACE.bus}' does not support hotplugging").expect_refused(machine)
    machine.device_add(testbed.shares[0])


#: Options of ``-fsdev`` with which QEMU must not start, and its error. ``EXPORT`` is a complete export.
EXPORT = "local,id=fs0,path=/,security_model=none"
WRONG_EXPORTS = {
    "local,path=/,security_model=none": "fsdev: No id specified",
    "nowhere,id=fs0": "fsdev: fsdriver nowhere not found",
    "id=fs0,path=/": "fsdev: No fsdriver specified",
    "synth,id=fs0,multidevs=warn": "'multidevs' is invalid for fsdriver 'synth'",
    "local,id=fs0,path=/": "security_model property not set",
    "local,id=fs0,path=/,security_model=nowhere": "invalid security_model property 'nowhere'",
    "local,id=fs0,security_model=none": "path property not set",
    f"{EXPORT},multidevs=nowhere": "invalid multidevs property 'nowhere'",
    f"{EXPORT},throttling.bps-total=1,throttling.bps-read=1": "invalid throttle configuration: .*",
    f"{EXPORT},fmode=0600": "fmode is only valid for mapped security modes",
    f"{EXPORT},dmode=0700": "dmode is only valid for mapped security modes",
}


@pytest.mark.thorough
@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_an_export_with_wrong_options(raw_guest: RawGuest, share: Share) -> None:
    """QEMU does not start with a wrong ``-fsdev``, and says what is wrong; with right ones it has started."""
    raw_guest.plug(share).version()
    qemu = raw_guest.machine.spec.qemu
    require_options(qemu, "-fsdev", f"{EXPORT},multidevs=warn,throttling.bps-total=1")
    for options, error in WRONG_EXPORTS.items():
        printed = refusal_to_start(qemu, "-fsdev", options)
        if re.search(f"-fsdev {re.escape(options)}: {error}$", printed, re.MULTILINE) is None:
            raise Violation(f"-fsdev {options}: QEMU printed {printed!r}, expected {error!r}")


#: QEMU's error for migrate, savevm and snapshot-save while a migration is under way.
BUSY = "There's a migration process in progress"


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_a_refused_savevm_keeps_the_snapshot_of_that_name(raw_guest: RawGuest) -> None:
    """savevm is refused during a migration, and an earlier snapshot of the same name is still there."""
    machine = raw_guest.machine
    assert machine.qmp.hmp("savevm before") == ""
    assert "before" in machine.qmp.hmp("info snapshots")
    with under_way(machine):
        assert BUSY in machine.qmp.hmp("savevm before"), "savevm was accepted during a migration"
        assert "before" in machine.qmp.hmp("info snapshots"), "the refused savevm has deleted the snapshot"


@pytest.mark.any_plug
@pytest.mark.parametrize("phase", by_default("active", of=["active", "before_switchover"]))
def test_what_is_refused_while_the_guest_migrates(
    guest: Guest, hotplug: Hotplug, migration: Migration, snapshot: Snapshot, testbed: Testbed, phase: str
) -> None:
    """Hotplug, savevm, snapshot-save and a second migrate are refused during a migration, and work after
    it."""
    machine, (share, other) = guest.machine, testbed.shares[2:]
    if phase == "before_switchover":
        migration.require(PAUSED)
    hotplug.plug(share)
    with migration.under_way() if phase == "active" else migration.before_switchover():
        plug = other.device(machine.spec.machine_type)
        assert refusal(machine, "device_add", **plug) == "device_add not allowed while migrating"
        assert refusal(machine, "device_del", id=share.id) == "device_del not allowed while migrating"
        assert refusal(machine, "migrate", uri="exec:cat > /dev/null") == BUSY
        with pytest.raises(QemuError, match=BUSY):
            snapshot.savevm("meanwhile")
        if snapshot.has_jobs:
            with pytest.raises(QemuError, match=BUSY):
                snapshot.snapshot_save("meanwhile-job")
        assert machine.qmp.execute("query-migrate")["status"] in ("active", "pre-switchover")
    snapshot.savevm("afterwards")
    mount = guest.mount(share)
    mount.expect_usable()
    mount.unmount()
    hotplug.plug(other)
    hotplug.unplug(share)
    migration.migrate()


@pytest.mark.any_plug
def test_a_source_whose_guest_has_moved_on(
    guest: Guest, hotplug: Hotplug, migration: Migration, testbed: Testbed
) -> None:
    """A source whose guest has migrated refuses another migrate, and exits cleanly on quit."""
    share = testbed.shares[2]
    hotplug.plug(share)
    source = guest.machine
    migration.request_migrate().wait_arrived()
    with pytest.raises(QemuError, match="paused due to previous migration"):
        source.qmp.execute("migrate", {"uri": "exec:cat > /dev/null"}, watch=source.watch)
    source.quit()
    mount = guest.mount(share)
    mount.expect_usable()
    mount.unmount()
    hotplug.unplug(share)
