"""The messages of 9P2000.L and 9P2000.u: their types, the bodies of requests, the entries of an Rreaddir.

Sources: kernel ``include/net/9p/9p.h``; QEMU ``hw/9pfs/9p.c`` and ``9p.h``; the protocol page of diod.
"""

from __future__ import annotations

import os
import struct
from enum import IntEnum

from harness.errors import Violation

NOFID = 0xFFFFFFFF
#: The protocol versions that QEMU supports.
VERSION, UNIX_VERSION = "9P2000.L", "9P2000.u"
#: ``P9_GETATTR_BASIC``; the lock type ``P9_LOCK_TYPE_RDLCK``; ``AT_REMOVEDIR``.
_ATTRIBUTES, _READ_LOCK, REMOVEDIR = 0x7FF, 0, 0x200
_WHOLE_FILE = (0, 0)

#: The modes of Topen, and the file types of Tcreate (QEMU: ``hw/9pfs/9p.c``, ``Oread``, ``P9_STAT_MODE_DIR``,
#: …).
OREAD, OWRITE, ORDWR, OEXCL, OTRUNC = 0, 1, 2, 4, 0x10
DMDIR, DMSYMLINK, DMLINK, DMDEVICE, DMNAMEDPIPE = 0x80000000, 0x2000000, 0x1000000, 0x800000, 0x200000
DMSOCKET, DMSETUID, DMSETGID, DMSETVTX = 0x100000, 0x80000, 0x40000, 0x10000
#: Which fields a Tsetattr sets (QEMU: ``hw/9pfs/9p.c``, ``P9_ATTR_MODE``, …); the time of a field that is not
#: ``_SET`` is the present.
MODE, UID, GID, SIZE, ATIME, MTIME, ATIME_SET, MTIME_SET = 1, 2, 4, 8, 16, 32, 128, 256

#: Bytes of the header of a message (size, type, tag), and of an Rread's header, which also has a count.
HEADER, READ_HEADER = 7, 11
#: The most bytes around the data of a message, which its iounit leaves room for (QEMU: ``hw/9pfs/9p.h``,
#: ``P9_IOHDRSZ``).
IO_HEADER = 24
#: An entry of an Rreaddir up to its name: the offset of the next entry, and the length of the name.
_ENTRY = struct.Struct("<13xQxH")
#: A stat of 9P2000.u up to its name: the number of bytes that follow, and the length of the name.
_STAT = struct.Struct("<H39xH")


class T(IntEnum):
    """The types of requests. The type of an answer is that of its request plus one."""

    RLERROR = 7
    STATFS = 8
    LOPEN = 12
    LCREATE = 14
    SYMLINK = 16
    MKNOD = 18
    RENAME = 20
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
    AUTH = 102
    ATTACH = 104
    RERROR = 107
    FLUSH = 108
    WALK = 110
    OPEN = 112
    CREATE = 114
    READ = 116
    WRITE = 118
    CLUNK = 120
    REMOVE = 122
    STAT = 124
    WSTAT = 126


def version(msize: int, protocol: str = VERSION) -> bytes:
    """The body of Tversion."""
    return struct.pack("<I", msize) + _string(protocol)


def auth(afid: int) -> bytes:
    """The body of Tauth, by root, for the whole export."""
    return struct.pack("<I", afid) + _string("root") + _string("") + struct.pack("<I", 0)


def attach(fid: int, afid: int = NOFID) -> bytes:
    """The body of Tattach, by root, to the whole export."""
    return struct.pack("<II", fid, afid) + _string("root") + _string("") + struct.pack("<I", 0)


def walk(fid: int, new: int, *names: str) -> bytes:
    """The body of Twalk."""
    return struct.pack("<IIH", fid, new, len(names)) + b"".join(map(_string, names))


def fid(fid: int) -> bytes:
    """The body of a request that has only a fid: Tclunk, Tremove, Tstat, Tstatfs, Treadlink."""
    return struct.pack("<I", fid)


def flush(old_tag: int) -> bytes:
    """The body of Tflush."""
    return struct.pack("<H", old_tag)


def open_(fid: int, flags: int = os.O_RDONLY) -> bytes:
    """The body of Tlopen; ``flags`` are Linux's on x86 (QEMU: ``hw/9pfs/9p.h``, ``P9_DOTL_*``)."""
    return struct.pack("<II", fid, flags)


def unix_open(fid: int, mode: int) -> bytes:
    """The body of Topen of 9P2000.u."""
    return struct.pack("<IB", fid, mode)


def create(fid: int, name: str, flags: int = os.O_RDWR) -> bytes:
    """The body of Tlcreate: ``fid``, a directory, becomes the new file."""
    return fid_and_name(fid, name) + struct.pack("<III", flags, 0o644, 0)


def unix_create(fid: int, name: str, perm: int = 0o644, mode: int = ORDWR, extension: str = "") -> bytes:
    """The body of Tcreate of 9P2000.u.

    ``perm`` has the file type, ``extension`` its data, such as a link's target.
    """
    return fid_and_name(fid, name) + struct.pack("<IB", perm, mode) + _string(extension)


def read(fid: int, offset: int, count: int) -> bytes:
    """The body of Tread and of Treaddir."""
    return struct.pack("<IQI", fid, offset, count)


def write(fid: int, offset: int, data: bytes) -> bytes:
    """The body of Twrite."""
    return struct.pack("<IQI", fid, offset, len(data)) + data


def fsync(fid: int) -> bytes:
    """The body of Tfsync of data and metadata."""
    return struct.pack("<II", fid, 0)


