"""Writes an initramfs: a cpio archive in the "newc" format, with the same bytes for the same content.

Format: ``man 5 cpio`` ("New ASCII Format"); the kernel's reader is ``init/initramfs.c``.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass


@dataclass(frozen=True)
class Member:
    """A file, folder or symlink.

    :ivar mode: permissions and type bits (``man 7 inode``). :ivar content: a file's content, a link's target.
    """

    mode: int
    content: bytes = b""


def folder(permissions: int = 0o755) -> Member:
    """A folder in a cpio archive."""
    return Member(stat.S_IFDIR | permissions)


def file(content: bytes, permissions: int = 0o644) -> Member:
    """A regular file in a cpio archive."""
    return Member(stat.S_IFREG | permissions, content)


def symlink(target: str) -> Member:
    """A symbolic link in a cpio archive."""
    return Member(stat.S_IFLNK | 0o777, target.encode())


def archive(members: dict[str, Member]) -> bytes:
    """The cpio archive of ``members``, by path; missing parent folders are added.

    It is not compressed: a guest under TCG would take a quarter of a second to unpack it.
    """
    complete = dict(members)
    for path in members:
        parts = path.split("/")[:-1]
        for depth in range(1, len(parts) + 1):
            complete.setdefault("/".join(parts[:depth]), folder())
    records = [_record(n, path, complete[path]) for n, path in enumerate(sorted(complete), start=1)]
    records.append(_record(0, "TRAILER!!!", Member(0)))
    return b"".join(records)


def _record(inode: int, path: str, member: Member) -> bytes:
    name = path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(member.mode) else 1
    fields = (inode, member.mode, 0, 0, links, 0, len(member.content), 0, 0, 0, 0, len(name), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _padded(header + name) + _padded(member.content)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
