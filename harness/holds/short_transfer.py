"""Does a read or write of another process and transfers fewer bytes than requested, as any file system may.

Meanwhile the process waits in its system call (see :mod:`harness.holds.supervisor`), so its memory and its
descriptors can be used from outside.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from harness.errors import SetupError

#: The calls that can be shortened (``man 2 preadv``).
READS, WRITES = ("preadv", "preadv2"), ("pwritev", "pwritev2")
_IOVEC = struct.Struct("<QQ")
#: ``iov_base``, and how many bytes from there.
Piece = tuple[int, int]


def transfer_half(tid: int, name: str, arguments: list[int]) -> int:
    """Do the first half of a ``preadv`` or ``pwritev`` in place of thread ``tid``; at least one byte.

    :param arguments: the call's arguments: descriptor, iovec, its length, offset.
    :returns: the number of bytes transferred; fewer than half at the end of the file.
    :raises OSError: the error that the call itself would return.
    :raises SetupError: when the thread's memory or file cannot be opened, which is no result of the call.
    """
    descriptor, iovec, count, offset = arguments[:4]
    mode = os.O_RDONLY if name in READS else os.O_WRONLY
    with opened(f"/proc/{tid}/mem", os.O_RDWR) as memory:
        pieces = _first_half(_pieces(memory, iovec, count))
        with opened(f"/proc/{tid}/fd/{descriptor}", mode) as file:
            return (_read if name in READS else _write)(file, offset, memory, pieces)


@contextmanager
def opened(path: str, mode: int) -> Iterator[int]:
    """A file below ``/proc/TID`` of a thread in a short transfer, open for the duration of the context.

    :raises OSError: when the thread has ended. :raises SetupError: when the file cannot be opened.
    """
    try:
        descriptor = os.open(path, mode)
    except OSError as exc:
        if exc.errno in (errno.ENOENT, errno.ESRCH):
            raise  # The thread has ended, or has closed the file: the call itself would fail as well.
        raise SetupError(f"cannot open {path}: {exc.strerror}") from exc
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _pieces(memory: int, iovec: int, count: int) -> list[Piece]:
    return list(_IOVEC.iter_unpack(os.pread(memory, count * _IOVEC.size, iovec)))


def _first_half(pieces: list[Piece]) -> list[Piece]:
    left = max(1, sum(size for _, size in pieces) // 2)
    half = []
    for base, size in pieces:
        taken = min(size, left)
        left -= taken
        if taken:
            half.append((base, taken))
    return half


def _read(file: int, offset: int, memory: int, pieces: list[Piece]) -> int:
    done = 0
    for base, size in pieces:
        content = os.pread(file, size, offset + done)
        os.pwrite(memory, content, base)
        done += len(content)
        if len(content) < size:
            break
    return done


def _write(file: int, offset: int, memory: int, pieces: list[Piece]) -> int:
    return os.pwrite(file, b"".join(os.pread(memory, size, base) for base, size in pieces), offset)
