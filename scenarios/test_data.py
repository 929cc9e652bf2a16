"""Plain use, data: what programs write, read, append, truncate, map, unlink and list on a share is what is there."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.actions.hotplug import Hotplug
from harness.deadline import hold_for
from harness.errors import Unsupported
from harness.guest import p9
from harness.guest.fileops import File, Program
from harness.guest.guest import Guest, quote
from harness.guest.job import Job
from harness.guest.lab import Lab
from harness.guest.mount import Mount
from harness.guest.p9 import T
from harness.guest.raw9p import RawDriver, RawGuest
from harness.holds.hold import DATA, FSYNC, READDIR, STAT, Hold
from harness.holds.open_files import OpenFileLimit
from harness.qemu import footprint
from harness.qemu.machine import Machine
from harness.qemu.spec import Share

#: Flags of the guest's kernel, x86-64; not in every :mod:`os`.
O_DIRECT, O_DIRECTORY = 0o40000, 0o200000
CREATE = os.O_RDWR | os.O_CREAT

# Bytes: requests of every size, at every kind of offset.

#: Of single calls: around a page, around what a request of each msize carries (kernel: ``net/9p/client.c``, 24
#: bytes less than msize), beyond 60 KB, and several requests long.
LENGTHS = (1, 511, 4095, 4096, 4097, 61_441, 65_536, 131_047, 131_048, 131_049, 300_001, 511_977, 1_048_579)
#: The first pages, and beyond 200 KB; aligned, and not.
OFFSETS = (0, 204_801, 4096, 1_048_575, 4095, 262_144, 1)


@dataclass(frozen=True)
class Kind:
    """How a share is mounted. With a cache the guest's kernel makes other requests of the same calls.

    :ivar maps: whether it takes shared mappings that are written to (kernel: ``fs/9p/vfs_file.c``).
    :ivar longest: of single calls: with a small msize each is many requests.
    """

    options: str = ""
    maps: bool = False
    longest: int = LENGTHS[-1]


KINDS = {
    "plain": Kind(),
    "large": Kind("msize=512000"),
    "small": Kind("msize=8192", longest=131_049),
    "mmap": Kind("cache=mmap", maps=True),
    "loose": Kind("cache=loose,msize=512000", maps=True),
}


def every_length(program: Program, name: str, longest: int) -> None:
    """Each length, written and read back by one call each at some offsets; then all of the file."""
    for index, length in enumerate(length for length in LENGTHS if length <= longest):
        for offset in (OFFSETS[index % 7], OFFSETS[(index + 3) % 7]):
            program.pwrite(name, offset, length, seed=offset + 3 * length)
            program.pread(name, max(0, offset - 13), length + 29)
    program.whole(name, 1_000_003)


def every_other_way(program: Program, kind: Kind) -> None:
    """Appended, sparse, cut, extended, direct, emptied, through two open files, through mappings."""
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
    program.add("fsync", "o")
    program.whole("o", 262_144)
    program.close("o", "end", "direct")
    program.open("again", file, os.O_RDWR | os.O_TRUNC, "other")
    program.add("fstat", "again", 1)
    program.pwrite("again", 300_000, 131_072, 9)
    program.whole("again", 131_048)
    program.close("again")


@pytest.mark.any_plug
@pytest.mark.parametrize("name", KINDS)
def test_bytes_written_in_any_way_arrive(guest: Guest, hotplug: Hotplug, share: Share, name: str) -> None:
    """Every byte of every call, on both sides, also of calls that are larger than a request."""
    kind = KINDS[name]
    hotplug.plug(share)
    mount = guest.mount(share, options=kind.options)
    program, file = Program(), File("data")
    program.open("d", file, CREATE, "data")
    every_length(program, "d", kind.longest)
    program.close("d")
    every_other_way(program, kind)
    program.run(guest, mount.mountpoint)
    mount.unmount()
    for each in program.files:
        each.expect_on_host(share.path / each.name)


@pytest.mark.any_plug
def test_processes_share_an_open_file(guest: Guest, hotplug: Hotplug, share: Share) -> None:
    """Several requests on one fid at a time: each has its own offset."""
    hotplug.plug(share)
    mount = guest.mount(share)
    program, file = Program(), File("shared")
    program.open("s", file, CREATE, "shared")
    program.processes("s", 4, 65_536, 8, seed=1)
    program.processes("s", 3, 4096, 40, seed=2)
    program.whole("s")
    program.close("s")
    program.run(guest, mount.mountpoint)
    file.expect_on_host(share.path / "shared")


# Files that are unlinked, or are replaced, while they are open.


@dataclass(frozen=True)
class Unlinking:
    """How an open file loses its name.

    :ivar in_guest: the program's operations. :ivar on_host: or what the host does.
    """

    in_guest: Callable[[Program], None] = lambda _: None
    on_host: Callable[[Path], object] = lambda _: None


UNLINKING = {
    "by_the_guest": Unlinking(lambda p: p.add("unlink", "file")),
    "by_a_rename_over_it": Unlinking(lambda p: p.add("rename", "other", "file")),
    "by_the_host": Unlinking(on_host=lambda folder: (folder / "file").unlink()),
    "by_a_rename_on_the_host": Unlinking(on_host=lambda folder: (folder / "other").rename(folder / "file")),
}


def unlinked(program: Program, how: Unlinking, file: File) -> None:
    """A file that is open twice, as "made" and as "opened", and then has no name."""
    program.open("made", file, CREATE, "file")
    program.pwrite("made", 0, 150_000, 1)
    program.open("opened", file, os.O_RDWR, "file")
    program.open("other", File("other"), CREATE, "other")
    program.close("other")
    how.in_guest(program)
    program.pause("unlinked")


def perform(program: Program, mount: Mount, how: Unlinking) -> None:
    """Let the host do its part at the pause."""
    running = program.start(mount.guest, mount.mountpoint)
    running.wait_paused("unlinked")
    how.on_host(mount.share.path)
    running.resume("unlinked")
    running.wait_finished()


@pytest.mark.any_plug
@pytest.mark.parametrize("how", UNLINKING)
def test_an_open_file_that_is_unlinked(guest: Guest, hotplug: Hotplug, share: Share, how: str) -> None:
    """It can be read, written, synced, mapped and looked at as before, and is gone once it is closed."""
    hotplug.plug(share)
    mount = guest.mount(share, options="cache=none")
    program, file = Program(), File("unlinked")
    unlinked(program, UNLINKING[how], file)
    for name in ("made", "opened"):
        program.pread(name, 3, 149_000)
        program.pwrite(name, 149_990, 131_072, 2)
        program.pread(name, 100_000, 200_000)
        program.map_private(name, 4097, 9000, 3)
        program.add("fsync", name)
        program.add("fstat", name, 0)
    program.close("made", "opened")
    perform(program, mount, UNLINKING[how])
    assert open_below(guest.machine, share) == 0, "QEMU keeps a file that has no name and no user"


ATTRIBUTES: dict[str, Callable[[Program], None]] = {
    "ftruncate": lambda program: (program.truncate("opened", 40_001), program.pread("opened", 0, 50_000))[0],
    "fchmod": lambda program: program.add("fchmod", "opened", 0o600),
    "futimens": lambda program: program.add("futimens", "opened", 1_000_000_000),
}


@pytest.mark.any_plug
@pytest.mark.parametrize("what", ATTRIBUTES)
def test_attributes_of_an_open_file_that_is_unlinked(
    guest: Guest, hotplug: Hotplug, share: Share, what: str
) -> None:
    """They can be set as long as it is open."""
    hotplug.plug(share)
    mount = guest.mount(share, options="cache=none")
    program = Program()
    unlinked(program, UNLINKING["by_the_guest"], File("unlinked"))
    ATTRIBUTES[what](program)
    program.close("made", "opened")
    perform(program, mount, UNLINKING["by_the_guest"])


# Errors of the host's file system.


@dataclass(frozen=True)
class Failing:
    """System calls that fail on the host, and the guest's operations that have to say so."""

    calls: tuple[str, ...]
    errors: tuple[int, ...]
    operations: tuple[str, ...]


