"""The first thing that a restored guest does: it takes the time of now, and random numbers of its own.

All guests of a template wake up at the same moment of the past, and would draw the same numbers. The program
that sees to it waits in the template already: under TCG, to start one takes a guest as long as its whole SSH
session does, and Perl ten times that.
"""

from __future__ import annotations

import os
import struct
import time

from harness.guest import elf

PROGRAM = "/run/reseed"
#: Pipes with a name: what the program is told, and its answer.
_SUBMITTED, _ANSWER = f"{PROGRAM}.told", f"{PROGRAM}.answer"
SUBMIT = f"echo {{}} >{_SUBMITTED}; read -r answer <{_ANSWER}"
_READ, _WRITE, _OPEN, _IOCTL, _EXIT, _CLOCK_SETTIME = 0, 1, 2, 16, 60, 227
_O_WRONLY = 1
#: ``man 4 random``: give the kernel bytes that count as random, and make it use them now.
_RNDADDENTROPY, _RNDRESEEDCRNG = 0x40085203, 0x5207
_RANDOM_BYTES = 32
MESSAGE_SIZE = 16 + 8 + _RANDOM_BYTES
_PATH, _VERDICT, _TEXT = (elf.MEMORY + at for at in (0x100, 0x200, 0x300))
_KEEP = b"\x89\xc3"  # mov ebx, eax
_KEPT = b"\x89\xdf"  # mov edi, ebx
_FAILED = b"\x85\xc0\x0f\x85"  # test eax, eax; jnz …


def program() -> bytes:
    """A static ELF program: told a :func:`message`, again and again, it does it, and answers with a line.

    The answer is 0, or which step failed. What is no message ends it.
    """
    opened = _store(_PATH, b"/dev/random\0") + elf.call(_OPEN, elf.constant(_PATH), _O_WRONLY, 0) + _KEEP
    size = 2 * MESSAGE_SIZE + 1
    told = elf.call(_READ, elf.constant(0), _TEXT, size) + b"\x2d" + struct.pack("<I", size)  # sub eax, size
    steps = [
        elf.call(_CLOCK_SETTIME, elf.constant(0), elf.MEMORY),
        elf.call(_IOCTL, _KEPT, _RNDADDENTROPY, elf.MEMORY + 16),
        elf.call(_IOCTL, _KEPT, _RNDRESEEDCRNG, 0),
    ]
    done = _store(_VERDICT, b"0\n\0\0")
    for number, step in reversed(list(enumerate(steps, 1))):
        done = _store(_VERDICT, b"%d\n\0\0" % number) + step + _FAILED + struct.pack("<i", len(done)) + done
    done = _decode() + done + elf.call(_WRITE, elf.constant(1), _VERDICT, 2)
    again = b"\xe9" + struct.pack("<i", -(len(told) + len(_FAILED) + 4 + len(done) + 5))  # jmp
    loop = told + _FAILED + struct.pack("<i", len(done) + len(again)) + done + again
    return elf.executable(opened + loop + elf.call(_EXIT, elf.constant(1)))


def _decode() -> bytes:
    """Code that makes the message of its text: two letters a byte."""
    nibble = b"\xac\x2c\x61"  # lodsb; sub al, 'a'
    # shl al, 4; mov dl, al; …; or al, dl; stosb
    both = nibble + b"\xc0\xe0\x04\x88\xc2" + nibble + b"\x08\xd0\xaa"
    # mov esi, …; mov edi, …; mov ecx, …
    registers = ((b"\xbe", _TEXT), (b"\xbf", elf.MEMORY), (b"\xb9", MESSAGE_SIZE))
    begin = b"".join(opcode + struct.pack("<I", value) for opcode, value in registers)
    return begin + both + b"\xe2" + struct.pack("<b", -len(both) - 2)  # loop


def _store(at: int, data: bytes) -> bytes:
    """Code that puts ``data`` into memory, four bytes at a time: ``mov dword [at], …``."""
    words = (data[position : position + 4] for position in range(0, len(data), 4))
    return b"".join(b"\xc7\x04\x25" + struct.pack("<I", at + 4 * n) + word for n, word in enumerate(words))


def start_command() -> str:
    """The shell's command that installs the program, from its stdin, and lets it wait."""
    # Opened for both, so that nobody waits for another who opens it, and no end of file is seen.
    pipes = f"<>{_SUBMITTED} 1<>{_ANSWER} 2>/dev/null"
    installed = f"cat >{PROGRAM} && chmod +x {PROGRAM} && mkfifo {_SUBMITTED} {_ANSWER}"
    return f"{installed} && {{ setsid {PROGRAM} {pipes} & }}"


def command() -> str:
    """What a shell is told so that the program acts (``inside`` of :meth:`.RemoteShell.submit`)."""
    return SUBMIT.format(text(message()))


def text(said: bytes) -> str:
    """A message as the program is told it: no argument of a command may have a NUL."""
    return "".join(chr(ord("a") + nibble) for byte in said for nibble in divmod(byte, 16))


def message() -> bytes:
    """Now, as ``struct timespec``; 32 new random bytes, as ``struct rand_pool_info``."""
    seconds, nanoseconds = divmod(time.time_ns(), 10**9)
    pool = struct.pack("<ii", 8 * _RANDOM_BYTES, _RANDOM_BYTES) + os.urandom(_RANDOM_BYTES)
    return struct.pack("<qq", seconds, nanoseconds) + pool
