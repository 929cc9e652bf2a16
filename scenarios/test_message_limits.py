"""A hostile guest cannot hurt QEMU: 9P messages at and beyond each limit of msize, counts, offsets and names.

What is within a limit works. What is beyond it is answered with an error, or with as much as the protocol
allows; no memory is read or written beyond what the message is about, and QEMU serves on.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace

import pytest

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
    CONTENT,
    FILE,
    FOLDER,
    METADATA,
    OTHER,
    PROTOCOLS,
    ROOT,
    SPARE,
    error_context,
    expect_serving,
    open_request,
    outcome,
    plug_and_attach,
    start_session,
)
from harness.qemu.binary import require_options
from harness.qemu.spec import Share
from harness.testbed import Testbed

pytestmark = [pytest.mark.no_guest_kernel, pytest.mark.pin_machine("pc")]


#: The smallest msize that QEMU accepts, and the largest that its transport carries (QEMU: ``hw/9pfs/9p.h``,
#: ``P9_MIN_MSIZE``; ``hw/9pfs/virtio-9p-device.c``, ``virtio_9p_msize_limit``).
_MIN_MSIZE, _MAX_MSIZE = 4096, (1024 - 2) * 4096


def negotiate(driver: RawDriver, msize: int, protocol: str = VERSION) -> int | str:
    """Offer an msize: the one in QEMU's Rversion, or the name of the errno that it answers with."""
    try:
        return int.from_bytes(driver.call(T.VERSION, p9.version(msize, protocol))[:4], "little")
    except NineError as exc:
        return errno.errorcode[exc.errno]


def expect_session(driver: RawDriver) -> None:
    """Attach to the export in the session that Tversion has just begun, and read the file."""
    driver.attach(ROOT)
    expect_serving(driver)


def test_msize(raw_guest: RawGuest, share: Share) -> None:
    """An msize below QEMU's minimum is refused with EMSGSIZE, any other up to the maximum is accepted."""
    driver = plug_and_attach(raw_guest, share)
    for msize in (0, 1, 7, 11, 23, 24, _MIN_MSIZE - 1):
        with error_context(f"an msize of {msize}"):
            assert negotiate(driver, msize) == "EMSGSIZE", f"an msize of {msize} was not refused"
            start_session(driver)
            expect_serving(driver)
    for msize in (_MIN_MSIZE, _MIN_MSIZE + 1, MSIZE, _MAX_MSIZE - 1, _MAX_MSIZE):
        with error_context(f"an msize of {msize}"):
            assert negotiate(driver, msize) == msize
            expect_session(driver)


def test_an_msize_beyond_the_transport(raw_guest: RawGuest, share: Share) -> None:
    """QEMU accepts no msize that its transport cannot carry: at most 1024 buffers of one page each."""
    driver = plug_and_attach(raw_guest, share)
    for msize in (_MAX_MSIZE + 1, 1 << 31, 0xFFFFFFFF):
        seen = negotiate(driver, msize)
        if seen == "EMSGSIZE":
            start_session(driver)
        else:
            assert isinstance(seen, int), seen
            assert seen <= _MAX_MSIZE, (
                f"an msize of {seen} was promised, and the transport carries {_MAX_MSIZE}"
            )
            driver.attach(ROOT)
        expect_serving(driver)


def test_an_unknown_protocol(raw_guest: RawGuest, share: Share) -> None:
    """A Tversion with an unknown protocol is answered with "unknown", and the next Tversion works."""
    driver = plug_and_attach(raw_guest, share)
    for protocol in ("", "9P", "9P2000", "9P2000.", "9P2000.l", "9P2000.Lx", "x" * 5000):
        with error_context(f"the protocol {protocol[:20]!r}"):
            assert driver.call(T.VERSION, p9.version(MSIZE, protocol))[6:] == b"unknown"
            start_session(driver)
            expect_serving(driver)


