"""Other virtio devices are plugged and unplugged as a share is: a disk, a network card, an entropy device,
and a file system that a daemon serves (virtiofs).

Each is plugged, used, migrated, and unplugged with a request in flight, and leaves nothing behind in QEMU.
The guest's drivers of the disk and of virtiofs wait for their requests; those of the other two drop them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from harness.actions.hotplug import Hotplug, unplug_without_guest
from harness.actions.migration import Migration
from harness.actions.removal import surprise_removal
from harness.actions.run_state import RunState
from harness.devices import BlockDevice, Neighbour, NetDevice, RngDevice, VirtiofsDevice
from harness.errors import QemuError
from harness.guest.guest import Guest
from harness.guest.job import Job
from harness.holds.hold import Hold, require_counted_requests
from harness.leaks.hunt import WITH_GUEST, LeakHunt, Plan
from harness.qemu.machine import Machine
from harness.qemu.malloc_perturb import MallocPerturb
from harness.testbed import Testbed

pytestmark = pytest.mark.thorough


def _disk(request: pytest.FixtureRequest, testbed: Testbed) -> BlockDevice:
    hold: Hold | None = request.getfixturevalue("hold") if "hold" in request.fixturenames else None
    return BlockDevice.create(testbed, hold=hold)


def _virtiofs(request: pytest.FixtureRequest, testbed: Testbed) -> VirtiofsDevice:
    return VirtiofsDevice.create(testbed, request.getfixturevalue("virtiofsd"))


MADE: dict[str, Callable[[pytest.FixtureRequest, Testbed], Neighbour]] = {
    "blk": _disk,
    "net": lambda _, testbed: NetDevice.create(testbed),
    "rng": lambda _, testbed: RngDevice.create(testbed),
    "virtiofs": _virtiofs,
}
#: A leak that happens once in six cycles is found. (With a guest, a hunt takes 20 s of processor time.)
PLAN = Plan(warm_up=6, part=6, thorough=6)
GUEST_PLAN = replace(WITH_GUEST, thorough=6)


@pytest.fixture(params=list(MADE))
def device(request: pytest.FixtureRequest, testbed: Testbed) -> Neighbour:
    """A device whose backend the machine has, and that is not plugged in."""
    made = MADE[request.param](request, testbed)
    testbed.declare_devices(made)
    return made


def expect_works_again(hotplug: Hotplug, device: Neighbour) -> None:
    """Assert that the device can be plugged, used and unplugged again."""
    hotplug.plug(device)
    device.use(hotplug.guest)
    hotplug.unplug(device)


@pytest.fixture
def malloc_perturb(testbed: Testbed) -> None:
    """QEMU's freed memory is overwritten, so that a use after free crashes QEMU."""
    testbed.attach(MallocPerturb())


@pytest.mark.any_plug
@pytest.mark.parametrize("device", ["blk", "virtiofs"], indirect=True)
@pytest.mark.unplug("asks")
@pytest.mark.usefixtures("hold")
def test_unplug_waits_for_a_request_in_flight(
    guest: Guest, hotplug: Hotplug, device: BlockDevice | VirtiofsDevice
) -> None:
    """The driver waits for the request (kernel: ``del_gendisk``, ``virtio_fs_drain_all_queues_locked``), and
    the guest's process succeeds."""
    guest.tolerate("task kworker.* blocked for more than|Call [Tt]race:", why="the driver waits in D state")
    hotplug.plug(device)
    device.use(guest)
    with device.request_in_flight(guest) as request:
        unplug = hotplug.request_unplug(device)
        unplug.wait_seen_by_guest()
        unplug.expect_withheld(while_=request.waiting)
    unplug.wait_completed()
    request.writer.wait_succeeded()
    if isinstance(device, VirtiofsDevice):
        device.unmount(guest)
    expect_works_again(hotplug, device)


@pytest.mark.any_plug
@pytest.mark.unplug("asks")
@pytest.mark.parametrize("device", ["net", "rng"], indirect=True)
@pytest.mark.usefixtures("malloc_perturb", "device")
def test_unplug_drops_a_request_in_flight(guest: Guest, hotplug: Hotplug, device: Neighbour) -> None:
    """The driver does not wait. The request is answered when the device is gone, and QEMU survives it."""
    require_counted_requests(guest.machine)
    hotplug.plug(device)
    device.use(guest)
    with device.request_in_flight(guest) as pending:
        hotplug.unplug(device)
        pending.waiting()
    expect_works_again(hotplug, device)


