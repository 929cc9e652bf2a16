"""Seccomp user notification: chosen system calls of a process wait for the decision of a supervisor.

Run as a program (``python seccomp.py SOCKET CALLS -- COMMAND…``), this file installs the filter, sends the
listening descriptor over the unix socket ``SOCKET``, and executes ``COMMAND``. Nothing has to be compiled,
preloaded or mounted, and the command's binary may be stripped or static. It imports only the standard
library, because it runs on its own. On failure it prints one line and exits with :data:`FAILED`.

Sources: ``man 2 seccomp``, ``man 2 seccomp_unotify``; kernel ``include/uapi/linux/seccomp.h``.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import sys
from pathlib import Path

#: The system calls that QEMU's local fsdev makes for a 9p request, by x86-64 number
#: (QEMU: ``hw/9pfs/9p-local.c``; kernel: ``arch/x86/entry/syscalls/syscall_64.tbl``).
CALLS = {
    "preadv": 295,
    "pwritev": 296,
    "preadv2": 327,
    "pwritev2": 328,
    "fsync": 74,
    "fdatasync": 75,
    "newfstatat": 262,
    "getdents64": 217,
    "openat": 257,
    "unlinkat": 263,
    "renameat": 264,
    "mkdirat": 258,
    "fstatfs": 138,
    "lsetxattr": 189,
    # libc 2.41 uses it for open files; libc 2.36 uses newfstatat.
    "fstat": 5,
    # Local fsdevs before 2.9 name files by their whole path; older libcs read folders with getdents.
    "lstat": 6,
    "getdents": 78,
    "mkdir": 83,
    "rename": 82,
    "unlink": 87,
    "rmdir": 84,
    "setxattr": 188,
    "statfs": 137,
    # An fsdev without preadv(2) sets the file's position, and makes these (before 0.14).
    "readv": 19,
    "writev": 20,
}
#: The exit status when the filter cannot be installed or handed over (the same as ``env``'s, ``man 1 env``).
FAILED = 125
_SYS_SECCOMP = 317
_SET_MODE_FILTER = 1
_FLAG_NEW_LISTENER = 1 << 3
_PR_SET_NO_NEW_PRIVS = 38
_ARCH_X86_64 = 0xC000003E
_ALLOW, _USER_NOTIF = 0x7FFF0000, 0x7FC00000
# Classic BPF (kernel: include/uapi/linux/bpf_common.h): load a word, jump if equal, return.
_LD_W_ABS, _JEQ_K, _RET_K = 0x20, 0x15, 0x06
_OFFSET_NR, _OFFSET_ARCH = 0, 4


def program(numbers: list[int]) -> bytes:
    """A BPF program that notifies for the system calls ``numbers`` and allows all others."""
    count = len(numbers)
    lines = [
        (_LD_W_ABS, 0, 0, _OFFSET_ARCH),
        (_JEQ_K, 1, 0, _ARCH_X86_64),
        (_RET_K, 0, 0, _ALLOW),
        (_LD_W_ABS, 0, 0, _OFFSET_NR),
        *((_JEQ_K, count - index, 0, number) for index, number in enumerate(numbers)),
        (_RET_K, 0, 0, _ALLOW),
        (_RET_K, 0, 0, _USER_NOTIF),
    ]
    return b"".join(struct.pack("<HBBI", *line) for line in lines)


def install(numbers: list[int]) -> int:
    """Install the seccomp filter in this process; it cannot be removed. Returns the listening descriptor.

    :raises OSError: when the kernel refuses it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise _refused("prctl(PR_SET_NO_NEW_PRIVS)")
    code = ctypes.create_string_buffer(program(numbers))
    sock_fprog = struct.pack("<HxxxxxxQ", (len(code) - 1) // 8, ctypes.addressof(code))
    argument = ctypes.create_string_buffer(sock_fprog)
    descriptor = libc.syscall(_SYS_SECCOMP, _SET_MODE_FILTER, _FLAG_NEW_LISTENER, argument)
    if descriptor < 0:
        raise _refused("seccomp(SECCOMP_FILTER_FLAG_NEW_LISTENER)")
    return int(descriptor)


def _refused(call: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{call}: {os.strerror(number)}")


def launcher(path: Path) -> tuple[str, ...]:
    """The arguments to put before a command so that it runs under a seccomp filter of :data:`CALLS`.

    :param path: the unix socket to which the listening descriptor is sent.
    """
    return (sys.executable, str(Path(__file__)), str(path), ",".join(CALLS), "--")


def _main(path: str, calls: str, command: list[str]) -> None:
    try:
        descriptor = install([CALLS[name] for name in calls.split(",")])
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as to:
            to.connect(path)
            socket.send_fds(to, [b"!"], [descriptor])
        os.close(descriptor)
    except OSError as exc:
        print(f"no filter with user notification: {exc}", file=sys.stderr)
        sys.exit(FAILED)
    os.execv(command[0], command)


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], sys.argv[4:])
