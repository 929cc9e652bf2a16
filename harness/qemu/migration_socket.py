"""Migration streams through our own hands: out of QEMU as ``fd:``, into it as ``unix:``.

(QEMU: ``migration/fd.c``, which for an incoming stream knows names of descriptors since 4.1 only.) ``exec:``
would start a shell of the host's in QEMU's environment, which may be of another release: with a library
preloaded that needs another libc, there is no shell.
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
_CLOSES_WITHIN_S = 10.0


@contextmanager
def stream_from_file(machine: Machine, path: Path) -> Iterator[None]:
    """``migrate-incoming``, and the content of a file on its way to a machine that waits for it.

    :raises SetupError: when the file cannot be read. :raises QemuError: when QEMU refuses.
    :raises ChannelLost: when it does not listen; or why.
    """
    try:
        file = path.open("rb")
    except OSError as exc:
        raise SetupError(f"cannot read the stream {path}: {exc.strerror}") from exc
    door = machine.folder / f"{_NAME}.sock"

    def feed() -> None:
        with contextlib.suppress(OSError):  # QEMU may give up before the end.
            ours.sendfile(file)
            ours.shutdown(socket.SHUT_WR)

    with file, socket.socket(socket.AF_UNIX) as ours:
        machine.qmp.execute("migrate-incoming", {"uri": f"unix:{door}"}, watch=machine.watch)
        try:
            ours.connect(str(door))
        except OSError as exc:
            lost = ChannelLost(f"QEMU {machine.name!r} does not listen for its stream: {exc.strerror}")
            raise machine.root_cause(lost) from exc
        feeding = Background(feed)
        try:
            yield
        finally:
            _shut_down(ours, feeding)
    door.unlink(missing_ok=True)  # Not every QEMU does.


@contextmanager
def discarded_stream(machine: Machine) -> Iterator[str]:
    """A URI for ``migrate``, at which everything is read and forgotten."""

    with _outgoing_fd(machine, lambda ours: _copy(ours, lambda _: None)) as uri:
        yield uri


@contextmanager
def stream_to_file(machine: Machine, path: Path) -> Iterator[str]:
    """A URI for ``migrate``; what is sent there is the content of the file ``path`` at the block's end.

    :raises SetupError: when it cannot be written.
    """
    failed: list[OSError] = []

    def keep(ours: socket.socket) -> None:
        try:
            with path.open("wb") as file:
                _copy(ours, file.write)
        except OSError as exc:
            failed.append(exc)
            ours.shutdown(socket.SHUT_RDWR)  # QEMU need not go on.

    try:
        with _outgoing_fd(machine, keep, to_the_end=True) as uri:
            yield uri
    finally:
        if failed:  # Whatever QEMU made of it.
            raise SetupError(f"cannot write the stream {path}: {failed[0].strerror}")


def _copy(ours: socket.socket, into: Callable[[bytes], object]) -> None:
    while True:
        try:
            data = ours.recv(_CHUNK)
        except OSError:
            return
        if not data:
            return
        into(data)


@contextmanager
def _outgoing_fd(
    machine: Machine, work: Callable[[socket.socket], None], *, to_the_end: bool = False
) -> Iterator[str]:
    """:param to_the_end: when the block has ended well, wait until QEMU has closed its end."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            machine.qmp.getfd(_NAME, theirs.fileno())
        working = Background(lambda: work(ours))
        try:
            yield f"fd:{_NAME}"
            if to_the_end:
                working.wait(timeout_s=_CLOSES_WITHIN_S)
        finally:
            _shut_down(ours, working)


def _shut_down(ours: socket.socket, working: Background[None]) -> None:
    with contextlib.suppress(OSError):
        ours.shutdown(socket.SHUT_RDWR)
    working.wait(timeout_s=_CLOSES_WITHIN_S)
