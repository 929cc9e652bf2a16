from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from harness.actions import stream
from harness.actions.stream import SLOW_BANDWIDTH, STREAMS, stalled
from harness.deadline import TimeoutScale
from harness.errors import QemuDied, Unsupported, WaitTimeout
from harness.qemu.machine import Machine
from harness.tests.fakes import World

#: What the machine had before, in bytes per second.
_BANDWIDTH = 12345


class _Sender:
    """A migration thread: sends until the socket is full, ends when cancelled and its bytes are read."""

    def __init__(self, size: int) -> None:
        self.size, self.sent = size, 0
        self._thread: threading.Thread | None = None

    def begin(self, arguments: Any) -> dict[str, Any]:
        self._thread = threading.Thread(target=self._send, args=(arguments["uri"].removeprefix("unix:"),))
        self._thread.start()
        return {}

    def _send(self, path: str) -> None:
        with socket.socket(socket.AF_UNIX) as ours:
            ours.connect(path)
            for _ in range(self.size):
                ours.sendall(b"x" * 1024)
                self.sent += 1

    def join(self, _: Any = None) -> dict[str, Any]:
        assert self._thread is not None
        self._thread.join(10)
        return {}


@pytest.fixture
def sender(world: World) -> Iterator[_Sender]:
    made = _Sender(size=4096)
    world.qmp.on("migrate", made.begin)
    world.qmp.on("migrate_cancel", {})
    world.qmp.on("query-migrate-parameters", {"max-bandwidth": _BANDWIDTH})
    world.qmp.on("migrate-set-parameters", {})
    yield made
    made.join()


def test_the_stream_is_read_only_at_the_end(world: World, sender: _Sender) -> None:
    world.machine.timeout_scale = type(world.machine.timeout_scale)(1.0)
    with stalled(cast(Machine, world.machine)):
        assert 0 < sender.sent < sender.size
        assert "migrate_cancel" not in world.qmp.commands
    sender.join()
    assert sender.sent == sender.size
    assert _limits(world) == [SLOW_BANDWIDTH, _BANDWIDTH]
    assert world.qmp.commands[-2:] == ["migrate_cancel", "migrate-set-parameters"]
    assert not (world.machine.folder / "nobody-reads.sock").exists()


def _limits(world: World) -> list[int]:
    return [
        arguments["max-bandwidth"]
        for command, arguments in world.qmp.sent
        if command == "migrate-set-parameters"
    ]


@pytest.mark.parametrize(("host_factor", "readings"), [(1.0, 25), (3.0, 75)])
def test_a_stream_is_stalled_when_nothing_arrives_for_a_while(
    world: World, monkeypatch: pytest.MonkeyPatch, host_factor: float, readings: int
) -> None:
    """On a slow host QEMU may not run for longer."""
    read: list[int] = []

    def unread(_: object) -> int:
        read.append(1)
        return 1

    def wait(probe: Callable[[], bool], **_: object) -> None:
        while not probe():
            pass

    monkeypatch.setattr(stream, "unread", unread)
    monkeypatch.setattr(world.machine, "wait_until", wait)
    world.machine.timeout_scale = TimeoutScale(host_factor, host_factor)
    with socket.socket() as connection:
        stream._wait_stalled(cast(Machine, world.machine), connection)
    assert len(read) == readings


def test_a_stream_that_never_begins_is_not_stalled(world: World, sender: _Sender) -> None:
    def cancel(_: Any) -> dict[str, Any]:
        # What follows does come, and may take its time.
        world.machine.timeout_scale = type(world.machine.timeout_scale)(1.0)
        return {}

    def connect(arguments: Any) -> dict[str, Any]:
        sender.begin(arguments)
        return sender.join()

    sender.size = 0
    world.qmp.on("migrate", connect)
    world.qmp.on("migrate_cancel", cancel)
    world.impatient()
    with (
        pytest.raises(WaitTimeout, match="the migration stream of source to stall"),
        stalled(cast(Machine, world.machine)),
    ):
        pass


def test_a_qemu_that_dies_before_it_connects(world: World) -> None:
    def die(_: Any) -> dict[str, Any]:
        world.machine.death = QemuDied("QEMU 'source' was killed by SIGSEGV")
        return {}

    world.qmp.on("query-migrate-parameters", {"max-bandwidth": _BANDWIDTH})
    world.qmp.on("migrate", die)
    socket.setdefaulttimeout(0.1)  # Otherwise a blocking accept would wait for ever.
    try:
        with pytest.raises(QemuDied), stalled(cast(Machine, world.machine)):
            pass
    finally:
        socket.setdefaulttimeout(None)


@pytest.mark.parametrize("way", ["exec", "background-snapshot"])
def test_a_file_is_read_when_its_writer_has_ended(
    world: World, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """QEMU has sent all of the stream when it reports the migration as completed: cat has yet to write."""
    machine = cast(Machine, world.machine)
    (world.machine.folder / "stream").write_bytes(b"of an earlier migration")
    command = STREAMS[way].open(machine, machine).removeprefix("exec:")
    read: list[bytes] = []

    def incoming(arguments: Any) -> dict[str, Any]:
        shown = subprocess.run(arguments["uri"].removeprefix("exec:"), shell=True, capture_output=True)
        read.append(shown.stdout)
        return {}

    world.qmp.on("migrate-incoming", incoming)
    with subprocess.Popen(command, shell=True, stdin=subprocess.PIPE) as writer:

        def watch() -> None:  # Called by a wait, after its first look.
            writer.communicate(b"the stream")

        monkeypatch.setattr(world.machine, "watch", watch)
        STREAMS[way].deliver(machine, machine)
        writer.kill()
    assert read == [b"the stream"]


def _schema(world: World, *kinds: dict[str, Any]) -> None:
    world.qmp.on("query-qmp-schema", list(kinds))


@pytest.mark.parametrize(
    ("way", "words"),
    [("tcp", "does not report the port"), ("file", "has no file: migration URIs")],
)
def test_what_a_qemu_cannot_do_is_known_before_anything_is_plugged(
    world: World, way: str, words: str
) -> None:
    _schema(world, {"meta-type": "object", "members": [{"name": "status"}, {"name": "ram"}]})
    with pytest.raises(Unsupported, match=words):
        STREAMS[way].check(cast(Machine, world.machine))


@pytest.mark.parametrize("way", ["tcp", "file", "unix", "exec"])
def test_what_a_qemu_can_do(world: World, way: str) -> None:
    info = [{"name": name} for name in ("status", "ram", "socket-address", "error-desc")]
    transports = {"meta-type": "enum", "values": ["socket", "exec", "rdma", "file"]}
    _schema(world, {"meta-type": "object", "members": info}, transports)
    STREAMS[way].check(cast(Machine, world.machine))


def test_a_capability_is_tried_and_switched_off_again(world: World) -> None:
    world.qmp.on("migrate-set-capabilities", {})
    STREAMS["postcopy"].check(cast(Machine, world.machine))
    tried = [
        [(one["capability"], one["state"]) for one in arguments["capabilities"]]
        for _, arguments in world.qmp.sent
    ]
    assert tried == [[("postcopy-ram", on), ("events", on)] for on in (True, False)]
    world.qmp.refuse("migrate-set-capabilities", "Postcopy is not supported")
    with pytest.raises(Unsupported, match="Postcopy is not supported"):
        STREAMS["postcopy"].check(cast(Machine, world.machine))
