"""An independent reader of newc archives (``man 5 cpio``), for the tests."""

from __future__ import annotations

from typing import NamedTuple


class Read(NamedTuple):
    """One member as it is in the archive."""

    mode: int
    uid: int
    mtime: int
    content: bytes


def read(data: bytes) -> dict[str, Read]:
    """The members by name, in their order; raises when the archive is malformed."""
    members: dict[str, Read] = {}
    at = 0
    while True:
        assert at % 4 == 0
        assert data[at : at + 6] == b"070701", f"no header at {at}"
        field = [int(data[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        _, mode, uid, _, _, mtime, size, *_, name_size, _ = field
        name = data[at + 110 : at + 110 + name_size]
        assert name.endswith(b"\0")
        start = (at + 110 + name_size + 3) & ~3
        if name == b"TRAILER!!!\0":
            assert start == len(data)
            return members
        members[name[:-1].decode()] = Read(mode, uid, mtime, data[start : start + size])
        at = (start + size + 3) & ~3
