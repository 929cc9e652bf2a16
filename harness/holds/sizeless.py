"""An ``fstatfs`` of another process that tells a block size of 0, as a file system in user space may.

The process waits in its system call meanwhile (see :mod:`harness.holds.supervisor`).
"""

from __future__ import annotations

import ctypes
import os

from harness.holds.shortened import opened

CALL = "fstatfs"
#: x86-64's ``struct statfs``: its size, where ``f_bsize`` is in it, and how long (kernel:
#: ``include/uapi/asm-generic/statfs.h``).
_SIZE, _F_BSIZE, _F_BSIZE_SIZE = 120, 8, 8


def fstatfs(tid: int, arguments: list[int]) -> int:
    """Do an ``fstatfs`` in place of thread ``tid``, but for the block size, and return what it returns.

    :param arguments: of the call: descriptor, buffer.
    :raises OSError: what the call itself would meet.
    :raises SetupError: when the thread's memory or file cannot be opened, which says nothing about the call.
    """
    descriptor, buffer = arguments[:2]
    told = ctypes.create_string_buffer(_SIZE)
    libc = ctypes.CDLL(None, use_errno=True)
    with opened(f"/proc/{tid}/fd/{descriptor}", os.O_PATH) as file:
        if libc.fstatfs(file, told) != 0:
            raise OSError(ctypes.get_errno(), CALL)
    ctypes.memset(ctypes.addressof(told) + _F_BSIZE, 0, _F_BSIZE_SIZE)
    with opened(f"/proc/{tid}/mem", os.O_RDWR) as memory:
        os.pwrite(memory, told.raw, buffer)
    return 0