def getattr_(fid: int, mask: int = _ATTRIBUTES) -> bytes:
    """The body of Tgetattr; ``mask`` is what is asked for."""
    return struct.pack("<IQ", fid, mask)


def setattr_(fid: int, mode: int) -> bytes:
    """The body of Tsetattr of the mode."""
    return set_fields(fid, MODE, mode=mode)


def truncate(fid: int, size: int) -> bytes:
    """The body of Tsetattr of the size."""
    return set_fields(fid, SIZE, size=size)


def set_fields(
    fid: int, valid: int, *, mode: int = 0, uid: int = 0, gid: int = 0, size: int = 0, time_s: int = 0
) -> bytes:
    """The body of Tsetattr of the fields that ``valid`` names; both times are ``time_s``."""
    return struct.pack("<IIIIIQQQQQ", fid, valid, mode, uid, gid, size, time_s, 0, time_s, 0)


def wstat(
    fid: int,
    *,
    name: str = "",
    mode: int = -1,
    length: int = -1,
    atime_s: int = -1,
    uid: int = -1,
    extension: str = "",
) -> bytes:
    """The body of Twstat of 9P2000.u; omitted fields stay unchanged.

    A Twstat without any field means a sync.
    """
    stat = b"\xff" * 19 + struct.pack("<Iiiq", mode & 0xFFFFFFFF, atime_s, -1, length)
    stat += _string(name) + _string("") * 3 + _string(extension) + struct.pack("<iii", uid, -1, -1)
    return struct.pack("<IHH", fid, len(stat) + 2, len(stat)) + stat


def xattrwalk(fid: int, new: int, name: str) -> bytes:
    """The body of Txattrwalk."""
    return struct.pack("<II", fid, new) + _string(name)


def xattrcreate(fid: int, name: str, size: int, flags: int = 0) -> bytes:
    """The body of Txattrcreate: Twrite on ``fid`` then takes ``size`` bytes, and Tclunk sets it."""
    return fid_and_name(fid, name) + struct.pack("<QI", size, flags)


def lock(fid: int, flags: int = 0) -> bytes:
    """The body of Tlock: a read lock on the whole file, by default non-blocking."""
    return struct.pack("<IBIQQI", fid, _READ_LOCK, flags, *_WHOLE_FILE, 1) + _string("guest")


def getlock(fid: int) -> bytes:
    """The body of Tgetlock."""
    return struct.pack("<IBQQI", fid, _READ_LOCK, *_WHOLE_FILE, 1) + _string("guest")


def link(folder: int, fid: int, name: str) -> bytes:
    """The body of Tlink."""
    return struct.pack("<II", folder, fid) + _string(name)


def symlink(folder: int, name: str, target: str) -> bytes:
    """The body of Tsymlink."""
    return fid_and_name(folder, name) + _string(target) + struct.pack("<I", 0)


def mknod(folder: int, name: str) -> bytes:
    """The body of Tmknod of a regular file.

    QEMUs with R35 refuse other types (``images/known-bugs.toml``).
    """
    return fid_and_name(folder, name) + struct.pack("<IIII", 0o100644, 0, 0, 0)


def mkdir(folder: int, name: str) -> bytes:
    """The body of Tmkdir."""
    return fid_and_name(folder, name) + struct.pack("<II", 0o755, 0)


def rename(fid: int, folder: int, name: str) -> bytes:
    """The body of Trename."""
    return struct.pack("<II", fid, folder) + _string(name)


def renameat(folder: int, old: str, new: str, new_folder: int | None = None) -> bytes:
    """The body of Trenameat; within ``folder`` unless ``new_folder`` is given."""
    return fid_and_name(folder, old) + fid_and_name(folder if new_folder is None else new_folder, new)


def unlinkat(folder: int, name: str, flags: int = 0) -> bytes:
    """The body of Tunlinkat."""
    return fid_and_name(folder, name) + struct.pack("<I", flags)


def entries(listing: bytes) -> list[tuple[str, int]]:
    """The entries of an Rreaddir, each with its name and the offset of the next one.

    :param listing: the data of the answer, which is ``qid[13] offset[8] type[1] name[s]`` for each entry.
    :raises Violation: when the last entry is incomplete.
    """
    found = []
    while listing:
        if len(listing) < _ENTRY.size or len(listing) < _ENTRY.size + _ENTRY.unpack_from(listing)[1]:
            raise Violation(f"the last entry of an Rreaddir is cut: {listing!r}")
        following, length = _ENTRY.unpack_from(listing)
        listing = listing[_ENTRY.size :]
        found.append((listing[:length].decode(), following))
        listing = listing[length:]
    return found


def stat_names(listing: bytes) -> list[str]:
    """The names in an Rread of a folder in 9P2000.u.

    :param listing: the data of the answer: a ``stat`` for each entry.
    :raises Violation: when the last entry is incomplete.
    """
    found = []
    while listing:
        if len(listing) < _STAT.size or len(listing) < 2 + _STAT.unpack_from(listing)[0]:
            raise Violation(f"the last entry of a folder's Rread is cut: {listing!r}")
        size, length = _STAT.unpack_from(listing)
        found.append(listing[_STAT.size :][:length].decode())
        listing = listing[2 + size :]
    return found


def fid_and_name(fid: int, name: str) -> bytes:
    """The beginning of many request bodies: a fid and a name."""
    return struct.pack("<I", fid) + _string(name)


def _string(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<H", len(encoded)) + encoded
