"""A hostile guest cannot hurt QEMU: messages of 9P at each limit of counts, offsets, names and msize."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from harness.errors import Violation
from harness.ninep import messages as p9
from harness.ninep.client import (
    MSIZE,
    NineError,
    RawDriver,
    RawGuest,
    make_files,
)
from harness.ninep.messages import UNIX_VERSION, VERSION, T
from harness.ninep.session import (
    ANSWERED,
    BOTH,
    CONTENT,
    FILE,
    FOLDER,
    OTHER,
    ROOT,
    SPARE,
    about,
    begin,
    expect_serving,
    started,
    tell,
)
from harness.qemu.binary import require_options
from harness.qemu.spec import Share
from harness.testbed import Testbed

pytestmark = [pytest.mark.no_guest_kernel, pytest.mark.pin_machine("pc")]


#: QEMU: ``hw/9pfs/9p.h``, ``P9_MIN_MSIZE``; ``hw/9pfs/virtio-9p-device.c``, ``virtio_9p_msize_limit``.
_LEAST, _MOST = 4096, (1024 - 2) * 4096


def negotiated(driver: RawDriver, msize: int, protocol: str = VERSION) -> int | str:
    """The session's msize that QEMU answers to an offer, or what it says instead."""
    try:
        return int.from_bytes(driver.call(T.VERSION, p9.version(msize, protocol))[:4], "little")
    except NineError as exc:
        return errno.errorcode[exc.errno]


def expect_session(driver: RawDriver) -> None:
    """The session that was just agreed on works."""
    driver.attach(ROOT)
    expect_serving(driver)


def test_msize(raw_guest: RawGuest, share: Share) -> None:
    """One that is too small for all messages is refused, and any other taken; either way QEMU serves on."""
    driver = started(raw_guest, share)
    for msize in (0, 1, 7, 11, 23, 24, _LEAST - 1):
        with about(f"an msize of {msize}"):
            assert negotiated(driver, msize) == "EMSGSIZE", msize
            begin(driver)
            expect_serving(driver)
    for msize in (_LEAST, _LEAST + 1, MSIZE, _MOST - 1, _MOST):
        with about(f"an msize of {msize}"):
            assert negotiated(driver, msize) == msize
            expect_session(driver)


def test_an_msize_beyond_the_transport(raw_guest: RawGuest, share: Share) -> None:
    """A virtqueue's chain has at most 1024 buffers, of a page each: QEMU does not promise more."""
    driver = started(raw_guest, share)
    for msize in (_MOST + 1, 1 << 31, 0xFFFFFFFF):
        seen = negotiated(driver, msize)
        if seen == "EMSGSIZE":
            begin(driver)
        else:
            assert isinstance(seen, int), seen
            assert seen <= _MOST, f"an msize of {seen} was promised, and the transport carries {_MOST}"
            driver.attach(ROOT)
        expect_serving(driver)


def test_a_protocol_that_is_none(raw_guest: RawGuest, share: Share) -> None:
    """The answer is "unknown", and the next Tversion works."""
    driver = started(raw_guest, share)
    for protocol in ("", "9P", "9P2000", "9P2000.", "9P2000.l", "9P2000.Lx", "x" * 5000):
        with about(f"the protocol {protocol[:20]!r}"):
            assert driver.call(T.VERSION, p9.version(MSIZE, protocol))[6:] == b"unknown"
            begin(driver)
            expect_serving(driver)


#: Counts and offsets that are, or were, somebody's limit.
COUNTS = (0, 1, 23, 24, 25, 279, MSIZE - 24, MSIZE - 11)
HUGE_COUNTS = (
    MSIZE - 10,
    MSIZE,
    MSIZE + 1,
    0x3FF0,
    1 << 16,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 12,
    (1 << 32) - 1,
)
OFFSETS = (
    0,
    1,
    len(CONTENT),
    4095,
    (1 << 31) - 1,
    1 << 32,
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - 8,
    (1 << 64) - 1,
)
#: Entries of the folder that is read: more than fit in a message.
_ENTRIES = 400


def entries(listing: bytes) -> Iterator[tuple[int, str]]:
    """The names in an Rreaddir, each with the offset of the next; raises where one is cut."""
    at = 0
    while at < len(listing):
        offset, _, size = struct.unpack_from("<QBH", listing, at + 13)
        at += 24
        if len(listing) < at + size:
            raise Violation(f"the last entry of an Rreaddir is cut: {listing[at:]!r}")
        yield offset, listing[at : at + size].decode()
        at += size


