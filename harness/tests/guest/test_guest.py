from __future__ import annotations

import re
import time
from typing import Any, cast

import pytest

from harness.errors import (
    ChannelLost,
    CommandFailed,
    CommandTimeout,
    GuestError,
    GuestPanicked,
    QemuDied,
    WaitTimeout,
)
from harness.guest import guest
from harness.guest.guest import NETWORK_IS_UP
from harness.history import Kind, read
from harness.restore import reseed
from harness.restore.session import SessionReplay, wait_restored
from harness.tests import fakes
from harness.tests.fakes import World

_TIMEOUT = CommandTimeout("ssh", "x", 1.0, "", "")
#: Seconds, nanoseconds, 32 bytes.
_RESEED = rf"^echo (\d{{10}}) (\d{{9}}) ([0-9a-f]{{64}}) >{reseed.PROGRAM}"


class Session:
    """A stand-in for :class:`SessionReplay`: a session that can be resumed, or cannot."""

    def __init__(self, found: object) -> None:
        self._found = found

    def connect(self, _: object) -> Any:
        return self._found


def _restored(world: World, found: object = None) -> None:
    wait_restored(world.guest, cast(SessionReplay, Session(found or world.ssh)))


def _ends(world: World) -> list[tuple[str, Kind]]:
    entries = read(world.machine.history.path)
    return [(entry.f, entry.kind) for entry in entries if entry.op is not None]


def test_run_never_raises_for_a_status_and_records_it(world: World) -> None:
    world.ssh.on("^false$", (1, "out", "err"))
    done = world.guest.run("false")
    assert (done.returncode, done.stdout, done.stderr) == (1, "out", "err")
    assert _ends(world) == [("ssh:run", Kind.OK)]
    invoke, end = [entry for entry in read(world.machine.history.path) if entry.f == "ssh:run"]
    assert (invoke.actor, invoke.value) == ("guest:source", {"command": "false"})
    assert end.value["returncode"] == 1


def test_succeed_and_fail(world: World) -> None:
    world.ssh.on("^good$", "out\n")
    world.ssh.on("^bad$", (3, "", "first\nlast"))
    assert world.guest.succeed("good") == "out\n"
    assert world.guest.fail("bad").returncode == 3
    with pytest.raises(CommandFailed, match=r"^guest:source: 'bad' exited with 3: last"):
        world.guest.succeed("bad")
    with pytest.raises(GuestError, match=r"^guest:source: 'good' was expected to fail, but exited with 0$"):
        world.guest.fail("good")


def test_a_command_without_an_answer(world: World) -> None:
    """It is unknown whether the command ran, so the operation ends as info."""
    world.ssh.on("x", _TIMEOUT)
    with pytest.raises(CommandTimeout):
        world.guest.run("x")
    world.machine.death = QemuDied("QEMU 'source' was killed by SIGSEGV")
    with pytest.raises(QemuDied) as caught:
        world.guest.run("x")
    assert caught.value.__cause__ is _TIMEOUT
    assert _ends(world) == [("ssh:run", Kind.INFO)] * 2
    assert read(world.machine.history.path)[-1].value == "QEMU 'source' was killed by SIGSEGV"


def test_wait_until_succeeds(world: World) -> None:
    world.ssh.on("x", (1, "", ""), (1, "", ""), "there")
    assert world.guest.wait_until_succeeds("x", what="it") == "there"
    world.ssh.on("x", (1, "", "not yet"))
    world.impatient()
    with pytest.raises(WaitTimeout, match=r"for it; last seen: Completed\(.*not yet"):
        world.guest.wait_until_succeeds("x", what="it")


def test_a_guest_has_booted_when_it_answers(world: World) -> None:
    world.machine.artifacts.kernel.write_text(f"[2.0] {NETWORK_IS_UP}\n")
    world.ssh.on("^true$", "")
    world.guest.wait_booted()
    assert world.ssh.commands == ["true"]
    assert ("guest:boot", Kind.OK) in _ends(world)


@pytest.mark.parametrize(
    ("log", "reached"),
    [
        (None, "its kernel printed nothing (check firmware, kernel image and accelerator)"),
        ("[0.0] Linux version 6.1\n", "its kernel did not reach the first process"),
        (
            "[0.0] Linux version 6.1\n[1.0] Run /init as init process\n",
            "its first process started, but its network did not come up",
        ),
        (
            f"[1.0] Run /init as init process\n[2.0] {NETWORK_IS_UP}\n",
            "its network is up, but it does not answer",
        ),
    ],
)
def test_a_failed_boot_reports_the_stage(
    world: World, monkeypatch: pytest.MonkeyPatch, log: str | None, reached: str
) -> None:
    monkeypatch.setattr(guest, "BOOT_TIMEOUT_S", 0.05)
    world.ssh.on("^true$", _TIMEOUT)
    if log is not None:
        world.machine.artifacts.kernel.write_text(log)
    with pytest.raises(GuestError) as caught:
        world.guest.wait_booted()
    assert caught.value.message == f"the guest of 'source' did not boot: {reached}"
    answers = log is not None and NETWORK_IS_UP in log
    assert (_TIMEOUT.message if answers else f"for the guest's {NETWORK_IS_UP!r}") in caught.value.details
    if log is not None:
        assert log.splitlines()[-1] in caught.value.details
    assert ("guest:boot", Kind.INFO) in _ends(world)


