"""Function names for offsets and addresses in ELF files, from their symbol tables."""

from __future__ import annotations

import bisect
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

#: ``Elf64_Sym`` (``man 5 elf``): st_name, st_info, st_other, st_shndx, st_value, st_size.
_SYMBOL = struct.Struct("<IBBHQQ")
#: ``STT_FUNC``, in the low half of ``st_info``.
_FUNCTION = 2


def name(file: str, offset: int) -> str:
    """``function+0x12 (file)`` for a file offset, or ``file+0x1234`` if no symbol covers it."""
    short = Path(file).name
    starts, names = _table(file).functions
    index = bisect.bisect(starts, offset) - 1
    if index >= 0:
        size, function = names[index]
        inside = offset - starts[index]
        if inside < max(size, 1):
            return f"{function}+{inside:#x} ({short})"
    return f"{short}+{offset:#x}"


def at_address(file: str, address: int) -> str:
    """The function at an address of an ELF file's address space (``p_vaddr``), as :func:`name` has it."""
    return name(file, address - _shift(_table(file).segments, address))


@dataclass(frozen=True)
class _Table:
    """The symbols of a file.

    :ivar functions: the sorted file offsets of the functions; their sizes and names.
    :ivar segments: the difference between address and file offset, for each range of addresses.
    """

    functions: tuple[list[int], list[tuple[int, str]]]
    segments: dict[tuple[int, int], int]


def _shift(segments: dict[tuple[int, int], int], address: int) -> int:
    return next((by for (start, end), by in segments.items() if start <= address < end), 0)


def _table(file: str) -> _Table:
    """The symbol table of ``file``; cached until the file changes."""
    try:
        found = Path(file).stat()
    except OSError:
        return _Table(([], []), {})
    return _read(file, found.st_mtime_ns, found.st_size)


@cache
def _read(file: str, _mtime_ns: int, _size: int) -> _Table:
    found: dict[int, tuple[int, str]] = {}
    shift: dict[tuple[int, int], int] = {}
    try:
        with Path(file).open("rb") as stream:
            elf = ELFFile(stream)
            shift = {
                (s["p_vaddr"], s["p_vaddr"] + s["p_memsz"]): s["p_vaddr"] - s["p_offset"]
                for s in elf.iter_segments("PT_LOAD")
            }
            for value, size, function in _functions(elf):
                found[value - _shift(shift, value)] = (size, function)
    except (OSError, ELFError, struct.error):
        return _Table(([], []), {})
    starts = sorted(found)
    return _Table((starts, [found[start] for start in starts]), shift)


def _functions(elf: ELFFile) -> Iterator[tuple[int, int, str]]:
    """Address, size and name of each function in a symbol table.

    pyelftools' own iteration takes 30 µs for each symbol.
    """
    if elf.elfclass != 64 or not elf.little_endian:
        return  # Not a QEMU for an x86-64 host.
    for section in elf.iter_sections():
        if not isinstance(section, SymbolTableSection):
            continue
        names = section.stringtable.data()
        for name_at, info, _, _, value, size in _SYMBOL.iter_unpack(section.data()):
            if info & 0xF == _FUNCTION and value:
                yield value, size, names[name_at : names.find(b"\0", name_at)].decode(errors="replace")