def test_counts_of_readdir(raw_guest: RawGuest, share: Share) -> None:
    """No answer is larger than what was asked for, and than the msize; none has a part of an entry."""
    driver = started(raw_guest, share)
    names = set(make_files(share.path, _ENTRIES)) | {"file", ".", ".."}
    driver.walk(ROOT, FOLDER)
    driver.open(FOLDER)
    for count in (*COUNTS, *HUGE_COUNTS):
        with about(f"a Treaddir of {count} bytes"):
            answer = driver.call(T.READDIR, p9.read(FOLDER, 0, count))
            limit = min(count, MSIZE - p9.READ_HEADER)
            assert len(answer) - 4 == int.from_bytes(answer[:4], "little") <= limit, f"asked for {count}"
            assert {name for _, name in entries(answer[4:])} <= names
    for count in (279 + 24, 1000, MSIZE - 11):
        with about(f"a whole folder in parts of {count} bytes"):
            seen: list[str] = []
            offset = 0
            while part := list(entries(driver.call(T.READDIR, p9.read(FOLDER, offset, count))[4:])):
                seen += [name for _, name in part]
                offset = part[-1][0]
            assert sorted(seen) == sorted(names)


def test_counts_and_offsets_of_files(raw_guest: RawGuest, share: Share) -> None:
    """What is beyond the end is empty, or an error; what is written far out is an error, or there."""
    driver = started(raw_guest, share)
    (share.path / "large").write_bytes(b"x" * 4 * MSIZE)
    driver.walk(ROOT, FILE, "large")
    driver.open(FILE, os.O_RDWR)
    driver.walk(ROOT, FOLDER)
    driver.open(FOLDER)
    for count in COUNTS:
        with about(f"a Tread of {count} bytes"):
            assert driver.read(FILE, 0, count) == b"x" * count
    for offset in OFFSETS[4:]:
        with about(f"offset {offset:#x}"):
            for kind, body in (
                (T.READ, p9.read(FILE, offset, 10)),
                (T.READDIR, p9.read(FOLDER, offset, 4096)),
                (T.SETATTR, p9.truncate(OTHER, offset)),
                (T.WRITE, p9.write(FILE, offset, b"")),
            ):
                tell(driver, kind, body)
            if offset >= 1 << 63:
                assert tell(driver, T.WRITE, p9.write(FILE, offset, b"y")) in (
                    "EINVAL",
                    "EFBIG",
                    "EOVERFLOW",
                )
                assert tell(driver, T.READ, p9.read(FILE, offset, 1)) in (
                    ANSWERED,
                    "EINVAL",
                    "EOVERFLOW",
                )
    assert (share.path / "large").read_bytes() == b"x" * 4 * MSIZE
    expect_serving(driver)


#: QEMU: ``hw/9pfs/9p.c``, ``P9_XATTR_SIZE_MAX``; Linux: ``include/uapi/linux/limits.h``.
_LARGEST_XATTR = 65536


def test_sizes_and_flags_of_attributes(raw_guest: RawGuest, share: Share) -> None:
    """Txattrcreate reserves memory of the size that the guest says: no more than an attribute can have."""
    driver = started(raw_guest, share)
    sizes = dict.fromkeys((0, 1, _LARGEST_XATTR - 1, _LARGEST_XATTR), ANSWERED)
    sizes |= dict.fromkeys((_LARGEST_XATTR + 1, 1 << 31, 1 << 32, 1 << 63, (1 << 64) - 1), "E2BIG")
    for size, expected in sizes.items():
        with about(f"an attribute of {size} bytes"):
            driver.walk(ROOT, FILE, "file")
            body = p9.xattrcreate(FILE, "user.harness", size)
            assert tell(driver, T.XATTRCREATE, body) == expected, f"{size} bytes"
            tell(driver, T.CLUNK, p9.fid(FILE))
    for flags in (4, 8, 1 << 31, 0xFFFFFFFF):
        driver.walk(ROOT, FILE, "file")
        assert tell(driver, T.XATTRCREATE, p9.xattrcreate(FILE, "user.harness", 1, flags)) == "EINVAL"
        driver.clunk(FILE)
    expect_serving(driver)


def attribute(driver: RawDriver, size: int) -> None:
    """:data:`FILE` becomes an attribute to be written."""
    driver.walk(ROOT, FILE, "file")
    driver.call(T.XATTRCREATE, p9.xattrcreate(FILE, "user.harness", size))