@pytest.mark.parametrize("cause", [QemuDied("dead"), GuestPanicked("panicked")])
def test_a_failed_boot_with_a_root_cause(world: World, cause: Any) -> None:
    world.ssh.on("^true$", _TIMEOUT)
    world.machine.death = cause
    with pytest.raises(type(cause)) as caught:
        world.guest.wait_booted()
    assert caught.value is cause


def test_mount_tags_are_separated_by_the_kernels_nul(world: World) -> None:
    world.ssh.on("mount_tag", "tag0\0tag1\0")
    assert world.guest.mount_tags() == ["tag0", "tag1"]
    world.ssh.on("mount_tag", "")
    assert world.guest.mount_tags() == []


def test_moved_to_another_machine(world: World, tmp_path: Any) -> None:
    world.ssh.on("^true$", "")
    world.guest.succeed("true")
    other = fakes.machine(
        tmp_path / "export",
        world.machine.spec.destination("destination-1", plugged=frozenset()),
        world.machine.history,
    )
    world.guest.moved_to(cast(Any, other))
    assert world.ssh.closed == 1
    assert world.guest.actor == "guest:destination-1"
    world.guest.succeed("true")
    assert read(world.machine.history.path)[-1].actor == "guest:destination-1"
    world.guest.disconnect()
    assert world.ssh.closed == 2
    world.guest.disconnect()
    assert world.ssh.closed == 2


@pytest.mark.parametrize(("resumed", "noted"), [(True, ["a command was running"]), ("never", [])])
def test_a_session_that_is_not_kept_is_recorded(
    world: World, tmp_path: Any, resumed: bool | str, noted: list[str]
) -> None:
    """Nothing is recorded for a guest that had no such session."""

    def move(*_: Any, **__: Any) -> bool:
        world.ssh.resumed = "a command was running"
        return False

    world.ssh.on("^true$", "")
    world.guest.succeed("true")
    world.ssh.resumed, world.ssh.move = resumed, move  # type: ignore[method-assign]
    destination = world.machine.spec.destination("destination-1", plugged=frozenset())
    other = fakes.machine(tmp_path / "export", destination, world.machine.history)
    world.guest.moved_to(cast(Any, other))
    assert [note.value for note in world.notes("ssh:not-moved")] == noted


def test_tolerate_is_on_record_for_the_machine(world: World) -> None:
    world.guest.tolerate("blocked for more than", why="the hold lasts")
    (note,) = world.notes("guest:tolerate")
    assert (note.actor, note.value) == (
        "source",
        {"pattern": "blocked for more than", "why": "the hold lasts"},
    )


def test_a_restored_guest_is_reseeded(world: World) -> None:
    world.machine.artifacts.kernel.write_text(f"{NETWORK_IS_UP}\n")
    world.ssh.on(_RESEED, "")
    for _ in range(2):
        _restored(world)
    first, second = (re.findall(_RESEED, command)[0] for command in world.ssh.commands)
    assert abs(int(first[0]) - time.time()) < 60
    assert first[2] != second[2]
    assert len(set(map(len, world.ssh.commands))) == 1
    # The boot in its log is over: only a later one counts.
    world.machine.artifacts.kernel.write_text(f"{NETWORK_IS_UP}\n" * 2)
    world.ssh.on("^true$", "")
    world.guest.wait_booted()


def test_a_restored_guest_that_does_not_answer(world: World) -> None:
    world.ssh.on(_RESEED, ChannelLost("connection refused"))
    with pytest.raises(ChannelLost):
        _restored(world)
    (entry,) = [e for e in read(world.machine.history.path) if e.f == "guest:restore" and e.kind is Kind.INFO]
    assert "connection refused" in str(entry.value)


def test_a_restored_guest_whose_session_cannot_be_resumed(world: World) -> None:
    """It gets a new session, and the reason is in the history."""
    world.ssh.on(_RESEED, "")
    _restored(world, "the recorded answers do not fit")
    (note,) = world.notes("ssh:resumed")
    assert note.value == "the recorded answers do not fit"
    assert len(world.ssh.commands) == 1


def test_a_restored_guest_that_cannot_be_reseeded(world: World) -> None:
    world.ssh.on(_RESEED, (3, "", ""))
    with pytest.raises(CommandFailed, match="exited with 3"):
        _restored(world)
