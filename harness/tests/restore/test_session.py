"""A session that is resumed while its machine starts, against the server of ``test_guestfwd``."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.channel.handshake import GuestfwdTransport
from harness.channel.ssh import Ssh
from harness.deadline import TimeoutScale, wait_until
from harness.guest.guest import BOOT_TIMEOUT_S
from harness.guest.image import GuestImage
from harness.qemu.machine import Machine
from harness.restore.session import TIMEOUT_S, SessionReplay
from harness.tests.channel.test_guestfwd import Network
from harness.tests.channel.test_ssh import Keys


class World:
    def __init__(self, folder: Path) -> None:
        self.network = Network(folder, Keys(folder))
        keys = self.network.keys
        self.image = cast(GuestImage, SimpleNamespace(client_key=keys.client_path, host_key=keys.host_line))
        self.saved = self.network.ssh().save_session()

    def machine(self, guestfwd: Path) -> Machine:
        return cast(
            Machine,
            SimpleNamespace(
                paths=SimpleNamespace(guestfwd=guestfwd),
                ssh_port=self.network.sshd.port,
                watch=lambda: None,
                wait_until=_wait_long,
            ),
        )

    def replay(self, *, factor: float = 20.0, **wrong: object) -> SessionReplay:
        """:param factor: the timeout scale; small where the session cannot be resumed."""
        return SessionReplay(replace(self.saved, **wrong), self.image, TimeoutScale(factor))  # type: ignore[arg-type]


def _wait_long(probe: Callable[[], bool], *, what: str, timeout_s: float) -> bool:
    """As :meth:`Machine.wait_until` of a slow guest."""
    return wait_until(probe, what=what, timeout_s=20 * timeout_s)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr("harness.restore.reseed.command", lambda: "answer=0")
    made = World(tmp_path)
    yield made
    made.network.close()


@pytest.mark.parametrize("begun", [True, False])
def test_it_is_connected(world: World, begun: bool) -> None:
    session = world.replay()
    if begun:
        session.begin()
        session.begin()
    ssh = session.connect(world.machine(world.network.here))
    assert isinstance(ssh, Ssh)
    session.close()  # The caller owns the session.
    assert ssh.run("echo hello", timeout_s=60).stdout == "hello\n"
    assert world.network.sshd.connections == 1
    ssh.close()


def test_a_later_connection_gets_the_time_of_a_boot(world: World) -> None:
    """The short time is for the replay, which needs no guest."""
    session = world.replay(factor=1.0)
    ssh = session.connect(world.machine(world.network.here))
    assert isinstance(ssh, Ssh)
    ssh._reconnect()
    assert ssh._deadline.timeout_s == BOOT_TIMEOUT_S
    ssh.close()


def test_it_cannot_be_resumed(world: World) -> None:
    session = world.replay(factor=0.2, cookie=bytes(16))
    session.begin()
    why = session.connect(world.machine(world.network.here))
    assert isinstance(why, str)
    assert why
    session.close()


def test_a_replay_that_times_out_is_no_timeout_of_the_machine(world: World) -> None:
    """The replay ends a moment after its time, so the wait for it has to be longer."""
    allowed_s: list[float] = []

    def wait(probe: Callable[[], bool], *, what: str, timeout_s: float) -> bool:
        allowed_s.append(timeout_s)
        return wait_until(probe, what=what, timeout_s=60)

    session = world.replay(factor=0.2, cookie=bytes(16))
    machine = cast(Any, world.machine(world.network.here))
    machine.wait_until = wait
    assert isinstance(session.connect(machine), str)
    assert min(allowed_s) > TIMEOUT_S
    session.close()


def test_a_recorded_answer_is_missing(world: World) -> None:
    """It fails after a short timeout, as no guest is involved."""
    session = world.replay(factor=0.5, received=world.saved.received[:-1])
    why = session.connect(world.machine(world.network.here))
    assert isinstance(why, str)
    assert "the first command over the guestfwd socket" in why
    session.close()


def test_the_machine_has_no_guestfwd_socket(world: World, tmp_path: Path) -> None:
    session = world.replay()
    assert session.connect(world.machine(tmp_path / "none")) == f"QEMU does not listen on {tmp_path}/none"
    session.close()


@pytest.mark.parametrize("begun", [True, False])
def test_it_is_closed_without_being_connected(world: World, begun: bool) -> None:
    """As when the machine did not start: no thread is left."""
    before = _working()
    session = world.replay()
    if begun:
        session.begin()
    session.close()
    session.close()
    wait_until(lambda: _working() <= before, what="its threads to end", timeout_s=60)


def _working() -> set[threading.Thread]:
    """The client threads of paramiko and of the harness."""
    return {
        thread
        for thread in threading.enumerate()
        if isinstance(thread, GuestfwdTransport) or thread.name == "background"
    }
