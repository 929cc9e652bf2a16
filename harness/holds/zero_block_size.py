"""Does an ``fstatfs`` of another process and reports a block size of 0, as a file system in user space may.

Meanwhile the process waits in its system call (see :mod:`harness.holds.supervisor`).
"""

from __future__ import annotations

import ctypes
import os

from harness.holds.short_transfer import opened

CALL = "fstatfs"
#: x86-64's ``struct statfs``: its size, and the offset and size of ``f_bsize`` (kernel:
#: ``include/uapi/asm-generic/statfs.h``). All in bytes.
_SIZE, _F_BSIZE, _F_BSIZE_SIZE = 120, 8, 8


def fstatfs(tid: int, arguments: list[int]) -> int:
    """Do an ``fstatfs`` in place of thread ``tid``, with a block size of 0; returns the call's result.

    :param arguments: the call's arguments: descriptor, buffer.
    :raises OSError: the error that the call itself would return.
    :raises SetupError: when the thread's memory or file cannot be opened, which is no result of the call.
    """
    descriptor, buffer = arguments[:2]
    statfs = ctypes.create_string_buffer(_SIZE)
    libc = ctypes.CDLL(None, use_errno=True)
    with opened(f"/proc/{tid}/fd/{descriptor}", os.O_PATH) as file:
        if libc.fstatfs(file, statfs) != 0:
            raise OSError(ctypes.get_errno(), CALL)
    ctypes.memset(ctypes.addressof(statfs) + _F_BSIZE, 0, _F_BSIZE_SIZE)
    with opened(f"/proc/{tid}/mem", os.O_RDWR) as memory:
        os.pwrite(memory, statfs.raw, buffer)
    return 0
