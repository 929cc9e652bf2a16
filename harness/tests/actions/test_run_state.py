from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.actions import run_state
from harness.actions.run_state import RunState
from harness.errors import GuestError, HarnessError, QemuDied, QemuError, Unsupported, Violation, WaitTimeout
from harness.guest.guest import NETWORK_IS_UP
from harness.tests.fakes import World


def _emits(world: World, event: str) -> Any:
    """An answer that is preceded by its event, as QEMU does for stop and cont."""

    def answer(_: Any) -> dict[str, Any]:
        world.qmp.emit(event)
        return {}

    return answer


@pytest.mark.parametrize(("command", "event"), [("stop", "STOP"), ("cont", "RESUME")])
def test_stop_and_cont_wait_for_their_events(world: World, command: str, event: str) -> None:
    world.qmp.on(command, _emits(world, event))
    getattr(RunState(world.guest), command)()
    assert world.qmp.commands == [command]


@pytest.mark.parametrize(("command", "wrong"), [("stop", "RESUME"), ("cont", "STOP")])
def test_an_answer_without_its_event_is_not_enough(world: World, command: str, wrong: str) -> None:
    world.qmp.emit("STOP" if command == "stop" else "RESUME")  # an old one, from before the command
    world.qmp.on(command, _emits(world, wrong))
    world.impatient()
    with pytest.raises(WaitTimeout, match=f"after {command}"):
        getattr(RunState(world.guest), command)()


def test_a_qemu_that_dies_instead(world: World) -> None:
    def dies(_: Any) -> dict[str, Any]:
        world.machine.death = QemuDied("QEMU 'source' was killed by SIGSEGV")
        return {}

    world.qmp.on("stop", dies)
    with pytest.raises(QemuDied):
        RunState(world.guest).stop()


def test_system_reset_is_over_when_another_boot_answers(world: World) -> None:
    world.qmp.on("system_reset", _emits(world, "RESET"))
    world.ssh.on("boot_id", "one\n", "two\n")
    world.ssh.on("^true$", "")
    world.machine.artifacts.kernel.write_text(f"{NETWORK_IS_UP}\n")
    RunState(world.guest).system_reset()
    assert world.ssh.closed == 1, "the old connection would hang on a kernel that is no more"


def test_system_reset_of_a_guest_that_never_comes_back(world: World) -> None:
    world.qmp.on("system_reset", _emits(world, "RESET"))
    world.ssh.on("boot_id", "one\n", "two\n")
    world.ssh.on("^true$", GuestError("no answer"))
    world.machine.artifacts.kernel.write_text(f"{NETWORK_IS_UP}\n")
    with pytest.raises(GuestError, match="did not boot"):
        RunState(world.guest).system_reset()


def test_system_reset_that_did_not_reset(world: World) -> None:
    """The same kernel answers: whatever QEMU's event says, nothing was reset."""
    world.qmp.on("system_reset", _emits(world, "RESET"))
    world.ssh.on("boot_id", "one\n")
    world.ssh.on("^true$", "")
    world.machine.artifacts.kernel.write_text(f"{NETWORK_IS_UP}\n")
    with pytest.raises((HarnessError, AssertionError)):
        RunState(world.guest).system_reset()


def test_the_wait_is_scaled_by_the_timeout_scale(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_state, "EVENT_TIMEOUT_S", 0.05)
    world.qmp.on("stop", {})
    with pytest.raises(WaitTimeout) as caught:
        RunState(world.guest).stop()
    assert caught.value.elapsed_s >= 0.05 * world.machine.timeout_scale.factor


def test_a_reboot_by_the_guest_itself(world: World) -> None:
    world.ssh.on("ip link set eth0 down; reboot -n -f$", _emits_to_guest(world, "RESET"))
    world.ssh.on("boot_id", "one\n", "two\n")
    world.ssh.on("^true$", "")
    world.machine.artifacts.kernel.write_text(f"{NETWORK_IS_UP}\n")
    RunState(world.guest).reboot()
    assert world.ssh.closed == 1


def _emits_to_guest(world: World, event: str) -> Any:
    def answer(_: Any) -> str:
        world.qmp.emit(event)
        return ""

    return answer


@pytest.mark.parametrize(("status", "stopped"), [("paused", True), ("running", False)])
def test_whether_it_is_stopped(world: World, status: str, stopped: bool) -> None:
    world.qmp.on("query-status", {"status": status})
    if stopped:
        RunState(world.guest).expect_stopped()
    else:
        with pytest.raises(Violation, match="source is running after stop"):
            RunState(world.guest).expect_stopped()


def test_a_screendump(world: World) -> None:
    def draw(arguments: Any) -> dict[str, Any]:
        Path(arguments["filename"]).write_bytes(b"P6 1 1 255 abc")
        return {}

    world.qmp.on("screendump", draw)
    assert RunState(world.guest).screendump().startswith(b"P6")


@pytest.mark.parametrize(("kind", "raised"), [("CommandNotFound", Unsupported), ("GenericError", QemuError)])
def test_a_screendump_of_a_qemu_that_has_none(world: World, kind: str, raised: type[Exception]) -> None:
    error = QemuError("source", {"execute": "screendump"}, {"class": kind, "desc": "no"}, "no")
    world.qmp.on("screendump", error)
    with pytest.raises(raised):
        RunState(world.guest).screendump()


@pytest.mark.parametrize("how", ["asked over QMP", "announced by the guest", "neither"])
def test_a_reset_that_has_begun(world: World, how: str) -> None:
    """It is seen also when another thread has sent a command since."""
    world.qmp.on("system_reset", _emits(world, "RESET"))
    world.qmp.on("query-status", {})
    reset = RunState(world.guest)
    if how == "asked over QMP":
        reset.begin_system_reset(boot_id="one")
        world.qmp.execute("query-status")
    elif how == "announced by the guest":
        world.machine.artifacts.kernel.write_text("guest: reboots\n")
    if how == "neither":
        world.impatient()
        with pytest.raises(WaitTimeout, match="the reset to begin"):
            reset.wait_reset_begun()
    else:
        world.impatient()
        reset.wait_reset_begun()


def test_a_reset_of_a_guest_that_cannot_be_asked(world: World) -> None:
    world.qmp.on("system_reset", _emits(world, "RESET"))
    world.ssh.on("boot_id", "two\n")
    world.ssh.on("^true$", "")
    world.machine.artifacts.kernel.write_text(f"{NETWORK_IS_UP}\n")
    RunState(world.guest).system_reset(boot_id="one")
    world.machine.artifacts.kernel.write_text(f"{NETWORK_IS_UP}\n" * 2)
    with pytest.raises(GuestError, match="without having rebooted"):
        RunState(world.guest).system_reset(boot_id="two")
