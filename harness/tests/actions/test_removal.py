from __future__ import annotations

from dataclasses import replace

import pytest

from harness.actions.hotplug import Hotplug, expect_gone_in_guest
from harness.actions.removal import TakenAway, surprise_removal
from harness.errors import QemuError, Unsupported, Violation
from harness.qemu.machine_types import MACHINE_TYPES
from harness.tests.fakes import BACKEND, GONE, World, peripheral

FOLDER = "/sys/bus/ccw/devices/0.0.0010"


@pytest.fixture
def world(world: World) -> World:
    """Of the machine type whose ``device_del`` asks nobody."""
    world.machine.spec = replace(world.machine.spec, machine_type=MACHINE_TYPES["s390-ccw"])
    world.qmp.on("device_del", {})
    world.qmp.on("query-status", {})
    world.qmp.on("qom-list", peripheral())
    return world


def _delete(world: World, *paths: str) -> None:
    for path in paths:
        world.qmp.emit("DEVICE_DELETED", path=path)


def test_a_plain_device_del_takes_the_device(world: World) -> None:
    world.machine.plugged.add("share0")
    removal = surprise_removal(world.guest, world.share)
    assert isinstance(removal, TakenAway)
    assert world.qmp.sent[-1] == ("device_del", {"id": "share0"})
    _delete(world, BACKEND, GONE)
    removal.wait_completed()
    assert world.machine.plugged == set()


@pytest.mark.parametrize("deleted", [(BACKEND, GONE), (BACKEND,), ()])
def test_what_is_deleted_while_a_request_is_held(world: World, deleted: tuple[str, ...]) -> None:
    removal = surprise_removal(world.guest, world.share)
    _delete(world, *deleted)
    asked: list[None] = []
    assert removal.observe(while_=lambda: asked.append(None), window_s=0.01) == list(deleted)
    assert len(asked) == 2


def test_a_qemu_that_drains_answers_nothing(world: World) -> None:
    """Neither the command nor the question after it is answered: the device waits for its request."""
    world.qmp.stalled = True
    removal = surprise_removal(world.guest, world.share)
    assert removal.observe(while_=lambda: None, window_s=0.01) == []


def test_an_event_that_is_missing(world: World) -> None:
    removal = surprise_removal(world.guest, world.share)
    _delete(world, BACKEND)
    world.impatient()
    with pytest.raises(Violation, match=r"only \['\S+/virtio-backend'\] were reported deleted"):
        removal.wait_completed()


def test_a_device_del_that_is_refused(world: World) -> None:
    world.qmp.refuse("device_del", "Device 'share0' not found")
    with pytest.raises(QemuError, match="not found"):
        surprise_removal(world.guest, world.share).wait_completed()


def test_a_guest_is_told_afterwards(world: World) -> None:
    """The guest may still have the device when QEMU has reported its end."""
    world.ssh.on("mount_tag", "tag0\0", "")
    world.ssh.on(f"ls -d {FOLDER}", f"{FOLDER}\n", "")
    expect_gone_in_guest(world.guest, world.share)


def test_a_guest_that_keeps_the_device(world: World) -> None:
    world.ssh.on("mount_tag", "")
    world.ssh.on(f"ls -d {FOLDER}", f"{FOLDER}\n")
    world.impatient()
    with pytest.raises(Violation, match=f"^share0 is unplugged, but the guest still has {FOLDER}$"):
        expect_gone_in_guest(world.guest, world.share)


def test_an_unplug_that_asks_is_not_available(world: World) -> None:
    unplug = Hotplug(world.guest).request_unplug(world.share)
    with pytest.raises(Unsupported, match=r"^s390-ccw: device_del takes the device"):
        unplug.wait_seen_by_guest()


def test_a_type_whose_guest_ejects(world: World) -> None:
    """Elsewhere a surprise removal is a forced eject."""
    world.machine.spec = replace(world.machine.spec, machine_type=MACHINE_TYPES["pc"])
    world.ssh.on("hostile: eject", "")
    world.qmp.on("qom-get", 0)
    assert not isinstance(surprise_removal(world.guest, world.share), TakenAway)
    assert ("device_del", {"id": "share0"}) not in world.qmp.sent
