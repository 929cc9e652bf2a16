"""Other virtio devices are plugged and unplugged as a share is: a disk, a network card, an entropy device.

Each is plugged, used, migrated, and unplugged with a request in flight, and leaves nothing behind in QEMU.
The guest's disk driver waits for its requests; the drivers of the other two drop them.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from harness.actions.hotplug import Hotplug, unplug_without_guest
from harness.actions.migration import Migration
from harness.actions.removal import surprise_removal
from harness.actions.run_state import RunState
from harness.devices import BlockDevice, Neighbour, NetDevice, RngDevice
from harness.guest.guest import Guest
from harness.holds.hold import Hold, require_counted_requests
from harness.leaks.hunt import LeakHunt, Plan
from harness.qemu.machine import Machine
from harness.qemu.malloc_perturb import MallocPerturb
from harness.testbed import Testbed

pytestmark = pytest.mark.thorough

MADE: dict[str, Callable[[Testbed, Hold | None], Neighbour]] = {
    "blk": lambda testbed, hold: BlockDevice.create(testbed, hold=hold),
    "net": lambda testbed, _: NetDevice.create(testbed),
    "rng": lambda testbed, _: RngDevice.create(testbed),
}
#: A leak that happens once in six cycles is found. (With a guest, a hunt takes 20 s of processor time.)
PLAN = Plan(warm_up=6, part=6, thorough=6)


@pytest.fixture(params=list(MADE))
def device(request: pytest.FixtureRequest, testbed: Testbed) -> Neighbour:
    """A device whose backend the machine has, and that is not plugged in."""
    hold: Hold | None = request.getfixturevalue("hold") if "hold" in request.fixturenames else None
    made = MADE[request.param](testbed, hold)
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
@pytest.mark.parametrize("device", ["blk"], indirect=True)
@pytest.mark.unplug("asks")
@pytest.mark.usefixtures("hold")
def test_unplug_waits_for_a_request_in_flight(guest: Guest, hotplug: Hotplug, device: BlockDevice) -> None:
    """The driver waits for the flush (kernel: ``del_gendisk``), and the guest's write succeeds."""
    guest.tolerate(
        "task kworker.* blocked for more than|Call [Tt]race:", why="the disk's driver waits in D state"
    )
    hotplug.plug(device)
    device.use(guest)
    with device.request_in_flight(guest) as flush:
        unplug = hotplug.request_unplug(device)
        unplug.wait_seen_by_guest()
        unplug.expect_withheld(while_=flush.waiting)
    unplug.wait_completed()
    flush.writer.wait_succeeded()
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
@pytest.mark.parametrize("device", ["blk"], indirect=True)
@pytest.mark.usefixtures("hold", "malloc_perturb")
def test_a_forced_eject_waits_for_a_request_in_flight(
    guest: Guest, hotplug: Hotplug, device: Neighbour
) -> None:
    """QEMU drains the disk (``virtio_blk_device_unrealize``): it is deleted after the flush was answered.

    The guest ejects it, or ``device_del`` takes it where that asks nobody.
    """
    hotplug.plug(device)
    device.use(guest)
    with device.request_in_flight(guest) as flush:
        removal = surprise_removal(guest, device)
        deleted_while_held = removal.observe(while_=flush.waiting)
    removal.wait_completed()
    guest.succeed("true")
    assert not deleted_while_held, "the disk was deleted with a request in flight"


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
    hotplug.plug(device)
    device.use(guest)
    migration.migrate()
    device.use(guest)
    hotplug.unplug(device)
    run_state.stop()
    run_state.cont()
    migration.migrate()
    expect_works_again(hotplug, device)
