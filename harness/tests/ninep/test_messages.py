from __future__ import annotations

import struct

import pytest

from harness.errors import Violation
from harness.ninep import messages as p9


def entry(name: str, following: int) -> bytes:
    return bytes(13) + struct.pack("<QBH", following, 4, len(name)) + name.encode()


def test_the_entries_of_a_listing() -> None:
    assert p9.entries(entry("a", 7) + entry("bc", 1 << 40)) == [("a", 7), ("bc", 1 << 40)]
    assert p9.entries(b"") == []


@pytest.mark.parametrize("missing", [1, 3, 4, 20])
def test_an_entry_that_is_cut(missing: int) -> None:
    """In its name, or before it."""
    with pytest.raises(Violation, match=r"^the last entry of an Rreaddir is cut: b'"):
        p9.entries(entry("a", 7) + entry("abc", 8)[:-missing])


def unix_stat(name: str) -> bytes:
    """A ``stat`` of 9P2000.u, as QEMU packs it (``fsdev/9p-iov-marshal.c``, ``wwdQdddqsssssddd``)."""
    names = b"".join(struct.pack("<H", len(text)) + text for text in (name.encode(), b"u", b"", b"", b""))
    return struct.pack("<H", 61 + len(name) + 1) + bytes(39) + names + bytes(12)


def test_the_entries_of_a_folder_that_is_read() -> None:
    assert p9.stat_names(unix_stat("a") + unix_stat("bc")) == ["a", "bc"]
    assert p9.stat_names(b"") == []


@pytest.mark.parametrize("missing", [1, 12, 60])
def test_an_entry_of_a_folder_that_is_cut(missing: int) -> None:
    with pytest.raises(Violation, match=r"^the last entry of a folder's Rread is cut: b"):
        p9.stat_names(unix_stat("a") + unix_stat("abc")[:-missing])
