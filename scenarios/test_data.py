"""Plain use: no byte is lost or wrong, and no error is swallowed, in what programs do with a share's files.

Programs read, write, append, truncate, map, unlink and list; the host's file system fails; programs have more
files open than QEMU may; requests are interrupted.
"""

from __future__ import annotations

import errno
import os
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from harness.actions.hotplug import Hotplug
from harness.guest.fileops import File, Program, content
from harness.guest.guest import Guest
from harness.guest.mount import Mount
from harness.holds.hold import (
    AT_POSITION,
    DATA,
    FSYNC,
    MKDIR,
    READDIR,
    RENAME,
    STAT,
    UNLINK,
    Hold,
    require_counted_requests,
)
from harness.holds.open_files import OpenFileLimit
from harness.leaks import footprint
from harness.ninep import messages as p9
from harness.ninep.client import RawDriver, RawGuest
from harness.ninep.messages import T
from harness.ninep.session import ANSWERED, outcome
from harness.plugin.thorough import by_default
from harness.qemu.spec import Share
from harness.testbed import Testbed

#: Flags of open(2) in the guest (x86-64), which :mod:`os` need not have.
O_DIRECT, O_DIRECTORY = 0o40000, 0o200000
CREATE = os.O_RDWR | os.O_CREAT
#: The raw client's fid of the file under test, that file's content, and the first of the fids of other
#: files.
TESTED, CONTENT, OTHERS = 1, b"the file under test" * 90, 1000

# Bytes: requests of every size, at every kind of offset.

#: Lengths of single calls: around a page, around what one request of each msize carries (24 bytes less,
#: kernel: ``include/net/9p/9p.h``, ``P9_IOHDRSZ``), beyond 60 KB, and of several requests.
LENGTHS = (1, 511, 4095, 4096, 4097, 61_441, 65_536, 131_047, 131_048, 131_049, 300_001, 511_977, 1_048_579)
#: Offsets of single calls: in the first pages and beyond 200 KB, aligned and not.
OFFSETS = (0, 204_801, 4096, 1_048_575, 4095, 262_144, 1)


@dataclass(frozen=True)
class Kind:
    """The options of a mount. With a cache, the guest's kernel sends other requests for the same calls.

    :ivar maps: whether shared writable mappings work (kernel: ``fs/9p/vfs_file.c``).
    :ivar longest: the longest single call; with a small msize each call is many requests.
    """

    options: str = ""
    maps: bool = False
    longest: int = LENGTHS[-1]


KINDS = {
    "plain": Kind(),
    "large": Kind("msize=512000"),
    "small": Kind("msize=8192", longest=131_049),
    "loose": Kind("cache=loose,msize=512000", maps=True),
}


def every_length(program: Program, name: str, longest: int) -> None:
    """Write and read back each length with one call, at every offset or some of them; then read the whole
    file."""
    for index, length in enumerate(length for length in LENGTHS if length <= longest):
        some = OFFSETS if length <= 65_536 else (OFFSETS[index % 7], OFFSETS[(index + 3) % 7])
        for offset in some:
            program.pwrite(name, offset, length, seed=offset + 3 * length)
            program.pread(name, max(0, offset - 13), length + 29)
    program.whole(name, 1_000_003)


def write_in_other_ways(program: Program, kind: Kind) -> None:
    """Append, leave holes, truncate, extend; write with O_DIRECT, through mappings and by several
    processes."""
    file = File("other")
    program.open("o", file, CREATE, "other")
    program.open("end", file, os.O_WRONLY | os.O_APPEND, "other")
    program.append("end", 70_001, 1)
    program.append("end", 140_000, 2)
    program.truncate("o", 100_003)
    program.append("end", 5, 3)
    program.pread("o", 99_000, 2000)
    program.truncate("o", 700_001)
    program.pread("o", 100_000, 600_001)
    program.pwrite("o", 1_500_007, 4099, 4)
    program.pread("o", 699_999, 800_020)
    program.add("fstat", "o", 1)
    program.open("direct", file, os.O_RDWR | O_DIRECT, "other")
    for offset, length in ((0, 65_536), (4096, 4096), (204_800, 131_072), (7, 300_001)):
        program.pwrite("direct", offset, length, 5 + offset)
        program.pread("direct", offset, length)
    if kind.maps:
        program.map_shared("o", 4096, 65_536, 6)
        program.map_shared("o", 204_807, 200_003, 7)
    program.map_private("o", 300_001, 9000, 8)
    program.processes("o", 3, 65_536, 4, 10)
    program.add("fsync", "o")
    program.whole("o", 262_144)
    program.close("o", "end", "direct")
    program.open("again", file, os.O_RDWR | os.O_TRUNC, "other")
    program.add("fstat", "again", 1)
    program.pwrite("again", 300_000, 131_072, 9)
    program.whole("again", 131_048)
    program.close("again")