_OPENED = ("pread file 0 100", "pwrite file 0 131072 1", "append file 10 1", "fsync file", "names folder 2 4096")
_BY_PATH = ("open x x 0 0 name", "open x x 66 420 new", "mkdir made", "unlink name", "rename name other", "rmdir sub")
FAILING = {
    "what_is_open": Failing(
        (*DATA, *FSYNC, *READDIR), (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ESTALE, errno.EFBIG), _OPENED
    ),
    "opening": Failing(("openat",), (errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES), _BY_PATH),
    "making": Failing(("mkdirat",), (errno.ENOSPC, errno.EDQUOT, errno.EMLINK), ("mkdir made",)),
    "renaming": Failing(("renameat",), (errno.EXDEV, errno.ENOSPC, errno.EBUSY), ("rename name other",)),
    "removing": Failing(("unlinkat",), (errno.EBUSY, errno.EROFS, errno.EIO), ("unlink name", "rmdir sub")),
    "looking": Failing(STAT, (errno.EIO, errno.EACCES), ("access name", "lock file", "links folder 2")),
    "opening_a_folder": Failing(STAT, (errno.EIO,), ("open x x 65536 0 .",)),
}


@pytest.mark.any_plug
def test_an_error_reaches_the_guest(guest: Guest, hotplug: Hotplug, share: Share, hold: Hold) -> None:
    """As the host's own errno, whatever the operation; and nothing stays open for it."""
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
    before = open_below(guest.machine, share)
    for (name, failing, error), following in zip(rows, [*rows[1:], None], strict=True):
        with hold.failing(share, error, *failing.calls) as rule:
            running.resume(f"{name}-{error}")
            running.wait_paused(f"{following[0]}-{following[2]}" if following else "end")
        assert rule.hits, f"no operation met the errno {error} of {name}"
    assert open_below(guest.machine, share) == before, "QEMU keeps a file after an operation on it failed"
    running.resume("end")
    running.wait_finished()


