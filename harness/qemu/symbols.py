"""Names for places in ELF files: from their symbol tables, where a stripped binary has left any."""

from __future__ import annotations

import bisect
from functools import cache
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection


class Symbols:
    """Looks names up, one table a file, read on first use."""

    def __init__(self) -> None:
        self._table = cache(_table)

    def name(self, file: str, offset: int) -> str:
        """``function+0x12 (file)`` for a file offset, or ``file+0x1234`` where nothing is known."""
        short = Path(file).name
        starts, names = self._table(file)
        index = bisect.bisect(starts, offset) - 1
        if index >= 0:
            size, name = names[index]
            inside = offset - starts[index]
            if inside < max(size, 1):
                return f"{name}+{inside:#x} ({short})"
        return f"{short}+{offset:#x}"


def _table(file: str) -> tuple[list[int], list[tuple[int, str]]]:
    """The functions of a file by where they begin in it: that, then size and name."""
    found: dict[int, tuple[int, str]] = {}
    try:
        with Path(file).open("rb") as stream:
            elf = ELFFile(stream)
            shift = {
                (s["p_vaddr"], s["p_vaddr"] + s["p_memsz"]): s["p_vaddr"] - s["p_offset"]
                for s in elf.iter_segments("PT_LOAD")
            }
            for section in elf.iter_sections():
                if not isinstance(section, SymbolTableSection):
                    continue
                for symbol in section.iter_symbols():
                    if symbol["st_info"]["type"] == "STT_FUNC" and symbol["st_value"]:
                        value = symbol["st_value"]
                        by = next((d for (a, b), d in shift.items() if a <= value < b), 0)
                        found[value - by] = (symbol["st_size"], symbol.name)
    except (OSError, ELFError):
        return [], []
    starts = sorted(found)
    return starts, [found[start] for start in starts]
