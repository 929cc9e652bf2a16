from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.actions import hotplug
from harness.actions.hotplug import Hotplug, Unplug, UnplugState, plug_refusals
from harness.deadline import TimeoutScale
from harness.errors import GuestError, QemuDied, QemuError, Violation, WaitTimeout
from harness.qemu.machine_types import MACHINE_TYPES
from harness.tests.fakes import BACKEND, BUSY, GONE, NO_ENTRY, World, peripheral

_PROBE = r"mount .* /mnt/\.probe( |$)"
_TAGS = "cat /sys/bus/virtio/drivers/9pnet_virtio"


def _delete(world: World, *, backend: bool = True, device: bool = True) -> None:
    if backend:
        world.qmp.emit("DEVICE_DELETED", path=BACKEND)
    if device:
        world.qmp.emit("DEVICE_DELETED", path=GONE, device="share0")


def _requested(world: World) -> Unplug:
    """An unplug that QEMU has accepted; the device is still there."""
    world.qmp.on("device_del", {})
    world.qmp.on("qom-list", peripheral("share0"))
    return Hotplug(world.guest).request_unplug(world.share)


def _reported(world: World) -> Unplug:
    """An unplug of which both events have come, and the guest has forgotten the device."""
    unplug = _requested(world)
    world.qmp.on("qom-list", peripheral())
    _delete(world)
    _forgotten(world)
    return unplug


def _forgotten(world: World) -> None:
    world.ssh.on(_TAGS, "")
    world.ssh.on("^ls -d /sys/bus/pci", "")


def _seen(world: World) -> Unplug:
    """An unplug that the guest has begun, with the share mounted."""
    unplug = _requested(world)
    world.ssh.on(_PROBE, BUSY, BUSY, NO_ENTRY)
    unplug.wait_seen_by_guest()
    return unplug


def _states(world: World) -> list[str]:
    return [entry.value["state"] for entry in world.notes("unplug")]


# Plugging


def test_plug_waits_until_the_guest_lists_the_tag(world: World) -> None:
    world.qmp.on("device_add", {})
    world.ssh.on(_TAGS, "", "", "other\0", "other\0tag0\0")
    Hotplug(world.guest).plug(world.share)
    ((command, arguments),) = world.qmp.sent
    assert command == "device_add"
    assert arguments == {
        "driver": "virtio-9p-pci",
        "id": "share0",
        "fsdev": "fs-share0",
        "mount_tag": "tag0",
        "bus": "pci.0",
        "addr": "0x10",
    }
    assert len(world.ssh.commands) == 4
    assert world.machine.plugged == {"share0"}
    assert [entry.value for entry in world.notes("device:plugged")] == [{"id": "share0"}]


def test_plug_of_a_tag_that_another_device_has_already(world: World) -> None:
    """Duplicate tags are accepted: one more of it has to appear."""
    world.qmp.on("device_add", {})
    world.ssh.on(_TAGS, "tag0\0", "tag0\0", "tag0\0tag0\0")
    Hotplug(world.guest).plug(world.share)
    assert len(world.ssh.commands) == 3


def test_plug_that_the_guest_never_sees(world: World) -> None:
    world.qmp.on("device_add", {})
    world.ssh.on(_TAGS, "tag00\0")
    world.impatient()
    with pytest.raises(WaitTimeout, match="for the guest to list tag0") as caught:
        Hotplug(world.guest).plug(world.share)
    assert caught.value.artifacts == world.machine.artifacts.folder
    assert not world.notes("device:plugged")
    assert world.machine.plugged == {"share0"}, "QEMU has the device, so a destination needs it"


def _taken() -> QemuError:
    desc = "Duplicate ID 'share0' for device"
    return QemuError("source", {"execute": "device_add"}, {"class": "GenericError", "desc": desc}, desc)


def test_the_id_of_a_deleted_device_may_be_taken_a_moment_longer(world: World) -> None:
    world.qmp.on("device_add", _taken(), _taken(), {})
    world.machine.deleted.add("share0")
    world.guest.machine.device_add(world.share)
    assert world.qmp.commands == ["device_add"] * 3
    assert world.machine.plugged == {"share0"}


def test_an_id_that_is_never_free(world: World) -> None:
    world.qmp.on("device_add", _taken())
    world.machine.deleted.add("share0")
    world.impatient()
    with pytest.raises(QemuError, match="Duplicate ID"):
        world.guest.machine.device_add(world.share)
    assert world.machine.plugged == set()