@pytest.mark.any_plug
@pytest.mark.parametrize("device", ["blk", "virtiofs"], indirect=True)
@pytest.mark.usefixtures("hold", "malloc_perturb")
def test_a_forced_eject_waits_for_a_request_in_flight(
    guest: Guest, hotplug: Hotplug, device: Neighbour
) -> None:
    """QEMU drains the disk (``virtio_blk_device_unrealize``): it is deleted after the flush was answered.
    virtiofs is deleted when its daemon has answered QEMU that it ended (``vhost_user_get_vring_base``).

    The guest ejects it, or ``device_del`` takes it where that asks nobody.
    """
    hotplug.plug(device)
    device.use(guest)
    with device.request_in_flight(guest) as request:
        removal = surprise_removal(guest, device)
        deleted_while_held = removal.observe(while_=request.waiting)
    removal.wait_completed()
    guest.succeed("true")
    assert not deleted_while_held, f"{device.id} was deleted with a request in flight"


@pytest.mark.any_plug
@pytest.mark.parametrize("device", ["net", "rng"], indirect=True)
@pytest.mark.usefixtures("malloc_perturb", "device")
def test_a_forced_eject_drops_a_request_in_flight(guest: Guest, hotplug: Hotplug, device: Neighbour) -> None:
    """QEMU drops the request with the device. A later answer does not crash QEMU.

    The guest ejects the device, or ``device_del`` takes it where that asks nobody.
    """
    require_counted_requests(guest.machine)
    hotplug.plug(device)
    device.use(guest)
    with device.request_in_flight(guest) as pending:
        surprise_removal(guest, device).wait_completed()
        pending.waiting()
    guest.succeed("true")


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("q35-pcie")
def test_plug_and_unplug_without_a_guest(leak_hunt: LeakHunt, device: Neighbour) -> None:
    """realize and unrealize alone, repeated, leave nothing behind."""

    def cycle(machine: Machine) -> None:
        machine.device_add(device)
        unplug_without_guest(machine, device)

    leak_hunt.repeat_without_guest(cycle, PLAN)


@pytest.mark.pin_machine("pc")
def test_arrives_alive_and_leaves_nothing(
    guest: Guest, hotplug: Hotplug, migration: Migration, run_state: RunState, device: Neighbour
) -> None:
    """The device works on the destination and is unplugged there. Afterwards stop, cont and migrate work, and
    the device can be plugged again."""
    if isinstance(device, VirtiofsDevice):
        device.require_migratable(migration.testbed.cell.capabilities)
    hotplug.plug(device)
    device.use(guest)
    migration.migrate()
    device.use(guest)
    hotplug.unplug(device)
    run_state.stop()
    run_state.cont()
    migration.migrate()
    expect_works_again(hotplug, device)


@pytest.fixture
def file_system(testbed: Testbed, virtiofsd: tuple[str, ...]) -> VirtiofsDevice:
    """A file system of virtiofsd that the machine can plug."""
    made = VirtiofsDevice.create(testbed, virtiofsd)
    testbed.declare_devices(made)
    return made


@pytest.fixture
def mounted(file_system: VirtiofsDevice, guest: Guest, hotplug: Hotplug) -> VirtiofsDevice:
    """A file system of virtiofsd that is plugged, mounted and used."""
    hotplug.plug(file_system)
    file_system.mount(guest)
    file_system.exchange(guest)
    return file_system


@pytest.mark.any_plug
@pytest.mark.unplug("asks")
def test_an_unplug_ends_a_mounted_file_system(
    mounted: VirtiofsDevice, guest: Guest, hotplug: Hotplug, run_state: RunState
) -> None:
    """The guest's driver does not wait for users of the mount (kernel: ``virtio_fs_remove``). They get an
    error, and the file system can be unmounted and plugged again."""
    folder = mounted.mount_point
    reads = f"exec 3< {folder}; until [ -e /tmp/go ]; do sleep 0.1; done; ls {folder}"
    user = Job(guest, reads, "a user of the mount")
    hotplug.unplug(mounted)
    guest.succeed("touch /tmp/go")
    assert user.wait().returncode != 0, "a file system without a device was listed"
    mounted.unmount(guest)
    run_state.stop()
    run_state.cont()
    expect_works_again(hotplug, mounted)


