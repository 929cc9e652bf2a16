from __future__ import annotations

from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from harness.qemu import symbols


@pytest.fixture
def library() -> Path:
    """A stripped file with functions: this process's own libc."""
    maps = Path("/proc/self/maps").read_text().split()
    return next(Path(word) for word in maps if Path(word).name.startswith("libc.so"))


def test_every_function_is_named_as_pyelftools_names_it(library: Path) -> None:
    expected: dict[int, set[str]] = {}
    with library.open("rb") as stream:
        section = ELFFile(stream).get_section_by_name(".dynsym")
        assert isinstance(section, SymbolTableSection)
        for symbol in section.iter_symbols():
            if symbol["st_info"]["type"] == "STT_FUNC" and symbol["st_value"]:
                expected.setdefault(symbol["st_value"], set()).add(symbol.name)
    assert len(expected) > 1000
    for address, names in expected.items():
        found = symbols.at_address(str(library), address)
        assert found in {f"{name}+0x0 ({library.name})" for name in names}


def test_inside_and_outside_of_a_function(library: Path) -> None:
    table = symbols._table(str(library)).functions
    size, name = table[1][0]
    assert symbols.name(str(library), table[0][0] + size - 1) == f"{name}+{size - 1:#x} ({library.name})"
    assert symbols.name(str(library), 1) == f"{library.name}+0x1"


def _broken(library: Path, folder: Path, field: str, value: int) -> Path:
    """A copy whose section header of ``.dynsym`` has another value there (below 0: from the file's end)."""
    content = bytearray(library.read_bytes())
    with library.open("rb") as stream:
        elf = ELFFile(stream)
        index = elf.get_section_index(".dynsym")
    at = elf["e_shoff"] + index * elf["e_shentsize"] + {"sh_offset": 24, "sh_size": 32}[field]
    content[at : at + 8] = (value if value >= 0 else len(content) + value).to_bytes(8, "little")
    file = folder / "libc"
    file.write_bytes(content)
    return file


@pytest.mark.parametrize(
    ("field", "value"), [("sh_size", 24 * 10 + 5), ("sh_offset", 1 << 40), ("sh_offset", -100)]
)
def test_a_broken_table_gives_offsets(library: Path, tmp_path: Path, field: str, value: int) -> None:
    broken = _broken(library, tmp_path, field, value)
    assert symbols.name(str(broken), 0x30000) == "libc+0x30000"


def test_a_name_outside_of_the_names_is_none(library: Path, tmp_path: Path) -> None:
    """The other functions keep theirs."""
    content = bytearray(library.read_bytes())
    with library.open("rb") as stream:
        section = ELFFile(stream).get_section_by_name(".dynsym")
        assert isinstance(section, SymbolTableSection)
        functions = [i for i, s in enumerate(section.iter_symbols()) if s["st_info"]["type"] == "STT_FUNC"]
        broken = next(i for i in functions if section.get_symbol(i)["st_value"])
        at = section["sh_offset"] + broken * section["sh_entsize"]
        start = section.get_symbol(broken)["st_value"]
    content[at : at + 4] = b"\xff\xff\xff\x7f"
    file = tmp_path / "libc"
    file.write_bytes(content)
    assert len(symbols._table(str(file)).functions[0]) == len(symbols._table(str(library)).functions[0])
    assert symbols.at_address(str(file), start).endswith("+0x0 (libc)")


@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\n", b"\x7fELF\x02\x01\x01" + bytes(57)])
def test_a_file_without_symbols_gives_offsets(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "qemu"
    file.write_bytes(content)
    assert symbols.name(str(file), 0x123) == "qemu+0x123"


def test_a_file_that_is_gone_gives_offsets(tmp_path: Path) -> None:
    assert symbols.name(str(tmp_path / "qemu"), 0x123) == "qemu+0x123"
