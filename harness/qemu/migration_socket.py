"""Migration streams to and from files: out of QEMU through ``fd:``, into it through ``unix:``.

``fd:`` accepts names of descriptors for an incoming stream only since 4.1 (QEMU: ``migration/fd.c``).
``exec:`` is not used: it starts a shell of the host in QEMU's environment, which fails if that environment
preloads a library that needs another libc than the host's.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.background import Background
from harness.errors import ChannelLost, SetupError
from harness.qemu.machine import Machine

_NAME = "migration"
_CHUNK = 1 << 20
#: Seconds, scaled for a slow host only, in which the end of a stream must be read and written.
_CLOSES_WITHIN_S = 10.0


@contextmanager
def stream_from_file(machine: Machine, path: Path) -> Iterator[None]:
    """Run ``migrate-incoming``, and send the content of the file ``path`` during the block.

    :raises SetupError: when the file cannot be read. :raises QemuError: when QEMU refuses the command.
    :raises ChannelLost: when QEMU does not listen, unless a root cause is known.
    """
    try:
        file = path.open("rb")
    except OSError as exc:
        raise SetupError(f"cannot read the stream {path}: {exc.strerror}") from exc
    address = machine.folder / f"{_NAME}.sock"

    def send() -> None:
        with contextlib.suppress(OSError):  # QEMU may close the connection before the end.
            connection.sendfile(file)
            connection.shutdown(socket.SHUT_WR)

    with file, socket.socket(socket.AF_UNIX) as connection:
        machine.qmp.execute("migrate-incoming", {"uri": f"unix:{address}"}, watch=machine.watch)
        try:
            connection.connect(str(address))
        except OSError as exc:
            lost = ChannelLost(
                f"QEMU {machine.name!r} does not listen for the migration stream: {exc.strerror}"
            )
            raise machine.root_cause(lost) from exc
        sending = Background(send)
        try:
            yield
        finally:
            _shut_down(machine, connection, sending)
    address.unlink(missing_ok=True)  # Not every QEMU removes it.


@contextmanager
def discarded_stream(machine: Machine) -> Iterator[str]:
    """A URI for ``migrate``; what arrives at the migration socket is read and discarded."""
    with _outgoing_fd(machine, lambda connection: _copy(connection, lambda _: None)) as uri:
        yield uri


@contextmanager
def stream_to_file(machine: Machine, path: Path) -> Iterator[str]:
    """A URI for ``migrate``; at the end of the block the file ``path`` has the stream.

    :raises SetupError: when the file cannot be written.
    """
    failed: list[OSError] = []

    def write(connection: socket.socket) -> None:
        try:
            with path.open("wb") as file:
                _copy(connection, file.write)
        except OSError as exc:
            failed.append(exc)
            connection.shutdown(socket.SHUT_RDWR)  # Makes QEMU's migration fail.

    try:
        with _outgoing_fd(machine, write, to_the_end=True) as uri:
            yield uri
    finally:
        if failed:  # This is the root cause of whatever QEMU reported.
            raise SetupError(f"cannot write the stream {path}: {failed[0].strerror}")


def _copy(connection: socket.socket, into: Callable[[bytes], object]) -> None:
    while True:
        try:
            data = connection.recv(_CHUNK)
        except OSError:
            return
        if not data:
            return
        into(data)


@contextmanager
def _outgoing_fd(
    machine: Machine, work: Callable[[socket.socket], None], *, to_the_end: bool = False
) -> Iterator[str]:
    """A URI for ``migrate`` whose stream ``work`` reads from a migration socket, in the background.

    :param to_the_end: at the end of the block, unless it raised, wait until QEMU has closed its end.
    """
    connection, qemu_end = socket.socketpair()
    with connection:
        with qemu_end:
            machine.qmp.getfd(_NAME, qemu_end.fileno())
        working = Background(lambda: work(connection))
        try:
            yield f"fd:{_NAME}"
            if to_the_end:
                working.wait(timeout_s=machine.timeout_scale.host_seconds(_CLOSES_WITHIN_S))
        finally:
            _shut_down(machine, connection, working)


def _shut_down(machine: Machine, connection: socket.socket, working: Background[None]) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    working.wait(timeout_s=machine.timeout_scale.host_seconds(_CLOSES_WITHIN_S))
