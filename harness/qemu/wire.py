"""Migration streams through our own hands, as ``fd:`` (QEMU: ``migration/fd.c``).

``exec:`` would start a shell of the host's in QEMU's environment, which may be of another release: with a
library preloaded that needs another libc, there is no shell.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.background import Background
from harness.errors import SetupError
from harness.qemu.machine import Machine

_NAME = "wire"
_CHUNK = 1 << 20
_CLOSES_WITHIN_S = 10.0


@contextmanager
def fed(machine: Machine, path: Path) -> Iterator[str]:
    """A URI for ``migrate-incoming``, from which the content of a file is read.

    :raises SetupError: when the file cannot be.
    """
    try:
        file = path.open("rb")
    except OSError as exc:
        raise SetupError(f"cannot read the stream {path}: {exc.strerror}") from exc

    def feed(ours: socket.socket) -> None:
        with contextlib.suppress(OSError):  # QEMU may give up before the end.
            ours.sendfile(file)
            ours.shutdown(socket.SHUT_WR)

    with file, _wire(machine, feed) as uri:
        yield uri


@contextmanager
def drained(machine: Machine) -> Iterator[str]:
    """A URI for ``migrate``, at which everything is read and forgotten."""

    with _wire(machine, lambda ours: _pour(ours, lambda _: None)) as uri:
        yield uri


@contextmanager
def kept(machine: Machine, path: Path) -> Iterator[str]:
    """A URI for ``migrate``; what is sent there is the content of the file ``path`` at the block's end.

    :raises SetupError: when it cannot be written.
    """
    failed: list[OSError] = []

    def keep(ours: socket.socket) -> None:
        try:
            with path.open("wb") as file:
                _pour(ours, file.write)
        except OSError as exc:
            failed.append(exc)
            ours.shutdown(socket.SHUT_RDWR)  # QEMU need not go on.

    try:
        with _wire(machine, keep, to_the_end=True) as uri:
            yield uri
    finally:
        if failed:  # Whatever QEMU made of it.
            raise SetupError(f"cannot write the stream {path}: {failed[0].strerror}")


def _pour(ours: socket.socket, into: Callable[[bytes], object]) -> None:
    while True:
        try:
            data = ours.recv(_CHUNK)
        except OSError:
            return
        if not data:
            return
        into(data)


@contextmanager
def _wire(
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
            with contextlib.suppress(OSError):
                ours.shutdown(socket.SHUT_RDWR)
            working.wait(timeout_s=_CLOSES_WITHIN_S)
