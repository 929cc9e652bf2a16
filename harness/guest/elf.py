"""Static x86-64 programs of a few dozen bytes: what no shell command does, or Perl is too slow for."""

from __future__ import annotations

import struct

_BASE = 0x400000
_HEADERS = 64 + 56
_PAGE = 0x1000
#: Where :func:`executable` puts the program's memory.
MEMORY = _BASE + _PAGE
_READ, _EXECUTE, _WRITE = 4, 1, 2


def executable(code: bytes) -> bytes:
    """A static ELF file of one segment: ``code``, which is entered at its beginning, and a page of memory.

    Source: ``man 5 elf``.
    """
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01" + bytes(9),
        2,  # ET_EXEC
        62,  # EM_X86_64
        1,
        _BASE + _HEADERS,  # e_entry: right behind the two headers
        64,  # e_phoff
        0,
        0,
        64,
        56,
        1,
        0,
        0,
        0,
    )
    size = _HEADERS + len(code)
    assert size <= _PAGE
    flags = _READ | _WRITE | _EXECUTE
    segment = struct.pack("<IIQQQQQQ", 1, flags, 0, _BASE, _BASE, size, 2 * _PAGE, _PAGE)  # PT_LOAD
    return header + segment + code


def call(number: int, first: bytes = b"", *others: int) -> bytes:
    """A system call: its number, code that sets its first argument, and its second and third.

    The result is in ``eax`` afterwards (``man 2 syscall``).
    """
    code = first
    for opcode, value in zip((b"\xbe", b"\xba"), others, strict=False):  # mov esi, value; mov edx, value
        code += opcode + struct.pack("<I", value)
    return code + b"\xb8" + struct.pack("<I", number) + b"\x0f\x05"  # mov eax, number; syscall


def constant(value: int) -> bytes:
    """``mov edi, value``: a first argument."""
    return b"\xbf" + struct.pack("<I", value)