def test_an_id_that_is_in_use_is_refused_at_once(world: World) -> None:
    """Although one of that name went before."""
    world.qmp.on("device_add", {}, _taken())
    world.machine.deleted.add("share0")
    world.guest.machine.device_add(world.share)
    with pytest.raises(QemuError, match="Duplicate ID"):
        world.guest.machine.device_add(world.share)
    assert world.qmp.commands == ["device_add"] * 2


def test_plug_that_qemu_refuses(world: World) -> None:
    world.qmp.refuse("device_add", "Duplicate device ID 'share0'")
    world.ssh.on(_TAGS, "")
    with pytest.raises(QemuError, match=r"^QEMU 'source' refused device_add: Duplicate device ID"):
        Hotplug(world.guest).plug(world.share)
    assert world.machine.plugged == set()


def test_plug_into_a_qemu_that_dies(world: World) -> None:
    def dies(_: str) -> str:
        world.machine.death = QemuDied("QEMU 'source' was killed by SIGSEGV")
        return ""

    world.qmp.on("device_add", {})
    world.ssh.on(_TAGS, "", dies)
    with pytest.raises(QemuDied):
        Hotplug(world.guest).plug(world.share)


# Unplugging


def test_every_state_of_an_unplug_that_is_withheld_and_then_completed(world: World) -> None:
    unplug = _requested(world)
    assert unplug.state is UnplugState.REQUESTED
    world.machine.plugged.add("share0")
    world.ssh.on(_PROBE, BUSY, NO_ENTRY)
    unplug.wait_seen_by_guest()
    asked: list[str] = []
    unplug.expect_withheld(while_=lambda: asked.append("in use"), window_s=0.15)
    assert len(asked) == 2
    assert world.machine.plugged == {"share0"}
    _forgotten(world)
    world.qmp.on("qom-list", peripheral())
    _delete(world)
    unplug.wait_completed()
    assert world.machine.plugged == set()
    assert _states(world) == ["requested", "seen by guest", "withheld", "completed"]
    assert all(entry.actor == "source" for entry in world.notes("unplug"))


def test_the_listener_is_armed_before_device_del(world: World) -> None:
    """On a stopped VM with native hotplug both events come before the command's own answer."""

    def at_once(_: Any) -> dict[str, Any]:
        _delete(world)
        return {}

    world.qmp.on("device_del", at_once)
    world.qmp.on("qom-list", peripheral())
    _forgotten(world)
    Hotplug(world.guest).request_unplug(world.share).wait_completed()


def test_refused(world: World) -> None:
    world.qmp.refuse("device_del", "Bus 'pcie.0' does not support hotplugging")
    unplug = Hotplug(world.guest).request_unplug(world.share)
    assert unplug.state is UnplugState.REFUSED
    assert unplug.refusal is not None
    steps: tuple[Callable[[], None], ...] = (
        unplug.wait_completed,
        unplug.wait_seen_by_guest,
        lambda: unplug.expect_withheld(while_=lambda: None),
    )
    for step in steps:
        with pytest.raises(QemuError, match=r"refused device_del: Bus 'pcie.0' does not support hotplugging"):
            step()
    assert _states(world) == ["refused"]


def test_lost_before_the_guest_began(world: World) -> None:
    unplug = _requested(world)
    world.ssh.on(_PROBE, BUSY)
    world.impatient()
    with pytest.raises(GuestError, match=r"^device_del of share0 was lost: the guest never began"):
        unplug.wait_seen_by_guest()
    assert unplug.state is UnplugState.LOST
    assert _states(world) == ["requested", "lost"]


def test_lost_afterwards(world: World) -> None:
    unplug = _requested(world)
    world.impatient()
    with pytest.raises(GuestError, match=r"^device_del of share0 never completed"):
        unplug.wait_completed()
    assert unplug.state is UnplugState.LOST


def test_the_witness_needs_a_mounted_share(world: World) -> None:
    unplug = _requested(world)
    world.ssh.on(_PROBE, "")
    world.ssh.on("^umount /mnt/.probe$", "")
    with pytest.raises(GuestError, match="this witness needs it mounted"):
        unplug.wait_seen_by_guest()
    assert world.ssh.commands[-1] == "umount /mnt/.probe", "its own probe must not hold the share"


