"""The messages of 9P2000.L: their types, and the bodies of requests.

Sources: kernel ``include/net/9p/9p.h``; QEMU ``hw/9pfs/9p.c`` and ``9p.h``; the protocol page of diod.
"""

from __future__ import annotations

import os
import struct
from enum import IntEnum

NOFID = 0xFFFFFFFF
VERSION = "9P2000.L"
#: ``P9_GETATTR_BASIC``; the lock type ``P9_LOCK_TYPE_RDLCK``; ``AT_REMOVEDIR``.
_ATTRIBUTES, _READ_LOCK, REMOVEDIR = 0x7FF, 0, 0x200
_WHOLE_FILE = (0, 0)

#: What a message begins with: its size, type and tag; and an Rread, with how many bytes follow.
HEADER, READ_HEADER = 7, 11


class T(IntEnum):
    """The types of the requests; each answer's is one more."""

    RLERROR = 7
    STATFS = 8
    LOPEN = 12
    LCREATE = 14
    SYMLINK = 16
    MKNOD = 18
    READLINK = 22
    GETATTR = 24
    SETATTR = 26
    XATTRWALK = 30
    XATTRCREATE = 32
    READDIR = 40
    FSYNC = 50
    LOCK = 52
    GETLOCK = 54
    LINK = 70
    MKDIR = 72
    RENAMEAT = 74
    UNLINKAT = 76
    VERSION = 100
    ATTACH = 104
    FLUSH = 108
    WALK = 110
    READ = 116
    WRITE = 118
    CLUNK = 120


def version(msize: int) -> bytes:
    """Tversion."""
    return struct.pack("<I", msize) + _string(VERSION)


def attach(fid: int) -> bytes:
    """Tattach, by root, to the whole export."""
    return struct.pack("<II", fid, NOFID) + _string("root") + _string("") + struct.pack("<I", 0)


def walk(fid: int, new: int, *names: str) -> bytes:
    """Twalk."""
    return struct.pack("<IIH", fid, new, len(names)) + b"".join(map(_string, names))


def fid(fid: int) -> bytes:
    """A request that says a fid and no more: Tclunk, Tstatfs, Treadlink."""
    return struct.pack("<I", fid)


def flush(old_tag: int) -> bytes:
    """Tflush."""
    return struct.pack("<H", old_tag)


def open_(fid: int) -> bytes:
    """Tlopen, for reading."""
    return struct.pack("<II", fid, os.O_RDONLY)


def create(fid: int, name: str) -> bytes:
    """Tlcreate, for reading and writing: the folder ``fid`` becomes the new file."""
    return fid_and_name(fid, name) + struct.pack("<III", os.O_RDWR, 0o644, 0)


def read(fid: int, offset: int, count: int) -> bytes:
    """Tread and Treaddir."""
    return struct.pack("<IQI", fid, offset, count)


def write(fid: int, offset: int, data: bytes) -> bytes:
    """Twrite."""
    return struct.pack("<IQI", fid, offset, len(data)) + data


def fsync(fid: int) -> bytes:
    """Tfsync, of data and metadata."""
    return struct.pack("<II", fid, 0)


def getattr_(fid: int) -> bytes:
    """Tgetattr."""
    return struct.pack("<IQ", fid, _ATTRIBUTES)


def setattr_(fid: int, mode: int) -> bytes:
    """Tsetattr, of the mode."""
    return struct.pack("<IIIIIQQQQQ", fid, 1, mode, 0, 0, 0, 0, 0, 0, 0)


def xattrwalk(fid: int, new: int, name: str) -> bytes:
    """Txattrwalk."""
    return struct.pack("<II", fid, new) + _string(name)


def xattrcreate(fid: int, name: str, size: int) -> bytes:
    """Txattrcreate: ``fid`` takes ``size`` bytes by Twrite, and Tclunk sets them."""
    return fid_and_name(fid, name) + struct.pack("<QI", size, 0)


def lock(fid: int) -> bytes:
    """Tlock: a read lock on the whole file, at once or not."""
    return struct.pack("<IBIQQI", fid, _READ_LOCK, 0, *_WHOLE_FILE, 1) + _string("guest")


def getlock(fid: int) -> bytes:
    """Tgetlock."""
    return struct.pack("<IBQQI", fid, _READ_LOCK, *_WHOLE_FILE, 1) + _string("guest")


def link(folder: int, fid: int, name: str) -> bytes:
    """Tlink."""
    return struct.pack("<II", folder, fid) + _string(name)


def symlink(folder: int, name: str, target: str) -> bytes:
    """Tsymlink."""
    return fid_and_name(folder, name) + _string(target) + struct.pack("<I", 0)


def mknod(folder: int, name: str) -> bytes:
    """Tmknod, of a plain file: others are refused by QEMUs that have R35 (``images/known-bugs.toml``)."""
    return fid_and_name(folder, name) + struct.pack("<IIII", 0o100644, 0, 0, 0)


def mkdir(folder: int, name: str) -> bytes:
    """Tmkdir."""
    return fid_and_name(folder, name) + struct.pack("<II", 0o755, 0)


def renameat(folder: int, old: str, new: str) -> bytes:
    """Trenameat, inside one folder."""
    return fid_and_name(folder, old) + fid_and_name(folder, new)


def unlinkat(folder: int, name: str, flags: int = 0) -> bytes:
    """Tunlinkat."""
    return fid_and_name(folder, name) + struct.pack("<I", flags)


def fid_and_name(fid: int, name: str) -> bytes:
    """How many bodies begin."""
    return struct.pack("<I", fid) + _string(name)


def _string(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<H", len(encoded)) + encoded