@pytest.mark.any_plug
def test_an_interrupted_call_is_made_again(guest: Guest, hotplug: Hotplug, share: Share, hold: Hold) -> None:
    """EINTR on the host is none of the guest's business."""
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
    """The attribute is set by the Tclunk; what the export has to say against it comes then."""
    (share.path / "file").write_text("content")
    hotplug.plug(share)
    mount = guest.mount(share)
    program = Program()
    program.expect(errno.EOPNOTSUPP, "setxattr", "file", "trusted.refused", 10)
    program.run(guest, mount.mountpoint)


# More open files than QEMU may have.

#: Of QEMU, and what the guest has open of each kind: more than that of folders alone.
LIMIT, FILES, FOLDERS = 160, 150, 150
READ_ONLY_FOLDER = os.O_RDONLY | O_DIRECTORY


def open_below(machine: Machine, share: Share) -> int:
    """How many files and folders inside a share QEMU has open (the share itself is always)."""
    inside = f"{os.path.realpath(share.path)}/"
    folder = Path(f"/proc/{footprint.process(machine)}/fd")
    return sum(target.startswith(inside) for target in _targets(folder))


def _targets(folder: Path) -> Iterator[str]:
    for entry in folder.iterdir():
        try:
            yield str(entry.readlink())
        except FileNotFoundError:
            continue  # Closed meanwhile.


class Many:
    """A guest whose program has more open than QEMU may have; made after what else the machine starts with."""

    def __init__(self, lab: Lab, share: Share, *, files: int = FILES, folders: int = FOLDERS) -> None:
        OpenFileLimit(lab, LIMIT)
        self.share = share
        self.guest = lab.boot()
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

    def use_all(self, *, files: int = 0) -> None:
        """Read and write in each file, look at each folder: each is opened again if it has to be."""
        for number, file in enumerate(self.files[files:], files):
            self.program.pread(file.name, 0, 5000)
            self.program.pwrite(file.name, 50 + number, 200, 7 * number)
        for name in self.folders:
            self.program.add("names", name, 0, 4096)
        self.program.whole(self.files[0].name)

    def close_all(self) -> None:
        """All that is open."""
        self.program.close(*(file.name for file in self.files), *self.folders)

    def run(self) -> None:
        """Perform the program, close what is open, and look at what the host has."""
        self.close_all()
        self.program.run(self.guest, self.mount.mountpoint)
        self.expect_back()

    def expect_back(self) -> None:
        """Nothing stays open, and every byte of the files that still have their name is there."""
        assert open_below(self.guest.machine, self.share) == 0, "QEMU keeps a file that no one has open"
        for file in self.files:
            path = self.share.path / file.name
            if path.exists():
                file.expect_on_host(path)


@pytest.mark.any_plug
def test_more_open_files_than_the_limit(lab: Lab, share: Share) -> None:
    """All can be used, in any order, as often as the guest likes."""
    many = Many(lab, share)
    many.use_all()
    many.use_all()
    many.run()