@pytest.mark.pin_machine("pc")
def test_migration_is_refused_while_the_file_system_is_plugged(
    file_system: VirtiofsDevice, guest: Guest, hotplug: Hotplug, migration: Migration
) -> None:
    """QEMU before 8.2 cannot take the daemon's state along: ``migrate`` is refused until the unplug."""
    file_system.require_unmigratable(migration.testbed.cell.capabilities)
    hotplug.plug(file_system)
    with pytest.raises(QemuError, match=r"State blocked by non-migratable device .*/vhost-user-fs"):
        guest.machine.qmp.execute("migrate", {"uri": "exec:cat > /dev/null"}, watch=guest.machine.watch)
    file_system.use(guest)
    hotplug.unplug(file_system)
    migration.migrate()
    expect_works_again(hotplug, file_system)


@pytest.mark.pin_machine("pc")
def test_a_mounted_file_system_arrives(
    mounted: VirtiofsDevice, guest: Guest, hotplug: Hotplug, migration: Migration
) -> None:
    """A file that is open during the migration is written on both sides of it, through two daemons."""
    mounted.require_migratable(migration.testbed.cell.capabilities)
    kept = mounted.path / "kept"
    writes = "echo before >&3; until [ -e /tmp/go ]; do sleep 0.1; done; echo after >&3"
    writer = Job(guest, f"exec 3>> {mounted.mount_point}/kept; {writes}", "a user of the mount")
    guest.machine.wait_until(
        lambda: kept.exists() and kept.read_text() == "before\n", what="the first line", timeout_s=10
    )
    migration.migrate()
    guest.succeed("touch /tmp/go")
    writer.wait_succeeded()
    assert kept.read_text() == "before\nafter\n"
    mounted.exchange(guest)
    mounted.unmount(guest)
    hotplug.unplug(mounted)
    expect_works_again(hotplug, mounted)


@pytest.mark.any_plug
def test_a_daemon_that_is_killed(
    mounted: VirtiofsDevice, guest: Guest, hotplug: Hotplug, run_state: RunState
) -> None:
    """QEMU and the guest go on, the device is unplugged, and one with a new daemon works."""
    mounted.daemon(guest.machine).kill()
    run_state.stop()
    run_state.cont()
    hotplug.unplug(mounted)
    mounted.unmount(guest)
    expect_works_again(hotplug, mounted)


@pytest.mark.any_plug
@pytest.mark.usefixtures("malloc_perturb")
def test_a_daemon_that_is_killed_with_a_request_in_flight(
    file_system: VirtiofsDevice, guest: Guest, hotplug: Hotplug
) -> None:
    """Nobody answers the request. QEMU goes on, and the device can be taken out of the machine."""
    hotplug.plug(file_system)
    with file_system.request_in_flight(guest) as request:
        file_system.daemon(guest.machine).kill()
        request.writer.expect_running()
        surprise_removal(guest, file_system).wait_completed()
    guest.succeed("true")


@pytest.mark.pin_machine("pc")
def test_the_daemon_leaks_nothing(leak_hunt: LeakHunt, file_system: VirtiofsDevice) -> None:
    """Mounts and files, repeated on one device, leave nothing behind in QEMU and in the daemon."""

    def cycle(guest: Guest) -> None:
        if file_system.id not in guest.machine.plugged:
            Hotplug(guest).plug(file_system)
        file_system.use(guest)

    leak_hunt.repeat(cycle, GUEST_PLAN, daemon=lambda machine: file_system.daemon(machine).pid)


@pytest.mark.pin_machine("pc")
def test_a_used_file_system_leaves_nothing(leak_hunt: LeakHunt, file_system: VirtiofsDevice) -> None:
    """Plug, mount, files, unmount and unplug, repeated, leave nothing behind in QEMU."""

    def cycle(guest: Guest) -> None:
        expect_works_again(Hotplug(guest), file_system)

    leak_hunt.repeat(cycle, GUEST_PLAN)


@pytest.mark.guarantee("no leak")
@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("q35-pcie")
def test_a_plug_without_a_daemon_leaves_nothing(leak_hunt: LeakHunt, file_system: VirtiofsDevice) -> None:
    """A ``device_add`` that fails late because the daemon has ended, repeated, leaves nothing behind."""

    def cycle(machine: Machine) -> None:
        file_system.prepare(machine)
        file_system.daemon(machine).kill()
        device = file_system.device(machine.spec.machine_type)
        with pytest.raises(QemuError, match=r"vhost_\w+ failed"):
            machine.qmp.execute("device_add", device, watch=machine.watch)

    leak_hunt.repeat_without_guest(cycle, PLAN)
