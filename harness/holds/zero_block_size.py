"""Does an ``fstatfs`` or ``statfs`` of another process and reports a block size of 0.

A file system in user space may report that. Meanwhile the process waits in its system call (see
:mod:`harness.holds.supervisor`).
"""

from __future__ import annotations

import ctypes
import os

from harness.holds.short_transfer import opened

CALLS = ("fstatfs", "statfs")
#: x86-64's ``struct statfs``: its size, and the offset and size of ``f_bsize`` (kernel:
#: ``include/uapi/asm-generic/statfs.h``). All in bytes.
_SIZE, _F_BSIZE, _F_BSIZE_SIZE = 120, 8, 8


def statfs(tid: int, name: str, path: str, arguments: list[int]) -> int:
    """Do a call of :data:`CALLS` in place of thread ``tid``, with a block size of 0; returns its result.

    :param path: what the call ``name`` is about, if that is no descriptor.
    :param arguments: the call's arguments: descriptor or path, buffer.
    :raises OSError: the error that the call itself would return.
    :raises SetupError: when the thread's memory or file cannot be opened, which is no result of the call.
    """
    found = ctypes.create_string_buffer(_SIZE)
    libc = ctypes.CDLL(None, use_errno=True)
    where = f"/proc/{tid}/fd/{arguments[0]}" if name == "fstatfs" else path
    with opened(where, os.O_PATH) as file:
        if libc.fstatfs(file, found) != 0:
            raise OSError(ctypes.get_errno(), "fstatfs")
    ctypes.memset(ctypes.addressof(found) + _F_BSIZE, 0, _F_BSIZE_SIZE)
    with opened(f"/proc/{tid}/mem", os.O_RDWR) as memory:
        os.pwrite(memory, found.raw, arguments[1])
    return 0