@pytest.mark.always
@pytest.mark.any_plug
@pytest.mark.parametrize("name", by_default("plain", of=KINDS))
def test_bytes_written_in_any_way_arrive(guest: Guest, hotplug: Hotplug, share: Share, name: str) -> None:
    """Every byte of every call arrives, in the guest and on the host, also of calls larger than a
    request."""
    kind = KINDS[name]
    hotplug.plug(share)
    mount = guest.mount(share, options=kind.options)
    program, file = Program(), File("data")
    program.open("d", file, CREATE, "data")
    every_length(program, "d", kind.longest)
    program.close("d")
    write_in_other_ways(program, kind)
    program.run(guest, mount.mountpoint)
    mount.unmount()
    for each in program.files:
        each.expect_on_host(share.path / each.name)


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_requests_of_one_fid_run_at_the_same_time(raw_guest: RawGuest, share: Share) -> None:
    """QEMU's worker threads serve 40 requests of one fid at the same time, each at its own offset.

    The file is open with ``O_DSYNC``: writing to the disk takes long enough for the requests to overlap.
    """
    size, offsets = 4096, [4096 * number for number in range(40)]
    (share.path / "file").touch()
    driver = raw_guest.plug(share)
    driver.version()
    driver.attach(0)
    driver.walk(0, 1, "file")
    driver.call(T.LOPEN, p9.open_(1, os.O_RDWR | os.O_DSYNC))
    for turn in range(5):
        new = content(turn, size * len(offsets))
        writes = [(T.WRITE, p9.write(1, offset, new[offset : offset + size])) for offset in offsets]
        at_once(driver, writes)
        assert (share.path / "file").read_bytes() == new, f"the host has other bytes after turn {turn}"
        read = at_once(driver, [(T.READ, p9.read(1, offset, size)) for offset in offsets])
        assert b"".join(body[4:] for body in read) == new, f"other bytes were read in turn {turn}"


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_requests_of_one_fid_have_their_own_offsets(raw_guest: RawGuest, share: Share, hold: Hold) -> None:
    """Two requests of one fid wait for the file system at the same time; then each reads or writes at its
    own offset."""
    size, new = 4096, content(1, 8192)
    path = share.path / "file"
    path.write_bytes(content(2, 8192))
    driver = raw_guest.plug(share)
    driver.version()
    driver.attach(0)
    driver.walk(0, 1, "file")
    driver.call(T.LOPEN, p9.open_(1, os.O_RDWR))

    def both(kind: T, bodies: list[bytes]) -> list[bytes]:
        # A QEMU that sets the file's position first does so before these calls.
        with hold.requests(share, *DATA, *AT_POSITION) as held:
            sent = []
            for number, body in enumerate(bodies, 1):
                sent.append(driver.send(kind, body))
                held.wait_caught(number)
        return [driver.wait_answer(request) for request in sent]

    both(T.WRITE, [p9.write(1, offset, new[offset : offset + size]) for offset in (0, size)])
    assert path.read_bytes() == new
    read = both(T.READ, [p9.read(1, offset, size) for offset in (0, size)])
    assert b"".join(body[4:] for body in read) == new


def at_once(driver: RawDriver, messages: list[tuple[T, bytes]]) -> list[bytes]:
    """Send all messages with one notification, so that QEMU takes them together; returns the answers."""
    *first, last = messages
    sent = [driver.send(*message, notify=False) for message in first]
    sent.append(driver.send(*last))
    return [driver.wait_answer(request) for request in sent]


# Files that are unlinked or replaced while they are open.


@dataclass(frozen=True)
class Unlinking:
    """How an open file loses its name.

    :ivar in_guest: the program's operations, if the guest does it.
    :ivar on_host: what the host does otherwise. The guest's kernel does not know of that, and may look the
        file up by its name (``fs/9p/fid.c``, ``v9fs_fid_find``).
    """

    in_guest: Callable[[Program], None] | None = None
    on_host: Callable[[Path], object] = lambda _: None


UNLINKING = {
    "by the guest": Unlinking(lambda p: p.add("unlink", "file")),
    "by the host": Unlinking(on_host=lambda folder: (folder / "file").unlink()),
    "by a rename on the host": Unlinking(on_host=lambda folder: (folder / "other").rename(folder / "file")),
}
REPLACED = Unlinking(lambda p: p.add("rename", "other", "file"))


def open_and_unlink(program: Program, how: Unlinking, file: File) -> None:
    """Open a file twice, as "made" and as "opened"; then it loses its name."""
    program.open("made", file, CREATE, "file")
    program.pwrite("made", 0, 150_000, 1)
    program.open("opened", file, os.O_RDWR, "file")
    program.open("other", File("other"), CREATE, "other")
    program.close("other")
    if how.in_guest:
        how.in_guest(program)
    program.pause("unlinked")


def run_with_host(program: Program, mount: Mount, how: Unlinking) -> None:
    """Run the program; at its pause the host does its part."""
    running = program.start(mount.guest, mount.mountpoint)
    running.wait_paused("unlinked")
    how.on_host(mount.share.path)
    running.resume("unlinked")
    running.wait_finished()