def test_withheld_means_nothing_before_the_guest_began(world: World) -> None:
    unplug = _requested(world)
    with pytest.raises(AssertionError):
        unplug.expect_withheld(while_=lambda: None, window_s=0.0)
    assert _states(world) == ["requested"]


@pytest.mark.parametrize("shown", ["backend's event", "device's event", "qom-list"])
def test_a_device_that_goes_while_it_is_in_use(world: World, shown: str) -> None:
    unplug = _seen(world)

    def goes(_: Any) -> Any:
        if shown == "qom-list":
            return peripheral()
        _delete(world, backend=shown == "backend's event", device=shown == "device's event")
        return peripheral("share0")

    world.qmp.on("qom-list", peripheral("share0"), goes, peripheral("share0"))
    with pytest.raises(Violation, match=r"^device_del of share0 completed too early: the device has to stay"):
        unplug.expect_withheld(while_=lambda: None, window_s=1000)
    assert "withheld" not in _states(world)


def test_the_events_of_another_device_are_not_taken_for_ours(world: World) -> None:
    unplug = _seen(world)
    world.qmp.emit("DEVICE_DELETED", path="/machine/peripheral/share01", device="share01")
    world.qmp.emit("DEVICE_DELETED", path="/machine/peripheral/share01/virtio-backend")
    unplug.expect_withheld(while_=lambda: None, window_s=0.0)
    world.impatient()
    with pytest.raises(GuestError, match="never completed"):
        unplug.wait_completed()


