"""Ways to transfer a migration stream from a source to its destination: transports and capabilities.

Sources: QEMU ``qapi/migration.json`` (``migrate``, ``migrate-incoming``, ``MigrationCapability``) and
``docs/devel/migration``.
"""

from __future__ import annotations

import contextlib
import math
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from harness.actions.modes import require_mode
from harness.background import Background
from harness.channel.guestfwd import unread
from harness.errors import QemuError, Unsupported
from harness.qemu.bandwidth import bandwidth, limit_bandwidth
from harness.qemu.binary import require_named_fds
from harness.qemu.machine import Machine
from harness.qemu.schema import knows_file_uris, qmp_schema

#: Bytes a second, so that post-copy begins while there is something left to copy.
_PRECOPY_BANDWIDTH = 1 << 20
#: Bytes a second. Not less than 10: QEMU divides it into tenths of a second, and 0 means no limit.
SLOW_BANDWIDTH = 100_000
_STATUS_TIMEOUT_S = 20.0
#: So many equal readings of the unread bytes in a row, 20 ms apart, mean that the stream has stalled; scaled
#: for a slow host, where QEMU may not run for a while.
_STALLED_READINGS = 25
_NO_PORT = "tcp: this QEMU does not report the port that it chose (socket-address)"


@dataclass(frozen=True)
class Stream:
    """One way to transfer a migration stream.

    :param open: makes the destination wait for the stream, if the transport allows it before ``migrate``;
        returns the source's URI.
    :param begun: called with the source after ``migrate`` was accepted.
    :param deliver: called after the source has completed; makes the destination read a stream in a file.
    :param require: raises :class:`Unsupported` when the source's QEMU does not support it.
    :param capabilities: migration capabilities that are switched on in both machines.
    :param source_capabilities: migration capabilities that are switched on in the source only.
    """

    name: str
    open: Callable[[Machine, Machine], str]
    begun: Callable[[Machine], None] = lambda _: None
    deliver: Callable[[Machine, Machine], None] = lambda _source, _destination: None
    require: Callable[[Machine], None] = lambda _: None
    capabilities: tuple[str, ...] = ()
    source_capabilities: tuple[str, ...] = ()

    def check(self, source: Machine) -> None:
        """Check, before there is a destination, that the source's QEMU supports this way; nothing is changed.

        :raises Unsupported: when it does not, with QEMU's reason.
        """
        self.require(source)
        names = (*self.capabilities, *self.source_capabilities)
        _switch(source, names, self.name, on=True)
        _switch(source, names, self.name, on=False)

    def prepare(self, source: Machine, destination: Machine) -> None:
        """Switch on the capabilities that this way of a stream needs.

        :raises Unsupported: when one of the two machines does not have them, with QEMU's reason.
        """
        for machine, capabilities in (
            (source, (*self.capabilities, *self.source_capabilities)),
            (destination, self.capabilities),
        ):
            _switch(machine, capabilities, self.name, on=True)

    def undo(self, source: Machine) -> None:
        """Switch the capabilities off again in a source whose migration did not complete."""
        _switch(source, (*self.capabilities, *self.source_capabilities), self.name, on=False)


def _switch(machine: Machine, capabilities: tuple[str, ...], stream: str, *, on: bool) -> None:
    states = [{"capability": name, "state": on} for name in capabilities]
    try:
        if states:
            machine.qmp.execute("migrate-set-capabilities", {"capabilities": states})
    except QemuError as exc:
        raise Unsupported(f"{stream}: {machine.name} has no {capabilities}: {exc.desc}") from exc


def _incoming(destination: Machine, uri: str) -> None:
    destination.qmp.execute("migrate-incoming", {"uri": uri}, watch=destination.watch_process)


def _unix(_source: Machine, destination: Machine) -> str:
    uri = f"unix:{destination.folder / 'incoming.sock'}"
    _incoming(destination, uri)
    return uri


def _tcp(_source: Machine, destination: Machine) -> str:
    _incoming(destination, "tcp:127.0.0.1:0")
    addresses = destination.qmp.execute("query-migrate").get("socket-address")
    if not addresses:
        raise Unsupported(_NO_PORT)
    (address,) = addresses
    return f"tcp:127.0.0.1:{address['port']}"


def _require_tcp(source: Machine) -> None:
    """Check that ``MigrationInfo`` has ``socket-address`` (QEMU: ``qapi/migration.json``; since 4.0)."""
    objects = [kind for kind in qmp_schema(source) if kind["meta-type"] == "object"]
    members = [{member["name"] for member in kind.get("members", ())} for kind in objects]
    if not any({"status", "ram", "socket-address"} <= names for names in members):
        raise Unsupported(_NO_PORT)


def _fd(source: Machine, destination: Machine) -> str:
    require_named_fds(destination.spec.qemu)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        source.qmp.getfd("stream", ours.fileno())
        destination.qmp.getfd("stream", theirs.fileno())
    _incoming(destination, "fd:stream")
    return "fd:stream"


def _exec(source: Machine, _destination: Machine) -> str:
    file = source.folder / "stream"
    file.unlink(missing_ok=True)
    # QEMU reports the migration as completed while cat may still write, so the file gets its name afterwards.
    return f"exec:cat > {file}.part && mv {file}.part {file}"


def _read_exec(source: Machine, destination: Machine) -> None:
    file = source.folder / "stream"
    _wait(destination, file.exists, f"the whole stream of {source.name} to be in its file")
    _incoming(destination, f"exec:cat {file}")


def _read_snapshot(source: Machine, destination: Machine) -> None:
    """The stream of a background snapshot: end the source, before the destination uses its disk."""
    source.quit()
    _read_exec(source, destination)


