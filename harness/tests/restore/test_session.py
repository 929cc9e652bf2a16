"""A session that is resumed while its machine starts, against the server of ``test_line``."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from harness.channel.handshake import GuestfwdTransport
from harness.channel.ssh import Ssh
from harness.deadline import TimeoutScale, wait_until
from harness.guest.image import GuestImage
from harness.qemu.machine import Machine
from harness.restore.session import SessionReplay
from harness.tests.channel.test_guestfwd import Network
from harness.tests.channel.test_ssh import Keys


class World:
    def __init__(self, folder: Path) -> None:
        self.network = Network(folder, Keys(folder))
        keys = self.network.keys
        self.image = cast(GuestImage, SimpleNamespace(client_key=keys.client_path, host_key=keys.host_line))
        self.frozen = self.network.ssh().freeze()

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

    def resuming(self, *, patience: float = 20.0, **wrong: object) -> SessionReplay:
        """:param patience: the timeout_scale: that of a session that will not be resumed may be small."""
        return SessionReplay(replace(self.frozen, **wrong), self.image, TimeoutScale(patience))  # type: ignore[arg-type]


def _wait_long(probe: Callable[[], bool], *, what: str, timeout_s: float) -> bool:
    """As a machine's, whose timeout_scale is that of a slow guest."""
    return wait_until(probe, what=what, timeout_s=20 * timeout_s)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr("harness.restore.reseed.command", lambda: "answer=0")
    made = World(tmp_path)
    yield made
    made.network.close()


@pytest.mark.parametrize("begun", [True, False])
def test_it_is_taken(world: World, begun: bool) -> None:
    session = world.resuming()
    if begun:
        session.begin()
        session.begin()
    ssh = session.take(world.machine(world.network.here))
    assert isinstance(ssh, Ssh)
    session.close()  # It is another's by now.
    assert ssh.run("echo hello", timeout_s=60).stdout == "hello\n"
    assert world.network.sshd.connections == 1
    ssh.close()


def test_there_is_none_to_be_taken(world: World) -> None:
    session = world.resuming(patience=0.2, cookie=bytes(16))
    session.begin()
    why = session.take(world.machine(world.network.here))
    assert isinstance(why, str)
    assert why
    session.close()


def test_something_else_was_said_that_time(world: World) -> None:
    """It is found out soon, since there is nobody to wait for."""
    session = world.resuming(patience=1.0, received=world.frozen.received[:-1])
    why = session.take(world.machine(world.network.here))
    assert isinstance(why, str)
    assert "the first command over the line" in why
    session.close()


def test_the_machine_has_no_line(world: World, tmp_path: Path) -> None:
    session = world.resuming()
    assert session.take(world.machine(tmp_path / "none")) == f"nobody listens on {tmp_path}/none"
    session.close()


@pytest.mark.parametrize("begun", [True, False])
def test_it_is_not_taken(world: World, begun: bool) -> None:
    """The machine did not start, say: nothing stays behind."""
    before = _working()
    session = world.resuming()
    if begun:
        session.begin()
    session.close()
    session.close()
    wait_until(lambda: _working() <= before, what="its threads to end", timeout_s=60)


def _working() -> set[threading.Thread]:
    """paramiko's threads that have to do with a line, and ours (not the server's)."""
    return {
        thread
        for thread in threading.enumerate()
        if isinstance(thread, GuestfwdTransport) or thread.name == "background"
    }