@pytest.mark.parametrize("pending", [True, False])
def test_the_window_is_as_long_as_the_accelerator_is_slow(
    world: World, pending: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows: list[float] = []
    unplug = _requested(world) if pending else _seen(world)

    def check_during(window_s: float, still: Callable[[], None]) -> float:
        windows.append(window_s)
        return window_s

    monkeypatch.setattr(hotplug, "check_during", check_during)
    world.machine.timeout_scale = TimeoutScale(6.0)
    watch = unplug.expect_pending if pending else unplug.expect_withheld
    watch(while_=lambda: None, window_s=0.5)
    assert windows == [3.0]


@pytest.mark.parametrize("fails_at", [1, 2])
def test_a_witness_that_raises_fails_the_window(world: World, fails_at: int) -> None:
    unplug = _seen(world)
    calls: list[None] = []

    def witness() -> None:
        calls.append(None)
        if len(calls) == fails_at:
            raise GuestError("no longer in use")

    with pytest.raises(GuestError, match="no longer in use"):
        unplug.expect_withheld(while_=witness, window_s=0.0)
    assert unplug.state is UnplugState.SEEN_BY_GUEST


def test_a_qemu_that_dies_in_the_window(world: World) -> None:
    unplug = _seen(world)
    world.machine.death = QemuDied("QEMU 'source' was killed by SIGABRT")
    with pytest.raises(QemuDied):
        unplug.expect_withheld(while_=lambda: None, window_s=5)


@pytest.mark.parametrize(("backend", "device"), [(True, False), (False, True)])
@pytest.mark.parametrize("listed", [True, False])
def test_one_of_the_two_events_missing(world: World, backend: bool, device: bool, listed: bool) -> None:
    unplug = _requested(world)
    world.qmp.on("qom-list", peripheral("share0") if listed else peripheral())
    _delete(world, backend=backend, device=device)
    world.impatient()
    with pytest.raises(Violation, match="leaked reference") as caught:
        unplug.wait_completed()
    assert (BACKEND if backend else GONE) in caught.value.message
    assert (f"'{GONE}'" if backend else BACKEND) not in caught.value.message
    assert "completed" not in _states(world)


def test_gone_without_any_event(world: World) -> None:
    """QOM finalize never came: the device is unparented, and something still holds it."""
    unplug = _requested(world)
    world.qmp.on("qom-list", peripheral())
    world.impatient()
    with pytest.raises(Violation, match="leaked reference"):
        unplug.wait_completed()


def test_events_that_come_at_the_deadline_are_no_leaked_reference(world: World) -> None:
    unplug = _requested(world)
    _forgotten(world)

    def deleted(_: Any) -> list[dict[str, str]]:
        _delete(world)
        return peripheral()

    world.qmp.on("qom-list", deleted, peripheral())
    world.impatient()
    unplug.wait_completed()
    assert unplug.state is UnplugState.COMPLETED


def test_both_events_and_still_listed(world: World) -> None:
    unplug = _requested(world)
    _delete(world)
    with pytest.raises(
        Violation, match=r"^share0 was reported deleted, but /machine/peripheral still has it$"
    ):
        unplug.wait_completed()
    assert "completed" not in _states(world)


def test_both_events_and_the_guest_still_lists_the_tag(world: World) -> None:
    unplug = _reported(world)
    world.ssh.on(_TAGS, "other\0tag0\0")
    with pytest.raises(Violation, match=r"^share0 is unplugged, but the guest still lists tag0$"):
        unplug.wait_completed()
    assert "completed" not in _states(world)


def test_the_tag_of_another_device_that_is_plugged(world: World) -> None:
    twin = replace(world.share, id="share1", slot=1)
    world.machine.spec = replace(world.machine.spec, shares=(world.share, twin))
    world.machine.plugged = {"share0", "share1"}
    unplug = _reported(world)
    world.ssh.on(_TAGS, "tag0\0")
    unplug.wait_completed()


@pytest.mark.parametrize(("kind", "pattern"), [("pc", "0000:00:10.0"), ("q35", "0000:00:10.0/0000:??:??.?")])
def test_both_events_and_the_guest_still_has_the_function(world: World, kind: str, pattern: str) -> None:
    world.machine.spec = replace(world.machine.spec, machine_type=MACHINE_TYPES[kind])
    unplug = _reported(world)
    left = "/sys/bus/pci/devices/0000:00:10.0/0000:01:00.0"
    world.ssh.on(rf"^ls -d /sys/bus/pci/devices/{re.escape(pattern)} ", f"{left}\n")
    with pytest.raises(Violation, match=rf"^share0 is unplugged, but the guest still has {left}$"):
        unplug.wait_completed()
    assert "completed" not in _states(world)


# A second device_del, and a device_add that fails


@pytest.mark.parametrize(
    ("desc", "meant"),
    [
        ("Device share0 is already in the process of unplug", True),
        ("Hot-unplug failed: guest is busy (power indicator blinking)", True),
        ("Device share1 is already in the process of unplug", False),
        ("Bus 'pcie.0' does not support hotplugging", False),
        ("Device 'share0' not found", False),
    ],
)
def test_an_unplug_that_is_under_way(world: World, desc: str, meant: bool) -> None:
    world.qmp.refuse("device_del", desc)
    again = Hotplug(world.guest).request_unplug(world.share)
    again.expect_granted_or_under_way(desc)
    if meant:
        again.expect_granted_or_under_way()
    else:
        with pytest.raises(QemuError, match=re.escape(desc)):
            again.expect_granted_or_under_way()


def test_an_unplug_that_is_granted(world: World) -> None:
    _requested(world).expect_granted_or_under_way()


@pytest.mark.parametrize(
    ("wrong", "changes", "desc"),
    [
        (
            "fsdev",
            {"device_options": {"fsdev": "nowhere"}},
            "9pfs device couldn't find fsdev with the id = nowhere",
        ),
        ("no_tag", {"mount_tag": ""}, "fsdev with id fs-share0 needs mount_tag arguments"),
        (
            "long_tag",
            {"device_options": {"mount_tag": "t" * 32}},
            f"mount tag '{'t' * 32}' (32 bytes) is longer than maximum (31 bytes)",
        ),
        (
            "path",
            {"path": Path("/p"), "fsdev_of": "share1"},
            "cannot initialize fsdev 'fs-share1': failed to open '/p': No such file or directory",
        ),
        (
            "path",
            {"path": Path("/p")},
            "cannot initialize fsdev 'fs-share0': Could not open '/p': No such file or directory",
        ),
        ("busy_id", {}, "Duplicate device ID 'share0'"),
    ],
)
def test_what_a_plug_is_refused_with(world: World, wrong: str, changes: dict[str, Any], desc: str) -> None:
    """The texts that 7.2.22, 10.0.13 and 11.1.3 were seen to print."""
    assert desc in plug_refusals(wrong, replace(world.share, **changes))
    others = {"fsdev", "no_tag", "long_tag", "path", "busy_id"} - {wrong}
    assert not any(desc in plug_refusals(other, replace(world.share, **changes)) for other in others)