def use_without_a_name(mount: Mount, how: Unlinking) -> None:
    """Read, write, sync, map and stat an open file that has lost its name; then close it.

    QEMU must not keep it open after that.
    """
    program = Program()
    open_and_unlink(program, how, File("unlinked"))
    for name in ("made", "opened"):
        program.pread(name, 3, 149_000)
        program.pwrite(name, 149_990, 131_072, 2)
        program.pread(name, 100_000, 200_000)
        program.map_private(name, 4097, 9000, 3)
        program.add("fsync", name)
        if how.in_guest:
            program.add("fstat", name, 0)
    program.close("made", "opened")
    run_with_host(program, mount, how)
    kept = len(footprint.open_inside(mount.guest.machine, mount.share.path))
    assert kept == 0, "QEMU keeps a file that has no name and no user"


@pytest.mark.any_plug
def test_an_open_file_that_is_unlinked(guest: Guest, hotplug: Hotplug, share: Share) -> None:
    """A file that is unlinked while it is open can be used until it is closed, whoever unlinked it."""
    hotplug.plug(share)
    mount = guest.mount(share, options="cache=none")
    for how in UNLINKING.values():
        use_without_a_name(mount, how)


@pytest.mark.thorough
@pytest.mark.any_plug
def test_an_open_file_that_another_replaces(guest: Guest, hotplug: Hotplug, share: Share) -> None:
    """A program that has a file open still uses it after another file was renamed over it."""
    hotplug.plug(share)
    use_without_a_name(guest.mount(share, options="cache=none"), REPLACED)


#: Bodies of Tsetattr after the fid: which attributes are valid (kernel: ``include/net/9p/9p.h``,
#: ``P9_ATTR_MODE`` and so on), and their values.
ATTRIBUTES = {
    "fchmod": struct.pack("<IIIIQQQQQ", 0x1, 0o600, 0, 0, 0, 0, 0, 0, 0),
    "ftruncate": struct.pack("<IIIIQQQQQ", 0x8, 0, 0, 0, 3, 0, 0, 0, 0),
    "futimens": struct.pack("<IIIIQQQQQ", 0x20 | 0x100, 0, 0, 0, 0, 0, 0, 10**9, 0),
}


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
@pytest.mark.parametrize("what", ATTRIBUTES)
def test_attributes_of_an_open_file_that_is_unlinked(raw_guest: RawGuest, share: Share, what: str) -> None:
    """The mode, size and times of an unlinked file can be set as long as the file is open."""
    (share.path / "file").write_bytes(CONTENT)
    driver = raw_guest.plug(share)
    driver.version()
    driver.attach(0)
    driver.walk(0, TESTED, "file")
    driver.call(T.LOPEN, p9.open_(TESTED, os.O_RDWR))
    driver.call(T.UNLINKAT, p9.unlinkat(0, "file"))
    seen = outcome(driver, T.SETATTR, struct.pack("<I", TESTED) + ATTRIBUTES[what])
    assert seen == ANSWERED, f"{what} of an open file that is unlinked: {seen}"
    length = 3 if what == "ftruncate" else len(CONTENT)
    assert driver.read(TESTED, 0, 5000) == CONTENT[:length]


# Errors of the host's file system.


@dataclass(frozen=True)
class Failing:
    """System calls that fail on the host, the errnos, and the guest's operations that have to fail with
    them."""

    calls: tuple[str, ...]
    errors: tuple[int, ...]
    operations: tuple[str, ...]


_OPENED = (
    "pread file 0 100",
    "pwrite file 0 131072 1",
    "append file 10 1",
    "fsync file",
    "names folder 2 4096",
)
_BY_PATH = (
    "open x x 0 0 name",
    "open x x 66 420 new",
    "mkdir made",
    "unlink name",
    "rename name other",
    "rmdir sub",
)
FAILING = {
    "what_is_open": Failing(
        (*DATA, *FSYNC, *READDIR), (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ESTALE, errno.EFBIG), _OPENED
    ),
    "opening": Failing(
        # Before 2.9 a folder is not opened to make, move or remove what is in it.
        ("openat", "mkdir", "rename", "unlink", "rmdir"),
        (errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES),
        _BY_PATH,
    ),
    "making": Failing(MKDIR, (errno.ENOSPC, errno.EDQUOT, errno.EMLINK), ("mkdir made",)),
    "renaming": Failing(RENAME, (errno.EXDEV, errno.ENOSPC, errno.EBUSY), ("rename name other",)),
    "removing": Failing(UNLINK, (errno.EBUSY, errno.EROFS, errno.EIO), ("unlink name", "rmdir sub")),
    "looking": Failing(
        (*STAT, "fstat"), (errno.EIO, errno.EACCES), ("access name", "lock file", "links folder 2")
    ),
}


