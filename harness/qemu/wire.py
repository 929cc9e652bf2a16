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

    def drain(ours: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while ours.recv(_CHUNK):
                pass

    with _wire(machine, drain) as uri:
        yield uri


@contextmanager
def _wire(machine: Machine, work: Callable[[socket.socket], None]) -> Iterator[str]:
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            machine.qmp.getfd(_NAME, theirs.fileno())
        working = Background(lambda: work(ours))
        try:
            yield f"fd:{_NAME}"
        finally:
            with contextlib.suppress(OSError):
                ours.shutdown(socket.SHUT_RDWR)
            working.wait(timeout_s=10)