def _require_file(source: Machine) -> None:
    if not knows_file_uris(source):
        raise Unsupported("file: this QEMU has no file: migration URIs (they came with 8.2)")


def _file(source: Machine, _destination: Machine) -> str:
    _require_file(source)
    return f"file:{source.folder / 'stream'}"


def _read_file(source: Machine, destination: Machine) -> None:
    _incoming(destination, f"file:{source.folder / 'stream'}")


def _cpr_reboot(source: Machine, destination: Machine) -> str:
    for machine in (source, destination):
        machine.qmp.execute("migrate-set-parameters", {"mode": "cpr-reboot"})
    return _file(source, destination)


def _require_reboot(source: Machine) -> None:
    require_mode(source, "cpr-reboot")


def _unix_slow(source: Machine, destination: Machine) -> str:
    limit_bandwidth(source, _PRECOPY_BANDWIDTH)
    return _unix(source, destination)


def _unix_very_slow(source: Machine, destination: Machine) -> str:
    limit_bandwidth(source, SLOW_BANDWIDTH)
    return _unix(source, destination)


def _start_postcopy(source: Machine) -> None:
    _wait_status(source, "active", "the pre-copy phase")
    with source.qmp.listen("MIGRATION") as events:
        source.qmp.execute("migrate-start-postcopy")
        # The witness that post-copy was reached: a short pre-copy may complete first.
        _wait(
            source,
            lambda: any(event.data["status"] == "postcopy-active" for event in events.events),
            f"the post-copy phase of {source.name}",
        )


def _wait_pause(source: Machine) -> None:
    _wait_status(source, "pre-switchover", "the pause before the switch-over")


def _wait_status(machine: Machine, status: str, phase: str) -> None:
    _wait(
        machine,
        lambda: machine.qmp.execute("query-migrate").get("status") == status,
        f"{phase} of {machine.name}",
    )


def _wait(machine: Machine, condition: Callable[[], bool], what: str) -> None:
    machine.wait_until(condition, what=what, timeout_s=_STATUS_TIMEOUT_S)


UNIX = Stream("unix", _unix)
#: So slow that it needs minutes. A caller that wants it to end raises the limit.
SLOW = Stream("slow", _unix_very_slow)
#: Waits for ``migrate-continue`` when the guest is stopped and all but the last state is sent (since 2.11).
PAUSED = Stream("paused", _unix, begun=_wait_pause, source_capabilities=("pause-before-switchover",))
STREAMS = {
    stream.name: stream
    for stream in (
        UNIX,
        Stream("tcp", _tcp, require=_require_tcp),
        Stream("fd", _fd, require=lambda source: require_named_fds(source.spec.qemu)),
        Stream("exec", _exec, deliver=_read_exec),
        Stream("file", _file, deliver=_read_file, require=_require_file),
        Stream("cpr-reboot", _cpr_reboot, deliver=_read_file, require=_require_reboot),
        Stream("multifd", _unix, capabilities=("multifd",)),
        Stream(
            "postcopy",
            _unix_slow,
            begun=_start_postcopy,
            capabilities=("postcopy-ram",),
            source_capabilities=("events",),
        ),
        Stream(
            "background-snapshot",
            _exec,
            deliver=_read_snapshot,
            source_capabilities=("background-snapshot",),
        ),
    )
}


@contextmanager
def stalled(machine: Machine, *, read_first: bool = True) -> Iterator[None]:
    """A migration whose destination accepts the connection and does not read the stream.

    At the end of the context the migration is cancelled and the stream is read, because a QEMU that waits for
    the migration thread does not answer ``migrate_cancel`` before. The bandwidth is limited by then, so that
    the migration cannot complete before it is cancelled.

    :param read_first: begin to read before ``migrate_cancel``. Otherwise the migration thread is cancelled in
        the middle of a write, which then fails.
    :raises QemuError: when ``migrate`` is refused.
    """
    path, before = machine.folder / "nobody-reads.sock", bandwidth(machine)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        machine.qmp.execute("migrate", {"uri": f"unix:{path}"}, watch=machine.watch)
        connection = _accepted(machine, listener)
        with connection:
            try:
                _wait_stalled(machine, connection)
                limit_bandwidth(machine, SLOW_BANDWIDTH)
                yield
            finally:
                draining = Background(lambda: _drain(connection)) if read_first else None
                machine.qmp.execute("migrate_cancel", watch=machine.watch)
                draining = draining or Background(lambda: _drain(connection))
                draining.wait(timeout_s=machine.timeout_scale.seconds(_STATUS_TIMEOUT_S))
    limit_bandwidth(machine, before)
    path.unlink()


def _accepted(machine: Machine, listener: socket.socket) -> socket.socket:
    """QEMU's connection. QEMU answers ``migrate`` before it connects."""
    listener.setblocking(False)

    def accept() -> socket.socket | None:
        with contextlib.suppress(BlockingIOError):
            return listener.accept()[0]
        return None

    return machine.wait_until(
        accept, what=f"the connection of {machine.name}'s migration", timeout_s=_STATUS_TIMEOUT_S
    )


def _wait_stalled(machine: Machine, connection: socket.socket) -> None:
    """Wait until the socket buffer is full: bytes have arrived, and their number no longer changes."""
    sizes: list[int] = []
    count = math.ceil(machine.timeout_scale.host_seconds(_STALLED_READINGS))

    def full() -> bool:
        sizes.append(unread(connection))
        return len(sizes) >= count and sizes[-1] > 0 and len(set(sizes[-count:])) == 1

    _wait(machine, full, f"the migration stream of {machine.name} to stall")
    machine.history.note(machine.name, "stream:stalled", {"unread_bytes": sizes[-1]})


def _drain(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while connection.recv(1 << 20):
            pass