def test_offsets_of_attributes(raw_guest: RawGuest, share: Share) -> None:
    """Nothing beyond the end is read; nothing is written there."""
    driver = started(raw_guest, share)
    size = 100
    attribute(driver, size)
    assert driver.write(FILE, 0, b"x" * size) == size
    for offset in (0, 1, size - 1, size, size + 1, *OFFSETS[4:]):
        with about(f"offset {offset:#x}"):
            for count in (0, 1, size, MSIZE - 11):
                expected = b"x" * max(0, min(count, size - offset))
                assert driver.read(FILE, offset, count) == expected, f"offset {offset:#x}"
            if offset > size:
                assert tell(driver, T.WRITE, p9.write(FILE, offset, b"y" * 10)) == "ENOSPC", (
                    f"offset {offset:#x}"
                )
            elif offset:
                assert driver.write(FILE, offset, b"x" * 1000) == size - offset
    tell(driver, T.CLUNK, p9.fid(FILE))
    expect_serving(driver)


def test_a_new_attribute_reads_as_zeros(raw_guest: RawGuest, share: Share) -> None:
    """… and not as what was in that memory before: here the last attribute's value."""
    driver = started(raw_guest, share)
    for size in (100, 1000, 5000, _LARGEST_XATTR):
        for _ in range(3):
            attribute(driver, size)
            driver.write(FILE, 0, b"secret" * 500)
            tell(driver, T.CLUNK, p9.fid(FILE))
            attribute(driver, size)
            assert not driver.read(FILE, 0, min(size, 4000)).strip(b"\0"), f"{size} bytes of old memory"
            tell(driver, T.CLUNK, p9.fid(FILE))


@pytest.fixture
def guest_of_few_attributes(testbed: Testbed) -> RawGuest:
    """A guest that may have three fids of attributes at a time, on its first share."""
    option = "max_xattr"
    require_options(testbed.cell.qemu, "-fsdev", f"local,id=few,path=/,security_model=none,{option}=3")
    testbed.declare(replace(testbed.shares[0], fsdev_options={option: "3"}), *testbed.shares[1:])
    return RawGuest(testbed)


def test_the_limit_on_fids_of_attributes(testbed: Testbed, guest_of_few_attributes: RawGuest) -> None:
    """``max_xattr``: of those that are read and those that are written, together; a clunk makes room."""
    driver = started(guest_of_few_attributes, testbed.shares[0])

    def reading(fid: int) -> str:
        return tell(driver, T.XATTRWALK, p9.xattrwalk(ROOT, fid, ""))

    def writing(fid: int) -> str:
        driver.walk(ROOT, fid, "file")
        return tell(driver, T.XATTRCREATE, p9.xattrcreate(fid, "user.harness", 9))

    for ways in ((reading,) * 3, (writing,) * 3, (reading, writing, reading)):
        assert [way(10 + fid) for fid, way in enumerate(ways)] == [ANSWERED] * 3
        for number, way in enumerate((reading, writing)):
            assert way(20 + number) == "ENOSPC"
        tell(driver, T.CLUNK, p9.fid(10))
        assert reading(10) == ANSWERED
        assert writing(22) == "ENOSPC"
        begin(driver)  # Which ends them all.
    expect_serving(driver)


#: A name that each message with a name is given: none of them is one file's.
ILLEGAL = ("", "/", "a/b", "/a", "a/", "../outside", "../../outside", ".", "..")
#: Messages that make, rename or remove what they name; :data:`ROOT` is the folder, :data:`FILE` a file.
NAMING: dict[str, dict[str, Callable[[str], tuple[T, bytes]]]] = {
    VERSION: {
        "Tlcreate": lambda name: (T.LCREATE, p9.create(SPARE, name)),
        "Tsymlink": lambda name: (T.SYMLINK, p9.symlink(ROOT, name, "to")),
        "Tmknod": lambda name: (T.MKNOD, p9.mknod(ROOT, name)),
        "Tmkdir": lambda name: (T.MKDIR, p9.mkdir(ROOT, name)),
        "Tlink": lambda name: (T.LINK, p9.link(ROOT, FILE, name)),
        "Trename": lambda name: (T.RENAME, p9.rename(FILE, ROOT, name)),
        "Trenameat from": lambda name: (T.RENAMEAT, p9.renameat(ROOT, name, "new")),
        "Trenameat to": lambda name: (T.RENAMEAT, p9.renameat(ROOT, "file", name)),
        "Tunlinkat": lambda name: (T.UNLINKAT, p9.unlinkat(ROOT, name)),
        "Tunlinkat of a folder": lambda name: (T.UNLINKAT, p9.unlinkat(ROOT, name, p9.REMOVEDIR)),
    },
    UNIX_VERSION: {
        "Tcreate": lambda name: (T.CREATE, p9.unix_create(SPARE, name)),
        "Tcreate of a folder": lambda name: (T.CREATE, p9.unix_create(SPARE, name, p9.DMDIR)),
        "Tcreate of a symlink": lambda name: (
            T.CREATE,
            p9.unix_create(SPARE, name, p9.DMSYMLINK, extension="to"),
        ),
        "Tcreate of a link": lambda name: (
            T.CREATE,
            p9.unix_create(SPARE, name, p9.DMLINK, extension=str(FILE)),
        ),
    },
}


