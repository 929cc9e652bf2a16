"""The first thing that a restored guest does: it takes the time of now, and random numbers of its own.

All guests of a template wake up at the same moment of the past, and would draw the same numbers. Perl could
do it as well, and a guest under TCG would need a tenth of a second more to start it.
"""

from __future__ import annotations

import os
import struct
import time

from harness.guest import elf

PROGRAM = "/run/newborn"
_READ, _OPEN, _IOCTL, _EXIT, _CLOCK_SETTIME = 0, 2, 16, 60, 227
_O_WRONLY = 1
#: ``man 4 random``: give the kernel bytes that count as random, and make it use them now.
_RNDADDENTROPY, _RNDRESEEDCRNG = 0x40085203, 0x5207
_RANDOM_BYTES = 32
_SIZE = 16 + 8 + _RANDOM_BYTES
_KEEP = b"\x89\xc3"  # mov ebx, eax
_KEPT = b"\x89\xdf"  # mov edi, ebx


def program() -> bytes:
    """A static ELF program that reads what :func:`message` says, and does it; else it exits with 1."""
    path = elf.MEMORY + 0x100
    name = b"/dev/random\0"
    store = b"".join(  # mov dword [path + at], four characters
        b"\xc7\x04\x25" + struct.pack("<I", path + at) + name[at : at + 4] for at in range(0, len(name), 4)
    )
    steps = [
        elf.call(_READ, elf.constant(0), elf.MEMORY, _SIZE) + b"\x83\xe8" + bytes([_SIZE]),  # sub eax, size
        elf.call(_CLOCK_SETTIME, elf.constant(0), elf.MEMORY),
        store + elf.call(_OPEN, elf.constant(path), _O_WRONLY, 0) + _KEEP + b"\xc1\xf8\x1f",  # sar eax, 31
        elf.call(_IOCTL, _KEPT, _RNDADDENTROPY, elf.MEMORY + 16),
        elf.call(_IOCTL, _KEPT, _RNDRESEEDCRNG, 0),
    ]
    code, end = b"", elf.call(_EXIT, elf.constant(0))
    for step in reversed(steps):  # Each but the last is followed by a jump to the bad end, if eax is not 0.
        code = step + b"\x85\xc0\x0f\x85" + struct.pack("<i", len(code) + len(end)) + code
    return elf.executable(code + end + elf.call(_EXIT, elf.constant(1)))


def command() -> str:
    """The shell's command that lets the program do it; in octal: no argument may have a NUL."""
    return "printf %b '" + "".join(f"\\0{byte:03o}" for byte in message()) + f"' | {PROGRAM}"


def message() -> bytes:
    """Now, as ``struct timespec``; 32 new random bytes, as ``struct rand_pool_info``."""
    seconds, nanoseconds = divmod(time.time_ns(), 10**9)
    pool = struct.pack("<ii", 8 * _RANDOM_BYTES, _RANDOM_BYTES) + os.urandom(_RANDOM_BYTES)
    return struct.pack("<qq", seconds, nanoseconds) + pool