@pytest.mark.any_plug
def test_an_error_reaches_the_guest(guest: Guest, hotplug: Hotplug, share: Share, hold: Hold) -> None:
    """Each operation of the guest fails with the host's errno, and QEMU keeps no file open because of it."""
    (share.path / "name").write_text("content")
    (share.path / "sub").mkdir()
    hotplug.plug(share)
    mount = guest.mount(share, options="cache=none")
    program = Program()
    program.open("file", File("file"), CREATE, "file")
    program.open("folder", File("none"), O_DIRECTORY, "sub")
    program.add("links", "folder", 2)
    rows = [(name, failing, error) for name, failing in FAILING.items() for error in failing.errors]
    for name, failing, error in rows:
        program.pause(f"{name}-{error}")
        for operation in failing.operations:
            program.expect(error, operation)
    program.pause("end")
    program.close("file", "folder")
    running = program.start(guest, mount.mountpoint)
    running.wait_paused(f"{rows[0][0]}-{rows[0][2]}")
    before = len(footprint.open_inside(guest.machine, share.path))
    for (name, failing, error), following in zip(rows, [*rows[1:], None], strict=True):
        with hold.failing(share, error, *failing.calls) as rule:
            running.resume(f"{name}-{error}")
            running.wait_paused(f"{following[0]}-{following[2]}" if following else "end")
        assert rule.hits, f"no operation met the errno {error} of {name}"
    assert len(footprint.open_inside(guest.machine, share.path)) == before, (
        "QEMU keeps a file after an operation on it failed"
    )
    running.resume("end")
    running.wait_finished()


@pytest.mark.any_plug
def test_an_interrupted_call_is_made_again(guest: Guest, hotplug: Hotplug, share: Share, hold: Hold) -> None:
    """QEMU repeats a system call that fails with EINTR on the host; the guest sees no error."""
    hotplug.plug(share)
    mount = guest.mount(share)
    program, file = Program(), File("file")
    program.open("f", file, CREATE, "file")
    program.pause("open")
    program.pwrite("f", 7, 131_072, 1)
    program.pread("f", 0, 140_000)
    program.close("f")
    running = program.start(guest, mount.mountpoint)
    running.wait_paused("open")
    with hold.failing(share, errno.EINTR, *DATA) as rule:
        running.resume("open")
        guest.machine.wait_until(lambda: rule.hits > 2, what="the third attempt at a write", timeout_s=10.0)
    running.wait_finished()
    file.expect_on_host(share.path / "file")


@pytest.mark.any_plug
def test_an_error_at_the_end_of_setxattr(guest: Guest, hotplug: Hotplug, share: Share) -> None:
    """setxattr fails with the host's errno, although only the Tclunk after Txattrcreate sets the
    attribute.

    The larger value comes in several pages, and so in several parts of a request (hw/9pfs/9p.c,
    v9fs_xattr_write).
    """
    (share.path / "file").write_text("content")
    hotplug.plug(share)
    mount = guest.mount(share)
    program = Program()
    for size in (10, 9000):
        program.expect(errno.EOPNOTSUPP, "setxattr", "file", "trusted.refused", size)
    program.run(guest, mount.mountpoint)


# More open files than QEMU may have: it closes some of them, and opens them again when they are used.

#: QEMU's limit of open files, and how many files and folders the guest has open; together they exceed it.
LIMIT, FILES, FOLDERS = 160, 60, 140
READ_ONLY_FOLDER = os.O_RDONLY | O_DIRECTORY


class ManyFiles:
    """A guest whose program has more files open than QEMU may have."""

    def __init__(self, testbed: Testbed, share: Share, *, files: int = FILES, folders: int = FOLDERS) -> None:
        OpenFileLimit(testbed, LIMIT)
        self.share = share
        self.guest = testbed.boot()
        Hotplug(self.guest).plug(share)
        self.mount = self.guest.mount(share, options="cache=none")
        self.program, self.files = Program(), [File(f"file{number}") for number in range(files)]
        self.folders = [f"folder{number}" for number in range(folders)]
        for name in self.folders:
            (share.path / name).mkdir()
        for number, file in enumerate(self.files):
            self.program.open(file.name, file, CREATE, file.name)
            self.program.pwrite(file.name, number, 100 + number, number)
        for name in self.folders:
            self.program.open(name, File("none"), READ_ONLY_FOLDER, name)

    def use_all(self) -> None:
        """Read and write in each file, and list each folder; QEMU opens again those that it has closed."""
        for number, file in enumerate(self.files):
            self.program.pread(file.name, 0, 5000)
            self.program.pwrite(file.name, 50 + number, 200, 7 * number)
        for name in self.folders:
            self.program.add("names", name, 0, 4096)
        self.program.whole(self.files[0].name)

    def open_more(self, count: int = LIMIT) -> None:
        """Open and close other files, so many that QEMU closes those that were open before."""
        names = [f"more{number}" for number in range(count)]
        for name in names:
            self.program.open(name, File(name), CREATE, name)
        self.program.close(*names)

    def close_all(self) -> None:
        """Close all files and folders."""
        self.program.close(*(file.name for file in self.files), *self.folders)

    def run(self) -> None:
        """Close everything at the end of the program, run it, and check the host's files."""
        self.close_all()
        self.program.run(self.guest, self.mount.mountpoint)
        self.expect_closed_and_intact()

    def expect_closed_and_intact(self) -> None:
        """QEMU has no file of the share open, and the files that still have their name have every byte."""
        assert len(footprint.open_inside(self.guest.machine, self.share.path)) == 0, (
            "QEMU keeps a file that no one has open"
        )
        for file in self.files:
            path = self.share.path / file.name
            if path.exists():
                file.expect_on_host(path)


