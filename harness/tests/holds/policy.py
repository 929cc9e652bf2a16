"""A host whose policy refuses a system call.

Run as ``python -m harness.tests.holds.policy CALL ANSWER -- COMMAND…``. ``CALL`` is a name of
:data:`NUMBERS`, or ``NAME:ARGUMENT`` for those calls with this second argument alone. ``ANSWER`` is the errno
with which it fails in ``COMMAND`` and all that it starts, or ``hang``: it never returns.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys

from harness.holds import seccomp

RECEIVE, SEND = "ioctl:3226476800", "ioctl:3222806785"
NUMBERS = {"seccomp": 317, "ioctl": 16}
#: kernel: include/uapi/linux/seccomp.h, SECCOMP_RET_ERRNO; struct seccomp_data, the low half of args[1].
_RET_ERRNO, _OFFSET_SECOND = 0x00050000, 24


def program(number: int, second: int | None, action: int) -> bytes:
    """A BPF program that answers the call ``number``, with that second argument if any, by ``action``."""
    lines = [
        (seccomp._LD_W_ABS, 0, 0, seccomp._OFFSET_NR),
        (seccomp._JEQ_K, 0, 3 if second is not None else 1, number),
        *(
            [(seccomp._LD_W_ABS, 0, 0, _OFFSET_SECOND), (seccomp._JEQ_K, 0, 1, second)]
            if second is not None
            else []
        ),
        (seccomp._RET_K, 0, 0, action),
        (seccomp._RET_K, 0, 0, seccomp._ALLOW),
    ]
    return b"".join(struct.pack("<HBBI", *line) for line in lines)


def impose(call: str, answer: str) -> None:
    """Apply the policy to this process, for good."""
    name, _, second = call.partition(":")
    hang = answer == "hang"
    action = seccomp._USER_NOTIF if hang else _RET_ERRNO | int(answer)
    code = ctypes.create_string_buffer(program(NUMBERS[name], int(second) if second else None, action))
    filter_ = ctypes.create_string_buffer(
        struct.pack("<HxxxxxxQ", (len(code) - 1) // 8, ctypes.addressof(code))
    )
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(seccomp._PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    flags = seccomp._FLAG_NEW_LISTENER if hang else 0
    descriptor = libc.syscall(NUMBERS["seccomp"], seccomp._SET_MODE_FILTER, flags, filter_)
    assert descriptor >= 0, os.strerror(ctypes.get_errno())
    if hang:
        os.set_inheritable(descriptor, True)  # Never read; while it is open, the call waits.


def under(call: str, answer: str, *command: str) -> list[str]:
    """The command line that runs ``command`` on such a host."""
    return [sys.executable, "-m", "harness.tests.holds.policy", call, answer, "--", *command]


if __name__ == "__main__":
    impose(sys.argv[1], sys.argv[2])
    os.execvp(sys.argv[4], sys.argv[4:])