#: As much as the raw client's buffer for a reply has room for.
_REPLY_BUFFER = 0x3FF0
#: Counts and offsets around sizes of headers, the msize, and the ranges of integers.
COUNTS = (0, 1, 23, 24, 25, 279, MSIZE - 24, MSIZE - 11)
HUGE_COUNTS = (
    MSIZE - 10,
    MSIZE,
    MSIZE + 1,
    _REPLY_BUFFER,
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
#: Files in the folder that is listed: more than one message has room for.
_ENTRIES = 400


def test_counts_of_readdir(raw_guest: RawGuest, share: Share) -> None:
    """An Rreaddir has no more bytes than were asked for and fit into the msize, and only whole entries.

    Read in parts, the folder has each name exactly once.
    """
    driver = plug_and_attach(raw_guest, share)
    names = set(make_files(share.path, _ENTRIES)) | {"file", ".", ".."}
    driver.walk(ROOT, FOLDER)
    driver.open(FOLDER)
    for count in (*COUNTS, *HUGE_COUNTS):
        with error_context(f"a Treaddir of {count} bytes"):
            answer = driver.call(T.READDIR, p9.read(FOLDER, 0, count))
            limit = min(count, MSIZE - p9.READ_HEADER)
            assert len(answer) - 4 == int.from_bytes(answer[:4], "little") <= limit, f"asked for {count}"
            assert {name for name, _ in p9.entries(answer[4:])} <= names
    for count in (279 + 24, 1000, MSIZE - 11):
        with error_context(f"a whole folder in parts of {count} bytes"):
            seen: list[str] = []
            offset = 0
            while part := p9.entries(driver.call(T.READDIR, p9.read(FOLDER, offset, count))[4:]):
                seen += [name for name, _ in part]
                offset = part[-1][1]
            assert sorted(seen) == sorted(names)


def test_counts_of_a_folder_read_with_9p2000u(raw_guest: RawGuest, share: Share) -> None:
    """An Rread of a folder has no more bytes than were asked for, and whole entries only.

    Read in parts, the folder has each name exactly once.
    """
    driver = plug_and_attach(raw_guest, share, UNIX_VERSION)
    names = set(make_files(share.path, _ENTRIES)) | {"file", ".", ".."}
    for count in (*COUNTS, _REPLY_BUFFER):
        with error_context(f"a Tread of {count} bytes of a folder"):
            driver.walk(ROOT, FOLDER)
            driver.call(*open_request(UNIX_VERSION, FOLDER, os.O_RDONLY))
            answer = driver.call(T.READ, p9.read(FOLDER, 0, count))
            assert len(answer) - 4 == int.from_bytes(answer[:4], "little") <= count, f"asked for {count}"
            assert set(p9.stat_names(answer[4:])) <= names
            driver.clunk(FOLDER)
    for count in (100, 1000, MSIZE - 11):
        with error_context(f"a whole folder in parts of {count} bytes"):
            driver.walk(ROOT, FOLDER)
            driver.call(*open_request(UNIX_VERSION, FOLDER, os.O_RDONLY))
            seen: list[str] = []
            offset = 0
            while part := driver.call(T.READ, p9.read(FOLDER, offset, count))[4:]:
                seen += p9.stat_names(part)
                offset += len(part)
            assert sorted(seen) == sorted(names)
            driver.clunk(FOLDER)
    expect_serving(driver)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_iounit(raw_guest: RawGuest, share: Share, protocol: str) -> None:
    """The answers to open and create have the same iounit: so many bytes fit into a message of the msize."""
    driver = plug_and_attach(raw_guest, share, protocol)
    driver.walk(ROOT, FILE, "file")
    driver.walk(ROOT, OTHER)
    made = (
        (T.LCREATE, p9.create(OTHER, "made"))
        if protocol == VERSION
        else (T.CREATE, p9.unix_create(OTHER, "made"))
    )
    requests = [open_request(protocol, FILE, os.O_RDWR), made]
    units = [int.from_bytes(driver.call(*request)[13:17], "little") for request in requests]
    assert units[0] == units[1], units
    assert 0 < units[0] <= MSIZE - p9.IO_HEADER, units
    for fid in (FILE, OTHER):
        assert driver.write(fid, 0, b"x" * units[0]) == units[0]


def test_counts_and_offsets_of_files(raw_guest: RawGuest, share: Share) -> None:
    """Reads beyond the end of a file, and writes at offsets that a file cannot have, change nothing in it."""
    driver = plug_and_attach(raw_guest, share)
    (share.path / "large").write_bytes(b"x" * 4 * MSIZE)
    driver.walk(ROOT, FILE, "large")
    driver.open(FILE, os.O_RDWR)
    driver.walk(ROOT, FOLDER)
    driver.open(FOLDER)
    for count in COUNTS:
        with error_context(f"a Tread of {count} bytes"):
            assert driver.read(FILE, 0, count) == b"x" * count
    for offset in OFFSETS[4:]:
        with error_context(f"offset {offset:#x}"):
            for kind, body in (
                (T.READ, p9.read(FILE, offset, 10)),
                (T.READDIR, p9.read(FOLDER, offset, 4096)),
                (T.SETATTR, p9.truncate(OTHER, offset)),
                (T.WRITE, p9.write(FILE, offset, b"")),
            ):
                outcome(driver, kind, body)
            if offset >= 1 << 63:
                assert outcome(driver, T.WRITE, p9.write(FILE, offset, b"y")) in (
                    "EINVAL",
                    "EFBIG",
                    "EOVERFLOW",
                )
                assert outcome(driver, T.READ, p9.read(FILE, offset, 1)) in (
                    ANSWERED,
                    "EINVAL",
                    "EOVERFLOW",
                )
    assert (share.path / "large").read_bytes() == b"x" * 4 * MSIZE
    expect_serving(driver)


#: The largest extended attribute (QEMU: ``hw/9pfs/9p.c``, ``P9_XATTR_SIZE_MAX``; kernel:
#: ``include/uapi/linux/limits.h``, ``XATTR_SIZE_MAX``).
_LARGEST_XATTR = 65536


def test_sizes_and_flags_of_attributes(raw_guest: RawGuest, share: Share) -> None:
    """Txattrcreate of more bytes than an attribute can have is E2BIG, because QEMU allocates that many bytes.

    Unknown flags are EINVAL.
    """
    driver = plug_and_attach(raw_guest, share)
    sizes = dict.fromkeys((0, 1, _LARGEST_XATTR - 1, _LARGEST_XATTR), ANSWERED)
    sizes |= dict.fromkeys((_LARGEST_XATTR + 1, 1 << 31, 1 << 32, 1 << 63, (1 << 64) - 1), "E2BIG")
    for size, expected in sizes.items():
        with error_context(f"an attribute of {size} bytes"):
            driver.walk(ROOT, FILE, "file")
            body = p9.xattrcreate(FILE, "user.harness", size)
            assert outcome(driver, T.XATTRCREATE, body) == expected, f"{size} bytes"
            outcome(driver, T.CLUNK, p9.fid(FILE))
    for flags in (4, 8, 1 << 31, 0xFFFFFFFF):
        driver.walk(ROOT, FILE, "file")
        assert outcome(driver, T.XATTRCREATE, p9.xattrcreate(FILE, "user.harness", 1, flags)) == "EINVAL"
        driver.clunk(FILE)
    expect_serving(driver)


def create_attribute(driver: RawDriver, size: int) -> None:
    """Make :data:`FILE` the fid of a new attribute of ``size`` bytes, which Twrite can fill."""
    driver.walk(ROOT, FILE, "file")
    driver.call(T.XATTRCREATE, p9.xattrcreate(FILE, "user.harness", size))


def test_offsets_of_attributes(raw_guest: RawGuest, share: Share) -> None:
    """Nothing is read beyond the end of an attribute, and nothing is written there."""
    driver = plug_and_attach(raw_guest, share)
    size = 100
    create_attribute(driver, size)
    assert driver.write(FILE, 0, b"x" * size) == size
    for offset in (0, 1, size - 1, size, size + 1, *OFFSETS[4:]):
        with error_context(f"offset {offset:#x}"):
            for count in (0, 1, size, MSIZE - 11):
                expected = b"x" * max(0, min(count, size - offset))
                assert driver.read(FILE, offset, count) == expected, f"offset {offset:#x}"
            if offset > size:
                assert outcome(driver, T.WRITE, p9.write(FILE, offset, b"y" * 10)) == "ENOSPC", (
                    f"offset {offset:#x}"
                )
            elif offset:
                assert driver.write(FILE, offset, b"x" * 1000) == size - offset
    outcome(driver, T.CLUNK, p9.fid(FILE))
    expect_serving(driver)


def test_a_new_attribute_reads_as_zeros(raw_guest: RawGuest, share: Share) -> None:
    """A new attribute does not show what its memory held before, here the value of the previous attribute."""
    driver = plug_and_attach(raw_guest, share)
    for size in (100, 1000, 5000, _LARGEST_XATTR):
        for _ in range(3):
            create_attribute(driver, size)
            driver.write(FILE, 0, b"secret" * 500)
            outcome(driver, T.CLUNK, p9.fid(FILE))
            create_attribute(driver, size)
            assert not driver.read(FILE, 0, min(size, 4000)).strip(b"\0"), f"{size} bytes of old memory"
            outcome(driver, T.CLUNK, p9.fid(FILE))


@pytest.fixture
def guest_of_few_attributes(testbed: Testbed) -> RawGuest:
    """A guest whose first share allows three fids of attributes at a time (``max_xattr=3``)."""
    option = "max_xattr"
    require_options(testbed.cell.qemu, "-fsdev", f"local,id=few,path=/,security_model=none,{option}=3")
    testbed.declare(replace(testbed.shares[0], fsdev_options={option: "3"}), *testbed.shares[1:])
    return RawGuest(testbed)


def test_the_limit_on_fids_of_attributes(testbed: Testbed, guest_of_few_attributes: RawGuest) -> None:
    """``max_xattr`` limits the fids of Txattrwalk and Txattrcreate together; a clunk allows another one."""
    driver = plug_and_attach(guest_of_few_attributes, testbed.shares[0])

    def reading(fid: int) -> str:
        return outcome(driver, T.XATTRWALK, p9.xattrwalk(ROOT, fid, ""))

    def writing(fid: int) -> str:
        driver.walk(ROOT, fid, "file")
        return outcome(driver, T.XATTRCREATE, p9.xattrcreate(fid, "user.harness", 9))

    for ways in ((reading,) * 3, (writing,) * 3, (reading, writing, reading)):
        assert [way(10 + fid) for fid, way in enumerate(ways)] == [ANSWERED] * 3
        for number, way in enumerate((reading, writing)):
            assert way(20 + number) == "ENOSPC"
        outcome(driver, T.CLUNK, p9.fid(10))
        assert reading(10) == ANSWERED
        assert writing(22) == "ENOSPC"
        start_session(driver)  # It ends all fids of the session before.
    expect_serving(driver)


#: Names that are not the name of one file in the folder; each message that has a name is sent with each.
ILLEGAL = ("", "/", "a/b", "/a", "a/", "../outside", "../../outside", ".", "..")
#: Messages that create, rename or remove the file of that name, in the folder :data:`ROOT`.
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
    """Send each message with each illegal name: it has to fail, and the files have to stay as they are."""
    outside = share.path.parent / "outside"
    outside.write_bytes(CONTENT)
    driver = plug_and_attach(raw_guest, share, protocol)
    driver.walk(ROOT, FILE, "file")
    for what, message in messages.items():
        for name in ILLEGAL:
            with error_context(f"{what} with the name {name!r}"):
                driver.walk(ROOT, SPARE)
                seen = outcome(driver, *message(name))
                assert seen != ANSWERED, f"{what} with the name {name!r} was answered"
                driver.clunk(SPARE)
                expect_serving(driver)
                assert outside.read_bytes() == CONTENT
                assert [path.name for path in share.path.iterdir()] == ["file"]


@pytest.mark.thorough
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_invalid_names(raw_guest: RawGuest, share: Share, protocol: str) -> None:
    """No file is created, renamed or removed by a name that has a slash, is empty, ``.`` or ``..``."""
    expect_names_refused(raw_guest, share, protocol, NAMING[protocol])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_dot_names_and_the_metadata_of_other_folders(testbed: Testbed, share: Share, protocol: str) -> None:
    """With ``mapped-file``, a file named ``.`` or ``..`` does not lead to the metadata of another folder.

    The parent of the export's root is outside of the export.
    """
    (mapped,) = testbed.declare(replace(share, security_model="mapped-file"))
    above = share.path.parent
    for folder in (above, share.path, share.path / "folder", share.path / "folder" / "below"):
        (folder / METADATA[0]).mkdir(parents=True)
    driver = plug_and_attach(RawGuest(testbed), mapped, protocol)
    before = sorted(above.rglob("*"))
    for names in ((), ("folder",), ("folder", "below")):
        start_session(driver, protocol)
        driver.walk(ROOT, FILE, "file")
        driver.walk(ROOT, ROOT, *names)  # The folder of all these messages.
        for what, message in NAMING[protocol].items():
            for name in (".", ".."):
                case = f"{what} with the name {name!r} in {'/'.join(names) or 'the root'}"
                with error_context(case):
                    driver.walk(ROOT, SPARE)
                    assert outcome(driver, *message(name)) != ANSWERED, f"{case} was answered"
                    driver.clunk(SPARE)
                    assert sorted(above.rglob("*")) == before, f"{case} changed the export's folders"
    start_session(driver, protocol)
    expect_serving(driver)


def test_a_twstat_to_an_invalid_name(raw_guest: RawGuest, share: Share) -> None:
    """The same for Twstat, which renames in 9P2000.u; an empty name is allowed there and changes nothing."""
    outside = share.path.parent / "outside"
    outside.write_bytes(CONTENT)
    driver = plug_and_attach(raw_guest, share, UNIX_VERSION)
    driver.walk(ROOT, FILE, "file")
    for name in filter(None, ILLEGAL):
        with error_context(f"the name {name!r}", raw_guest.machine):
            assert outcome(driver, T.WSTAT, p9.wstat(FILE, name=name)) != ANSWERED, f"the name {name!r}"
            expect_serving(driver)
    assert outside.read_bytes() == CONTENT


def test_lengths_and_numbers_of_names(raw_guest: RawGuest, share: Share) -> None:
    """A name of 255 bytes and a Twalk of 16 names work; a longer name and a 17th name are refused."""
    driver = plug_and_attach(raw_guest, share)
    for name in ("n" * 254, "n" * 255):
        driver.call(T.MKDIR, p9.mkdir(ROOT, name))
        driver.walk(ROOT, FOLDER, name)
        driver.clunk(FOLDER)
    for length in (256, 1000, 4095, 4096, 8000):
        with error_context(f"a name of {length} bytes"):
            for kind, body in (
                (T.MKDIR, p9.mkdir(ROOT, "n" * length)),
                (T.WALK, p9.walk(ROOT, FOLDER, "n" * length)),
                (T.XATTRWALK, p9.xattrwalk(ROOT, FOLDER, "n" * length)),
                (T.SYMLINK, p9.symlink(ROOT, "n" * length, "to")),
            ):
                assert outcome(driver, kind, body) != ANSWERED
    for length in (1, 4095, 4096, 8000):
        with error_context(f"a symlink to {length} bytes"):
            made = outcome(driver, T.SYMLINK, p9.symlink(ROOT, f"link{length}", "t" * length))
            assert (made == ANSWERED) == (length < 4096), made  # Linux: PATH_MAX includes the NUL.
    deep = ["d" * 250] * 16
    path = share.path
    for name in deep:
        path /= name
        path.mkdir()
    for count in range(17):
        driver.walk(ROOT, FOLDER, *deep[:count])
        driver.clunk(FOLDER)
    assert outcome(driver, T.WALK, p9.walk(ROOT, FOLDER, *deep, "d")) == "EINVAL"
    expect_serving(driver)