@pytest.mark.any_plug
def test_more_open_files_than_the_limit(testbed: Testbed, share: Share) -> None:
    """A program can use more open files and folders than QEMU may have open."""
    many = ManyFiles(testbed, share)
    many.use_all()
    many.run()


@pytest.mark.any_plug
def test_what_loses_its_name_keeps_its_content_beyond_the_limit(testbed: Testbed, share: Share) -> None:
    """QEMU has closed a file to stay below its limit, and the file is unlinked or renamed: it still has its
    content for the program that has it open."""
    many = ManyFiles(testbed, share, files=25, folders=25)
    program = many.program
    many.open_more()
    for number in range(10):
        program.add("unlink", f"file{number}")
        program.add("rename", f"file{10 + number}", f"renamed{number}")
        program.add("rmdir", f"folder{number}")
        program.add("rename", f"folder{10 + number}", f"folder-renamed{number}")
    many.open_more(LIMIT // 2)
    for number in range(20):
        program.pread(f"file{number}", 0, 5000)
        program.pwrite(f"file{number}", 70, 131_072, number)
        program.pread(f"file{number}", 0, 140_000)
        program.add("fsync", f"folder{number}")
    many.run()


@pytest.mark.thorough
@pytest.mark.any_plug
def test_what_another_replaces_keeps_its_content_beyond_the_limit(testbed: Testbed, share: Share) -> None:
    """The same when another file is renamed over it, as programs do that save a file."""
    many = ManyFiles(testbed, share, files=20, folders=0)
    for number in range(10):
        many.program.add("rename", f"file{10 + number}", f"file{number}")
    many.open_more()
    for number in range(10):
        many.program.pread(f"file{number}", 0, 5000)
        many.program.pread(f"file{10 + number}", 0, 5000)
    many.close_all()
    many.program.run(many.guest, many.mount.mountpoint)
    assert len(footprint.open_inside(many.guest.machine, share.path)) == 0, (
        "QEMU keeps a file that no one has open"
    )


#: Flags that a file is opened with.
FLAGS = {
    "append": os.O_RDWR | os.O_APPEND,
    "truncate": os.O_RDWR | os.O_TRUNC,
    "create": CREATE,
    "create_and_truncate": CREATE | os.O_TRUNC,
    "exclusive": CREATE | os.O_EXCL,
    "sync": CREATE | os.O_SYNC,
    "direct": CREATE | O_DIRECT,
}


@pytest.mark.thorough
@pytest.mark.any_plug
def test_a_file_is_what_it_was_when_it_is_opened_again(testbed: Testbed, share: Share) -> None:
    """QEMU has closed a file to stay below its limit, and opens it again: the flags it was first opened
    with still have their effect, and O_TRUNC or O_EXCL are not applied twice."""
    many = ManyFiles(testbed, share, files=0, folders=0)
    program, files = many.program, [File(name) for name in FLAGS]
    for file in files:
        if not FLAGS[file.name] & os.O_CREAT:
            (share.path / file.name).touch()
        program.open(file.name, file, FLAGS[file.name], file.name)
        program.append(file.name, 70_001, 1)
    many.open_more()
    for file in files:
        program.add("fstat", file.name, 1)
        program.append(file.name, 5000, 2)
        program.pread(file.name, 0, 80_000)
        program.close(file.name)
    many.run()
    for file in files:
        file.expect_on_host(share.path / file.name)


# The same with a raw client, which can hold and flush any request, and sees each errno.


class FewFiles:
    """A raw client of a QEMU with the limit :data:`LIMIT`; :data:`TESTED` is the fid of the file under
    test."""

    def __init__(self, testbed: Testbed, share: Share) -> None:
        OpenFileLimit(testbed, LIMIT)
        raw = RawGuest(testbed)
        self.machine, self._share = raw.machine, share
        for number in range(LIMIT):
            (share.path / f"file{number}").write_bytes(b"another file's bytes")
        (share.path / "tested").write_bytes(CONTENT)
        (share.path / "folder").mkdir()
        self.driver = raw.plug(share)
        self.driver.version()
        self.driver.attach(0)

    def open_tested(self, flags: int = os.O_RDWR) -> None:
        """Open the file under test."""
        self.open(TESTED, "tested", flags)

    def open(self, fid: int, name: str, flags: int = os.O_RDONLY) -> None:
        """Send Twalk and Tlopen."""
        self.driver.walk(0, fid, name)
        self.driver.call(T.LOPEN, p9.open_(fid, flags))

    def open_some(self) -> None:
        """Open some other files. They stay open when QEMU closes the newer ones first, as it does before 6.0
        (``hw/9pfs/9p.c``, ``v9fs_reclaim_fd``)."""
        self._open(range(LIMIT // 3))

    def open_others(self) -> None:
        """Open so many other files that QEMU closes those that were open before."""
        self._open(range(LIMIT // 3, LIMIT))

    def _open(self, numbers: range) -> None:
        for number in numbers:
            self.open(OTHERS + number, f"file{number}")

    def expect_closed(self, name: str = "tested") -> None:
        """QEMU has closed the file to stay below its limit; otherwise the scenario tests nothing."""
        path = str(self._share.path / name)
        assert path not in footprint.open_inside(self.machine, self._share.path), (
            f"QEMU has not closed {name} to stay below its limit"
        )

    def expect_all_closed(self) -> None:
        """Clunk every fid; QEMU must have no file of the share open then."""
        self.driver.clunk_all()
        assert len(footprint.open_inside(self.machine, self._share.path)) == 0, (
            "QEMU keeps a file of which no fid is left"
        )


@pytest.fixture
def few_files(testbed: Testbed, share: Share, hold: Hold) -> FewFiles:  # noqa: ARG001 (hold has to be set up before)
    """The raw client; the hold is requested first, because QEMU has to be started under its supervisor."""
    return FewFiles(testbed, share)


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_a_file_that_a_request_uses_stays_open(few_files: FewFiles, share: Share, hold: Hold) -> None:
    """QEMU does not close a file while a request uses it: the read returns this file's bytes."""
    few_files.open_some()
    few_files.open_tested()
    with hold.requests(share) as held:
        read = few_files.driver.send(T.READ, p9.read(TESTED, 0, 5000))
        held.wait_caught()
        few_files.open_others()
        held.in_flight()
    assert few_files.driver.wait_answer(read)[4:] == CONTENT, "the read got other bytes"
    few_files.expect_all_closed()


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_an_open_that_is_flushed_while_it_makes_room(few_files: FewFiles, share: Share, hold: Hold) -> None:
    """A Tlopen makes QEMU close other files, and is flushed meanwhile: QEMU still closes those files, and
    keeps none of them open after the clunk."""
    driver, some = few_files.driver, LIMIT * 3 // 5
    for number in range(some):
        few_files.open(OTHERS + number, f"file{number}")
    for number in range(some, some + 20):
        driver.walk(0, OTHERS + number, f"file{number}")
        with hold.requests(replace(share, path=share.path / f"file{number}"), "openat") as held:
            opening = driver.send(T.LOPEN, p9.open_(OTHERS + number))
            held.wait_caught()
            flush = driver.send(T.FLUSH, p9.flush(opening.tag))
            held.in_flight()
        driver.wait_answer(flush)
    assert len(footprint.open_inside(few_files.machine, share.path)) < LIMIT // 2, (
        "QEMU has closed too few files to stay below its limit"
    )
    few_files.expect_all_closed()


#: Requests for which QEMU has to open the file or folder again.
AGAIN = {
    "read": (T.READ, p9.read(TESTED, 0, 10)),
    "write": (T.WRITE, p9.write(TESTED, 0, b"new")),
    "fsync": (T.FSYNC, p9.fsync(TESTED)),
    "getattr": (T.GETATTR, p9.getattr_(TESTED)),
    "readdir": (T.READDIR, p9.read(TESTED + 1, 0, 4096)),
}


@pytest.mark.thorough
@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_an_error_of_opening_again_is_answered(few_files: FewFiles, share: Share, hold: Hold) -> None:
    """QEMU has closed a file to stay below its limit and cannot open it again: the answer is the host's
    errno."""
    few_files.open_some()
    few_files.open_tested()
    few_files.open(TESTED + 1, "folder", O_DIRECTORY)
    few_files.open_others()
    few_files.expect_closed()
    few_files.expect_closed("folder")
    with hold.failing(share, errno.EIO, "openat") as rule:
        seen = {name: outcome(few_files.driver, *message) for name, message in AGAIN.items()}
    assert rule.hits, "no file was opened again"
    wrong = [f"{name}: {error}" for name, error in seen.items() if error != "EIO"]
    assert not wrong, f"not EIO, but {', '.join(wrong)}"
    few_files.expect_all_closed()


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_an_unlink_that_cannot_open_the_file_again(few_files: FewFiles, share: Share, hold: Hold) -> None:
    """QEMU opens a file again before it unlinks it. If that fails, the answer is the host's errno, and
    the file is not unlinked."""
    few_files.open_some()
    few_files.open_tested()
    few_files.open_others()
    few_files.expect_closed()
    with hold.failing(share, errno.ENOMEM, "openat") as rule:
        seen = outcome(few_files.driver, T.UNLINKAT, p9.unlinkat(0, "tested"))
    assert rule.hits, "the file was not opened again"
    assert seen == "ENOMEM", f"the unlink was answered with {seen}"
    assert (share.path / "tested").exists(), "the file was unlinked although the answer is an error"
    assert few_files.driver.read(TESTED, 0, 5000) == CONTENT
    few_files.expect_all_closed()


@pytest.mark.thorough
@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_a_remove_that_cannot_open_the_file_again(few_files: FewFiles, share: Share, hold: Hold) -> None:
    """As with an unlink: Tremove is answered with the host's errno, and the file is not removed."""
    few_files.open_some()
    few_files.open_tested()
    few_files.driver.walk(0, TESTED + 1, "tested")
    few_files.open_others()
    few_files.expect_closed()
    with hold.failing(share, errno.ENOMEM, "openat") as rule:
        seen = outcome(few_files.driver, T.REMOVE, p9.fid(TESTED + 1))
    few_files.driver.fids.discard(TESTED + 1)  # Tremove is a clunk also when it fails.
    assert rule.hits, "the file was not opened again"
    assert seen == "ENOMEM", f"the remove was answered with {seen}"
    assert (share.path / "tested").exists(), "the file was removed although the answer is an error"
    assert few_files.driver.read(TESTED, 0, 5000) == CONTENT
    few_files.expect_all_closed()


@pytest.mark.thorough
@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
@pytest.mark.parametrize("kind", [T.LOCK, T.GETLOCK], ids=["lock", "getlock"])
def test_a_lock_whose_file_cannot_be_looked_at(
    few_files: FewFiles, share: Share, hold: Hold, kind: T
) -> None:
    """QEMU looks at the file before it answers a Tlock or Tgetlock. If that fails, the answer is the host's
    errno."""
    few_files.open_some()
    few_files.open_tested()
    body = {T.LOCK: p9.lock(TESTED), T.GETLOCK: p9.getlock(TESTED)}[kind]
    with hold.failing(share, errno.EIO, *STAT, "fstat") as rule:
        seen = outcome(few_files.driver, kind, body)
    assert rule.hits, "QEMU did not look at the file"
    assert seen == "EIO", f"the request was answered with {seen}"
    assert outcome(few_files.driver, kind, body) == ANSWERED
    few_files.expect_all_closed()


@pytest.mark.thorough
@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_a_file_is_emptied_once_only(few_files: FewFiles) -> None:
    """A file opened with P9_DOTL_TRUNC is truncated once: not when QEMU, which has closed it, opens it
    again."""
    few_files.open_some()
    few_files.open_tested(os.O_RDWR | os.O_TRUNC)
    few_files.driver.write(TESTED, 0, CONTENT)
    few_files.open_others()
    few_files.expect_closed()
    assert few_files.driver.read(TESTED, 0, 5000) == CONTENT, "what was written since the open is lost"
    few_files.expect_all_closed()


# Requests that are interrupted.


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
@pytest.mark.parametrize("kind", ["read", "write"])
def test_a_flushed_request_has_its_own_answer_or_none(
    raw_guest: RawGuest, share: Share, hold: Hold, kind: str
) -> None:
    """A flushed request is answered with its own result or not at all, and never with an error of the
    flush: the guest would take that for the result."""
    (share.path / "file").write_bytes(b"half")
    driver = raw_guest.plug(share)
    driver.version()
    driver.attach(0)
    driver.walk(0, 1, "file")
    driver.call(T.LOPEN, p9.open_(1, os.O_RDWR))
    message = {"read": p9.read(1, 0, 100), "write": p9.write(1, 0, b"new" * 30)}[kind]
    with hold.requests(share) as held:
        request = driver.send({"read": T.READ, "write": T.WRITE}[kind], message)
        held.wait_caught()
        flush = driver.send(T.FLUSH, p9.flush(request.tag))
        held.in_flight()
    if not driver.wait_dropped(request):
        driver.wait_answer(request)  # Raises for an error.
    driver.wait_answer(flush)
    assert driver.read(1, 0, 100) == {"read": b"half", "write": b"new" * 30}[kind]


#: Signals that a process gets during a request.
SIGNALS = {"handled": ("USR1",), "stopped_and_continued": ("STOP", "CONT")}


@pytest.mark.thorough
@pytest.mark.any_plug
def test_a_signal_during_a_request(guest: Guest, hotplug: Hotplug, share: Share, hold: Hold) -> None:
    """A process that handles a signal, or is stopped and continued, during a request reads and writes
    each byte once."""
    hotplug.plug(share)
    mount = guest.mount(share)
    program, file = Program(), File("file")
    program.open("f", file, CREATE | os.O_APPEND, "file")
    for name in SIGNALS:
        program.pause(name)
        program.append("f", 100_000, 1)
        program.pread("f", 0, 400_000)
    program.pause("end")
    program.close("f")
    running = program.start(guest, mount.mountpoint)
    for name, signals in SIGNALS.items():
        for _ in ("write", "read"):
            with hold.requests(share) as held:
                running.resume(name)
                held.wait_caught()
                for signal in signals:
                    running.signal(signal)
                held.in_flight()
    running.resume("end")
    running.wait_finished()
    mount.unmount()
    file.expect_on_host(share.path / "file")


#: Whether the guest's kernel flushes the request of a killed process (Linux 6.1 waits for a write).
KILLED = {"read": True, "write": False}


@pytest.mark.thorough
@pytest.mark.any_plug
def test_a_process_that_is_killed_during_a_request(
    guest: Guest, hotplug: Hotplug, share: Share, hold: Hold
) -> None:
    """The kernel flushes the request of a killed process, or waits for it. The process ends, QEMU closes
    its file, the file has its content, and the share works."""
    require_counted_requests(guest.machine)
    hotplug.plug(share)
    mount = guest.mount(share)
    for kind, is_flushed in KILLED.items():
        program, file = Program(), File(kind)
        program.open("f", file, CREATE, kind)
        program.pwrite("f", 0, 100_000, 1)
        program.pause("open")
        program.add(*{"read": ("pread", "f", 0, 100_000), "write": ("pwrite", "f", 0, 100_000, 1)}[kind])
        running = program.start(guest, mount.mountpoint)
        running.wait_paused("open")
        with hold.requests(share) as held:
            running.resume("open")
            held.wait_caught()
            running.signal("KILL")
            held.wait_in_flight(2 if is_flushed else 1)
        assert running.wait_ended() == 128 + 9, f"the process that {kind}s was not killed"
        file.expect_on_host(share.path / kind)
        assert len(footprint.open_inside(guest.machine, share.path)) == 0, (
            f"QEMU keeps the file of a {kind} that was killed"
        )
    mount.expect_usable()


# Folders of thousands of entries.

#: Names of 2 to 254 bytes: many of the short ones, and few of the longest, fit into one answer.
NAMES = [f"s{number}{'x' * (number * 37 % 250)}" for number in range(1200)]


def fill(folder: Path) -> None:
    """Make an empty file of each name."""
    for name in NAMES:
        (folder / name).touch()


@pytest.mark.any_plug
def test_a_folder_of_thousands_of_names(guest: Guest, hotplug: Hotplug, share: Share) -> None:
    """Each name is listed once, whatever the sizes of requests and calls, also while other files are made
    and unlinked."""
    fill(share.path)
    hotplug.plug(share)
    for options, size in (("msize=8192", 600), ("", 32_768)):
        mount = guest.mount(share, options=options)
        program = Program()
        program.open("folder", File("none"), READ_ONLY_FOLDER, ".")
        program.add("names", "folder", len(NAMES), size)
        program.add("part", "folder", 2000)
        for number in range(20):
            program.open("new", File("new"), CREATE, f"new{number}")
            program.close("new")
        program.add("rest", "folder", "s", len(NAMES), 32_768)
        program.add("part", "folder", 2000)
        for number in range(20):
            program.add("unlink", f"new{number}")
        program.add("rest", "folder", "s", len(NAMES), 32_768)
        program.add("fsync", "folder")
        program.close("folder")
        program.run(guest, mount.mountpoint)
        mount.unmount()


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_a_folder_is_read_from_any_of_its_offsets(raw_guest: RawGuest, share: Share) -> None:
    """A Treaddir from the offset of any entry lists those that follow it, however few fit into the
    answer."""
    for name in NAMES[:300]:
        (share.path / name).touch()
    driver = raw_guest.plug(share)
    driver.version()
    driver.attach(0)
    driver.walk(0, 1)
    driver.call(T.LOPEN, p9.open_(1, O_DIRECTORY))
    entries = every_entry(driver, 8000)
    assert sorted(name for name, _ in entries) == sorted([*NAMES[:300], ".", ".."])
    assert every_entry(driver, 300) == entries, "small answers give other entries than large ones"
    for at in random.Random(7).sample(range(len(entries) - 1), 60):
        following = entries_from(driver, entries[at][1], 300)
        assert following, f"nothing comes after entry {at} of {len(entries)}"
        assert following == entries[at + 1 : at + 1 + len(following)], f"others come after entry {at}"
    assert entries_from(driver, entries[-1][1], 300) == [], "something comes after the last entry"


def every_entry(driver: RawDriver, count: int) -> list[tuple[str, int]]:
    """The name and offset of each entry, read with requests of ``count`` bytes."""
    found: list[tuple[str, int]] = []
    while more := entries_from(driver, found[-1][1] if found else 0, count):
        found += more
    return found


def entries_from(driver: RawDriver, offset: int, count: int) -> list[tuple[str, int]]:
    """The name and offset of each entry in the answer to one Treaddir from ``offset``."""
    listing = driver.call(T.READDIR, p9.read(1, offset, count))[4:]
    assert len(listing) <= count, "the answer is longer than it may be"
    return p9.entries(listing)


@pytest.fixture
def written_out(testbed: Testbed, share: Share) -> Share:
    """An export whose writes QEMU begins to write to the disk at once; to be made before the machine."""
    (declared,) = testbed.declare(replace(share, fsdev_options={"writeout": "immediate"}))
    return declared


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_writes_that_are_written_out_at_once(written_out: Share, raw_guest: RawGuest) -> None:
    """Every byte arrives, also of writes that overlap."""
    (written_out.path / "file").touch()
    driver = raw_guest.plug(written_out)
    driver.version()
    driver.attach(1)
    driver.walk(1, 2, "file")
    driver.open(2, os.O_RDWR)
    expected = bytearray()
    for at, data in ((0, b"a" * 4000), (100, b"b" * 4000), (10, b"c")):
        assert driver.write(2, at, data) == len(data)
        expected[at : at + len(data)] = data
    assert (written_out.path / "file").read_bytes() == bytes(expected)
    assert driver.read(2, 0, 5000) == bytes(expected)