def expect_names_refused(
    raw_guest: RawGuest, share: Share, protocol: str, messages: dict[str, Callable[[str], tuple[T, bytes]]]
) -> None:
    """Each message with each illegal name fails, and nothing has another name or content afterwards."""
    outside = share.path.parent / "outside"
    outside.write_bytes(CONTENT)
    driver = started(raw_guest, share, protocol)
    driver.walk(ROOT, FILE, "file")
    for what, message in messages.items():
        for name in ILLEGAL:
            with about(f"{what} with the name {name!r}"):
                driver.walk(ROOT, SPARE)
                seen = tell(driver, *message(name))
                assert seen != ANSWERED, f"{what} with the name {name!r} was answered"
                driver.clunk(SPARE)
                expect_serving(driver)
                assert outside.read_bytes() == CONTENT
                assert [path.name for path in share.path.iterdir()] == ["file"]


@pytest.mark.parametrize("protocol", BOTH)
def test_names_that_are_none(raw_guest: RawGuest, share: Share, protocol: str) -> None:
    """A name is one file's: what has a slash, is empty, or leads up, is not made, renamed or removed."""
    expect_names_refused(raw_guest, share, protocol, NAMING[protocol])


def test_a_twstat_to_a_name_that_is_none(raw_guest: RawGuest, share: Share) -> None:
    """The same for the rename of 9P2000.u, where "" means that the name stays."""
    outside = share.path.parent / "outside"
    outside.write_bytes(CONTENT)
    driver = started(raw_guest, share, UNIX_VERSION)
    driver.walk(ROOT, FILE, "file")
    for name in filter(None, ILLEGAL):
        with about(f"the name {name!r}", raw_guest.machine):
            assert tell(driver, T.WSTAT, p9.wstat(FILE, name=name)) != ANSWERED, f"the name {name!r}"
            expect_serving(driver)
    assert outside.read_bytes() == CONTENT


def test_lengths_and_numbers_of_names(raw_guest: RawGuest, share: Share) -> None:
    """The longest name works, as do sixteen; a longer one, and one more, do not."""
    driver = started(raw_guest, share)
    for name in ("n" * 254, "n" * 255):
        driver.call(T.MKDIR, p9.mkdir(ROOT, name))
        driver.walk(ROOT, FOLDER, name)
        driver.clunk(FOLDER)
    for length in (256, 1000, 4095, 4096, 8000):
        with about(f"a name of {length} bytes"):
            for kind, body in (
                (T.MKDIR, p9.mkdir(ROOT, "n" * length)),
                (T.WALK, p9.walk(ROOT, FOLDER, "n" * length)),
                (T.XATTRWALK, p9.xattrwalk(ROOT, FOLDER, "n" * length)),
                (T.SYMLINK, p9.symlink(ROOT, "n" * length, "to")),
            ):
                assert tell(driver, kind, body) != ANSWERED
    for length in (1, 4095, 4096, 8000):
        with about(f"a symlink to {length} bytes"):
            made = tell(driver, T.SYMLINK, p9.symlink(ROOT, f"link{length}", "t" * length))
            assert (made == ANSWERED) == (length < 4096), made  # Linux: PATH_MAX, with a NUL.
    deep = ["d" * 250] * 16
    path = share.path
    for name in deep:
        path /= name
        path.mkdir()
    for count in range(17):
        driver.walk(ROOT, FOLDER, *deep[:count])
        driver.clunk(FOLDER)
    assert tell(driver, T.WALK, p9.walk(ROOT, FOLDER, *deep, "d")) == "EINVAL"
    expect_serving(driver)
