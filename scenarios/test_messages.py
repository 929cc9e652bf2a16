"""A hostile guest cannot hurt QEMU: messages of 9P about fids in each state, at each limit, in each order.

A 9p client of our own says what no kernel says. What has to come of it: each request is answered once, with
the answer that belongs to it or an error, or the device is given up until it is reset; QEMU lives, serves on,
and has no file open that it had not before.

The first table is generated: :data:`MESSAGES` by :data:`STATES`.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from harness.actions.drain import happens_while
from harness.actions.migration import expect_blocked_by
from harness.background import Background
from harness.deadline import check_during
from harness.errors import GuestError, HarnessError, Violation
from harness.holds.hold import Hold, require_counted_requests
from harness.leaks.footprint import handles
from harness.leaks.hunt import LeakHunt
from harness.ninep import messages as p9
from harness.ninep.client import (
    INDIRECT,
    MSIZE,
    NEXT,
    WRITE,
    Descriptor,
    FlushedError,
    NineError,
    RawDriver,
    RawGuest,
    Request,
    make_files,
)
from harness.ninep.messages import NOFID, UNIX_VERSION, VERSION, T
from harness.qemu.binary import require_options
from harness.qemu.machine import Machine
from harness.qemu.spec import Share
from harness.testbed import Testbed

pytestmark = [pytest.mark.no_guest_kernel, pytest.mark.pin_machine("pc")]

#: Fids of each session: the export's root; the folder of the state; a file and a second folder in it.
ROOT, FOLDER, FILE, OTHER = 1, 2, 3, 4
_FIRST, _SPARE, _HELPER = 100, 200, 300
CONTENT = b"content"


@dataclass(frozen=True)
class Cell:
    """What a message is about: the fid in question, a spare one, and a name that no other cell uses."""

    fid: int
    spare: int
    helper: int
    name: str
    protocol: str


#: One step to bring a fid into a state.
Step = Callable[[Cell], tuple[T, bytes]]


def opening(flags: int) -> Step:
    """Open the fid, in the words of the protocol; ``flags`` are O_RDONLY, O_WRONLY or O_RDWR."""

    def step(cell: Cell) -> tuple[T, bytes]:
        if cell.protocol == UNIX_VERSION:
            return T.OPEN, p9.unix_open(cell.fid, flags)
        return T.LOPEN, p9.open_(cell.fid, flags)

    return step


def walking(cell: Cell) -> tuple[T, bytes]:
    """The fid becomes the cell's own file or folder."""
    return T.WALK, p9.walk(FOLDER, cell.fid, cell.name)


@dataclass(frozen=True)
class State:
    """What a fid is when a message says it.

    :ivar kind: of its file; "none" where there is no such fid. :ivar opened: how it is open.
    :ivar xattr: it is one of an extended attribute, to "read", or written, "whole" or in "part".
    :ivar gone: its file was unlinked. :ivar ended: the session was, by a Tversion.
    :ivar fid: a certain number. :ivar steps: how it is made.
    """

    kind: str = "file"
    opened: int | None = None
    xattr: str = ""
    gone: bool = False
    ended: bool = False
    fid: int | None = None
    steps: tuple[Step, ...] = (walking,)

    @property
    def known(self) -> bool:
        """Whether there is such a fid."""
        return self.kind != "none" and not self.ended

    @property
    def fresh(self) -> bool:
        """It is no more than a path."""
        return self.opened is None and not self.xattr

    @property
    def folder(self) -> bool:
        """It is a folder, in which things can be made."""
        return self.kind in ("folder", "root")


def _opened(flags: int, **others: object) -> State:
    return State(opened=flags, steps=(walking, opening(flags)), **others)  # type: ignore[arg-type]


def _written(count: int) -> tuple[Step, ...]:
    return (
        walking,
        lambda c: (T.XATTRCREATE, p9.xattrcreate(c.fid, "user.harness", len(CONTENT))),
        lambda c: (T.WRITE, p9.write(c.fid, 0, CONTENT[:count])),
    )


STATES = {
    "an unknown fid": State("none", steps=()),
    "NOFID": State("none", fid=NOFID, steps=()),
    "a fresh file": State(),
    "a fresh folder": State("folder"),
    "a fresh symlink": State("symlink"),
    "a fresh FIFO": State("fifo"),
    "a file open for reading": _opened(os.O_RDONLY),
    "a file open for writing": _opened(os.O_WRONLY),
    "a file open for both": _opened(os.O_RDWR),
    "an open folder": _opened(os.O_RDONLY, kind="folder"),
    "a list of attributes": State(
        xattr="read",
        steps=(
            lambda c: (T.WALK, p9.walk(FOLDER, c.helper, c.name)),
            lambda c: (T.XATTRWALK, p9.xattrwalk(c.helper, c.fid, "")),
            lambda c: (T.CLUNK, p9.fid(c.helper)),
        ),
    ),
    "an attribute to be set": State(xattr="whole", steps=_written(len(CONTENT))),
    "an attribute half written": State(xattr="part", steps=_written(len(CONTENT) // 2)),
    "an unlinked file": State(
        gone=True, steps=(walking, lambda c: (T.UNLINKAT, p9.unlinkat(FOLDER, c.name)))
    ),
    "an unlinked open file": State(
        opened=os.O_RDWR,
        gone=True,
        steps=(walking, opening(os.O_RDWR), lambda c: (T.UNLINKAT, p9.unlinkat(FOLDER, c.name))),
    ),
    "a removed folder": State(
        "folder",
        gone=True,
        steps=(
            walking,
            lambda c: (T.WALK, p9.walk(c.fid, c.helper, "inside")),
            lambda c: (T.REMOVE, p9.fid(c.helper)),
            lambda c: (T.UNLINKAT, p9.unlinkat(FOLDER, c.name, p9.REMOVEDIR)),
        ),
    ),
    "the root": State("root", steps=(lambda c: (T.ATTACH, p9.attach(c.fid)),)),
    "an open file of the last session": _opened(os.O_RDWR, ended=True),
}

#: What has to come of a message: it succeeds, or fails; ``None`` where neither the protocol nor Linux says.
Expected = Callable[[State], bool | None]
BOTH = (VERSION, UNIX_VERSION)


@dataclass(frozen=True)
class Message:
    """A message about a fid.

    :ivar expected: what comes of it when there is such a fid.
    :ivar makes: the fid is the new one, so it may not be there.
    :ivar into: the fid is a second folder's, and NOFID may mean none.
    """

    kind: T
    body: Callable[[Cell], bytes]
    expected: Expected
    protocols: tuple[str, ...] = BOTH
    makes: bool = False
    into: bool = False

    def succeeds(self, state: State) -> bool | None:
        """Whether it has to succeed, or to fail."""
        if state.fid == NOFID and (self.makes or self.into):
            return None
        if self.makes:
            return not state.known
        return self.expected(state) if state.known or self.expected is ignored else False


def ignored(_state: State) -> bool | None:
    """Whether there is such a fid or not: nobody looks."""
    return None


def never(_state: State) -> bool | None:
    """It fails."""
    return False


def anyhow(_state: State) -> bool | None:
    """It is answered."""
    return None


def of_a_path(state: State) -> bool | None:
    """For a fid that is no more than a path; whether it works with others, nobody says."""
    return True if state.fresh and not state.gone else None


def of_a_path_alone(*kinds: str) -> Expected:
    """For a fid that is no more than a path to one of ``kinds``; on other kinds, nobody says."""

    def rule(state: State) -> bool | None:
        if not state.fresh:
            return False
        return True if state.kind in kinds and not state.gone else None

    return rule


def clone(state: State) -> bool | None:
    """Twalk of no names to the fid itself."""
    if not state.fresh:
        return False
    return None if state.gone else True


def to_what_is_inside(state: State) -> bool | None:
    """Something in the folder is used, which the root does not have."""
    if state.kind == "root":
        return None
    if not state.folder or state.gone:
        return False
    return True if state.fresh else None


def in_a_folder(state: State) -> bool | None:
    """Something is made in the folder."""
    return state.folder and not state.gone


def in_a_fresh_folder(state: State) -> bool | None:
    """… and the fid becomes it."""
    return state.folder and not state.gone and state.fresh


def open_to_read(state: State) -> bool | None:
    """A fresh file or folder."""
    if not state.fresh or state.gone or state.kind == "symlink":
        return False
    return None if state.kind == "fifo" else True


def open_to_write(state: State) -> bool | None:
    """A fresh file."""
    return None if open_to_read(state) and state.folder else open_to_read(state)


def read(state: State) -> bool | None:
    """A file, or an attribute."""
    if state.xattr:
        return True if state.xattr == "read" else None
    if state.kind == "folder" and state.opened is not None:
        return None
    return state.opened in (os.O_RDONLY, os.O_RDWR)


def write(state: State) -> bool | None:
    """A file, or a part of an attribute."""
    if state.xattr:
        return True if state.xattr == "part" else None
    return state.kind == "file" and state.opened in (os.O_WRONLY, os.O_RDWR)


def readdir(state: State) -> bool | None:
    """A folder."""
    return state.kind == "folder" and state.opened is not None


def clunk(state: State) -> bool | None:
    """All but an attribute that was not written as a whole; setting it is up to the host's file system."""
    return {"part": False, "whole": None}.get(state.xattr, True)


def remove(state: State) -> bool | None:
    """What has a name, but no folder with something inside."""
    if state.xattr:
        return None
    return not state.gone and not state.folder


def stat(state: State) -> bool | None:
    """Everything that is there (of what was unlinked, see the scenarios of plain use)."""
    return None if state.gone else True


def of_files_and_folders(state: State) -> bool | None:
    """… as of a file or a folder."""
    return None if state.kind in ("symlink", "fifo") else stat(state)


def truncate(state: State) -> bool | None:
    """A file; one that is open for reading truncate(2) takes, and ftruncate(2) does not."""
    if state.kind != "file":
        return False
    return None if state.gone or state.opened == os.O_RDONLY else True


def sync(state: State) -> bool | None:
    """What is open."""
    return state.opened is not None


def lock(state: State) -> bool | None:
    """A file that is open."""
    return None if state.folder and state.opened is not None else state.opened is not None


def rename(state: State) -> bool | None:
    """What is not open, but the root."""
    return state.fresh and not state.gone and state.kind != "root"


def wstat_name(state: State) -> bool | None:
    """The same, and of an open fid nobody says."""
    return rename(state) if state.fresh else None


def link(state: State) -> bool | None:
    """A file."""
    if state.folder:
        return False
    return True if state.kind == "file" and state.fresh and not state.gone else None


MESSAGES = {
    "Twalk": Message(T.WALK, lambda c: p9.walk(c.fid, c.spare), of_a_path),
    "Twalk into": Message(T.WALK, lambda c: p9.walk(c.fid, c.spare, "inside"), to_what_is_inside),
    "Twalk to itself": Message(T.WALK, lambda c: p9.walk(c.fid, c.fid), clone),
    "Twalk up": Message(T.WALK, lambda c: p9.walk(c.fid, c.spare, "..", ".."), anyhow),
    "Twalk of all names": Message(T.WALK, lambda c: p9.walk(c.fid, c.spare, *["."] * 16), anyhow),
    "Twalk of a name too many": Message(T.WALK, lambda c: p9.walk(c.fid, c.spare, *["."] * 17), never),
    "Twalk to": Message(T.WALK, lambda c: p9.walk(ROOT, c.fid), anyhow, makes=True),
    "Tattach": Message(T.ATTACH, lambda c: p9.attach(c.fid), anyhow, makes=True),
    "Tattach with it as afid": Message(T.ATTACH, lambda c: p9.attach(c.spare, c.fid), ignored),
    "Tauth": Message(T.AUTH, lambda c: p9.auth(c.fid), never),
    "Tread": Message(T.READ, lambda c: p9.read(c.fid, 0, 100), read),
    "Twrite": Message(T.WRITE, lambda c: p9.write(c.fid, 0, CONTENT[:2]), write),
    "Tclunk": Message(T.CLUNK, lambda c: p9.fid(c.fid), clunk),
    "Tremove": Message(T.REMOVE, lambda c: p9.fid(c.fid), remove),
    "Tlopen": Message(T.LOPEN, lambda c: p9.open_(c.fid), open_to_read, (VERSION,)),
    "Tlopen to write": Message(T.LOPEN, lambda c: p9.open_(c.fid, os.O_RDWR), open_to_write, (VERSION,)),
    "Tlopen to truncate": Message(
        T.LOPEN, lambda c: p9.open_(c.fid, os.O_WRONLY | os.O_TRUNC), open_to_write, (VERSION,)
    ),
    "Tlopen of everything": Message(T.LOPEN, lambda c: p9.open_(c.fid, 0xFFFFFFFF), anyhow, (VERSION,)),
    "Tlcreate": Message(T.LCREATE, lambda c: p9.create(c.fid, f"new{c.name}"), in_a_fresh_folder, (VERSION,)),
    "Treaddir": Message(T.READDIR, lambda c: p9.read(c.fid, 0, 4096), readdir, (VERSION,)),
    "Tgetattr": Message(T.GETATTR, lambda c: p9.getattr_(c.fid), stat, (VERSION,)),
    "Tsetattr of the mode": Message(
        T.SETATTR, lambda c: p9.setattr_(c.fid, 0o755), of_files_and_folders, (VERSION,)
    ),
    "Tsetattr of the size": Message(T.SETATTR, lambda c: p9.truncate(c.fid, 3), truncate, (VERSION,)),
    "Tstatfs": Message(T.STATFS, lambda c: p9.fid(c.fid), of_files_and_folders, (VERSION,)),
    "Trename": Message(T.RENAME, lambda c: p9.rename(c.fid, FOLDER, f"new{c.name}"), rename, (VERSION,)),
    "Trename into it": Message(
        T.RENAME, lambda c: p9.rename(FILE, c.fid, f"new{c.name}"), anyhow, (VERSION,), into=True
    ),
    "Trenameat from": Message(
        T.RENAMEAT,
        lambda c: p9.renameat(c.fid, "inside", f"new{c.name}", FOLDER),
        to_what_is_inside,
        (VERSION,),
    ),
    "Trenameat into": Message(
        T.RENAMEAT,
        lambda c: p9.renameat(FOLDER, f"moved{c.name}", f"new{c.name}", c.fid),
        in_a_folder,
        (VERSION,),
        into=True,
    ),
    "Tunlinkat": Message(T.UNLINKAT, lambda c: p9.unlinkat(c.fid, "inside"), to_what_is_inside, (VERSION,)),
    "Tlink into": Message(T.LINK, lambda c: p9.link(c.fid, FILE, f"new{c.name}"), in_a_folder, (VERSION,)),
    "Tlink of": Message(T.LINK, lambda c: p9.link(FOLDER, c.fid, f"new{c.name}"), link, (VERSION,)),
    "Tsymlink": Message(
        T.SYMLINK, lambda c: p9.symlink(c.fid, f"new{c.name}", "to"), in_a_folder, (VERSION,)
    ),
    "Tmknod": Message(T.MKNOD, lambda c: p9.mknod(c.fid, f"new{c.name}"), in_a_folder, (VERSION,)),
    "Tmkdir": Message(T.MKDIR, lambda c: p9.mkdir(c.fid, f"new{c.name}"), in_a_folder, (VERSION,)),
    "Treadlink": Message(T.READLINK, lambda c: p9.fid(c.fid), lambda s: s.kind == "symlink", (VERSION,)),
    "Txattrwalk": Message(T.XATTRWALK, lambda c: p9.xattrwalk(c.fid, c.spare, ""), anyhow, (VERSION,)),
    "Txattrwalk of nothing": Message(
        T.XATTRWALK, lambda c: p9.xattrwalk(c.fid, c.spare, "user.none"), never, (VERSION,)
    ),
    "Txattrwalk to": Message(
        T.XATTRWALK, lambda c: p9.xattrwalk(FOLDER, c.fid, ""), anyhow, (VERSION,), makes=True
    ),
    "Txattrcreate": Message(
        T.XATTRCREATE,
        lambda c: p9.xattrcreate(c.fid, "user.new", 9),
        of_a_path_alone("file", "folder", "root"),
        (VERSION,),
    ),
    "Topen": Message(T.OPEN, lambda c: p9.unix_open(c.fid, p9.OREAD), open_to_read, (UNIX_VERSION,)),
    "Topen to write": Message(
        T.OPEN, lambda c: p9.unix_open(c.fid, p9.ORDWR), open_to_write, (UNIX_VERSION,)
    ),
    "Topen to truncate": Message(
        T.OPEN,
        lambda c: p9.unix_open(c.fid, p9.OWRITE | p9.OTRUNC),
        open_to_write,
        (UNIX_VERSION,),
    ),
    "Topen of everything": Message(T.OPEN, lambda c: p9.unix_open(c.fid, 0xFF), anyhow, (UNIX_VERSION,)),
    "Tcreate": Message(
        T.CREATE, lambda c: p9.unix_create(c.fid, f"new{c.name}"), in_a_fresh_folder, (UNIX_VERSION,)
    ),
    "Tcreate of a folder": Message(
        T.CREATE,
        lambda c: p9.unix_create(c.fid, f"new{c.name}", p9.DMDIR | 0o755, p9.OREAD),
        in_a_fresh_folder,
        (UNIX_VERSION,),
    ),
    "Tcreate of a symlink": Message(
        T.CREATE,
        lambda c: p9.unix_create(c.fid, f"new{c.name}", p9.DMSYMLINK, extension="to"),
        in_a_fresh_folder,
        (UNIX_VERSION,),
    ),
    "Tcreate of a link": Message(
        T.CREATE,
        lambda c: p9.unix_create(c.fid, f"new{c.name}", p9.DMLINK, extension=str(FILE)),
        in_a_fresh_folder,
        (UNIX_VERSION,),
    ),
    "Tcreate of a link of it": Message(
        T.CREATE,
        lambda c: p9.unix_create(OTHER, f"new{c.name}", p9.DMLINK, extension=str(c.fid)),
        anyhow,
        (UNIX_VERSION,),
    ),
    "Tstat": Message(T.STAT, lambda c: p9.fid(c.fid), stat, (UNIX_VERSION,)),
    "Twstat of the name": Message(
        T.WSTAT, lambda c: p9.wstat(c.fid, name=f"new{c.name}"), wstat_name, (UNIX_VERSION,)
    ),
    "Twstat of the size": Message(T.WSTAT, lambda c: p9.wstat(c.fid, length=3), truncate, (UNIX_VERSION,)),
}
#: Further messages, each with a table of its own: shipped QEMUs answer them wrongly (see the ledger).
FURTHER: dict[str, dict[str, Message]] = {
    "Tfsync": {"Tfsync": Message(T.FSYNC, lambda c: p9.fsync(c.fid), sync, (VERSION,))},
    "locks": {
        "Tlock": Message(T.LOCK, lambda c: p9.lock(c.fid), lock, (VERSION,)),
        "Tgetlock": Message(T.GETLOCK, lambda c: p9.getlock(c.fid), lock, (VERSION,)),
    },
    "Twstat of nothing": {
        "Twstat of nothing": Message(T.WSTAT, lambda c: p9.wstat(c.fid), sync, (UNIX_VERSION,))
    },
    "Tcreate of a bad device": {
        "Tcreate of a bad device": Message(
            T.CREATE,
            lambda c: p9.unix_create(c.fid, f"new{c.name}", p9.DMDEVICE, extension="x y z"),
            never,
            (UNIX_VERSION,),
        ),
    },
}


def begin(driver: RawDriver, protocol: str = VERSION) -> None:
    """A session, attached."""
    driver.version(protocol)
    driver.attach(ROOT)


def started(raw_guest: RawGuest, share: Share, protocol: str = VERSION) -> RawDriver:
    """A device that is plugged, and a session on it; the share has a file."""
    (share.path / "file").write_bytes(CONTENT)
    driver = raw_guest.plug(share)
    begin(driver, protocol)
    return driver


def revived(raw_guest: RawGuest, share: Share) -> RawDriver:
    """The device, reset and brought up again, whatever became of it; it serves."""
    driver = raw_guest.driver(share)
    begin(driver)
    expect_serving(driver)
    return driver


def expect_serving(driver: RawDriver) -> None:
    """The file that :func:`started` made is read, or else this raises what is wrong."""
    driver.walk(ROOT, _HELPER, "file")
    driver.call(*opening(os.O_RDONLY)(Cell(_HELPER, 0, 0, "", driver.protocol)))
    if (seen := driver.read(_HELPER, 0, 100)) != CONTENT:
        raise Violation(f"the share's file is read as {seen!r} afterwards")
    driver.clunk(_HELPER)


def fds(machine: Machine) -> int:
    """How many files QEMU has open."""
    return int(handles(machine.pid)["fds"])


def expect_fds(machine: Machine, count: int) -> None:
    """QEMU has so many files open, or will have once what it has let go of is freed.

    An eventfd of a device that has gone is closed after an RCU grace period (QEMU: ``util/rcu.c``).
    """
    machine.wait_until(lambda: fds(machine) == count, what=f"{count} open files in QEMU", timeout_s=10.0)


@contextmanager
def about(what: str, machine: Machine | None = None) -> Iterator[None]:
    """Name what was being done in an error that comes of it, also where the end of QEMU is its cause.

    :param machine: whose end is waited for then: it may be at its core file, and is not to be told to quit.
    """
    try:
        yield
    except HarnessError as exc:
        exc.args = (f"{exc} (about {what})",)
        if machine is not None:
            raise machine.root_cause(exc) from exc
        raise


def together(driver: RawDriver, requests: list[tuple[T, bytes]]) -> None:
    """All of them at once; each has to succeed."""
    for sent in [driver.send(kind, body) for kind, body in requests]:
        driver.wait_answer(sent)


def tell(driver: RawDriver, kind: int, body: bytes) -> str:
    """Send a message, and wait for what comes of it."""
    return told(driver, driver.send(kind, body))


def told(driver: RawDriver, request: Request) -> str:
    """What came of a message: the name of an errno, or :data:`ANSWERED`.

    :raises Violation: when the answer is longer than the session's msize, or the errno is none.
    """
    try:
        answer = driver.wait_answer(request)
    except NineError as exc:
        if exc.errno not in errno.errorcode:
            raise Violation(f"{exc}: there is no such error") from None
        return errno.errorcode[exc.errno]
    if len(answer) + p9.HEADER > MSIZE:
        raise Violation(f"the answer has {len(answer) + p9.HEADER} bytes, and the session's msize is {MSIZE}")
    return ANSWERED


ANSWERED, GIVEN_UP = "answered", "given up"
#: What is said of a fid that is none.
NO_FID = ("EINVAL", "ENOENT", "EBADF")


def fill(folder: Path, kind: str, names: list[str]) -> None:
    """Give each cell what its fid is about, and a file that is moved."""
    folder.mkdir()
    (folder / "file").write_bytes(CONTENT)
    (folder / "other").mkdir()
    for name in names:
        path = folder / name
        (folder / f"moved{name}").touch()
        if kind == "folder":
            path.mkdir()
            (path / "inside").touch()
        elif kind == "symlink":
            path.symlink_to("file")
        elif kind == "fifo":
            os.mkfifo(path)
        else:
            path.write_bytes(CONTENT)


def walk_there(driver: RawDriver) -> None:
    """Fids for what all cells of a state share."""
    driver.walk(ROOT, FOLDER, "table")
    driver.walk(FOLDER, FILE, "file")
    driver.walk(FOLDER, OTHER, "other")


def bring_into(state: State, driver: RawDriver, cells: list[Cell]) -> None:
    """Make the fids of ``cells`` what ``state`` says."""
    walk_there(driver)
    for step in state.steps:
        together(driver, [step(cell) for cell in cells])
    if state.ended:
        begin(driver, cells[0].protocol)
        walk_there(driver)


def what_went_wrong(seen: str, message: Message, state: State) -> str | None:
    """What is wrong with what came of it."""
    expected = message.succeeds(state)
    if expected is not None and expected != (seen == ANSWERED):
        return f"{seen}, and has to {'succeed' if expected else 'fail'}"
    if not state.known and not message.makes and seen not in (*NO_FID, ANSWERED, "ENOTSUP"):
        return f"{seen} for a fid that is none"
    return None


def problems_of(
    machine: Machine, driver: RawDriver, name: str, messages: dict[str, Message], protocol: str
) -> Iterator[str]:
    """Send each message about a fid of the state ``name``; what is wrong with what came of them."""
    state = STATES[name]
    cells = [
        Cell(_FIRST + i if state.fid is None else state.fid, _SPARE + i, _HELPER + i, str(i), protocol)
        for i in range(len(messages))
    ]
    before = fds(machine)
    bring_into(state, driver, cells)
    left = fds(machine)
    own = 0 if state.ended else (left - before) // len(cells)
    for cell, (what, message) in zip(cells, messages.items(), strict=True):
        with about(f"{what} on {name}"):
            try:
                wrong = what_went_wrong(tell(driver, message.kind, message.body(cell)), message, state)
            except (Violation, GuestError) as exc:
                wrong = exc.message
            for fid in (cell.fid, cell.spare):
                tell(driver, T.CLUNK, p9.fid(fid))
            left -= own
            if (now := fds(machine)) != left:
                wrong = f"{now - left:+} fds after the clunk"
                left = now
        if wrong:
            yield f"{what} on {name}: {wrong}"
    for fid in (OTHER, FILE, FOLDER):
        driver.clunk(fid)


def expect_right_answers(
    raw_guest: RawGuest, share: Share, messages: dict[str, Message], protocol: str
) -> None:
    """Each of ``messages`` on a fid in each state.

    :raises Violation: with what is wrong with the answers.
    """
    driver = started(raw_guest, share, protocol)
    chosen = {name: message for name, message in messages.items() if protocol in message.protocols}
    problems: list[str] = []
    before = fds(raw_guest.machine)
    for name, state in STATES.items():
        fill(share.path / "table", state.kind, [str(number) for number in range(len(chosen))])
        problems += problems_of(raw_guest.machine, driver, name, chosen, protocol)
        with about(f"{name}, and a file that is read afterwards"):
            expect_serving(driver)
        for path in set(share.path.iterdir()) - {share.path / "file"}:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    driver.expect_none_in_flight()
    driver.clunk(ROOT)
    expect_blocked_by(raw_guest.machine)
    if (more := fds(raw_guest.machine) - before) != 0:
        problems.append(f"{more:+} fds at the end")
    if problems:
        count = len(chosen) * len(STATES)
        raise Violation(f"{len(problems)} of {count} messages were answered wrongly: {'; '.join(problems)}")


@pytest.mark.parametrize("protocol", BOTH)
def test_every_message_on_every_fid(raw_guest: RawGuest, share: Share, protocol: str) -> None:
    """The table: what has to succeed or fail does, each is answered once, and nothing stays."""
    expect_right_answers(raw_guest, share, MESSAGES, protocol)


@pytest.mark.parametrize("what", FURTHER)
def test_further_messages_on_every_fid(raw_guest: RawGuest, share: Share, what: str) -> None:
    """The same; one that needs an open file does not get another of QEMU's."""
    messages = FURTHER[what]
    (protocol,) = next(iter(messages.values())).protocols
    expect_right_answers(raw_guest, share, messages, protocol)


def test_a_fid_that_is_clunked_while_it_is_used(raw_guest: RawGuest, share: Share, hold: Hold) -> None:
    """Rclunk says that the fid is none any more, though a read of its file goes on, and ends as it should."""
    driver = started(raw_guest, share)
    driver.walk(ROOT, FOLDER)
    driver.walk(ROOT, FILE, "file")
    driver.open(FILE)
    before = fds(raw_guest.machine)
    with hold.requests(share) as held:
        reading = driver.send(T.READ, p9.read(FILE, 0, 100))
        held.wait_caught()
        driver.clunk(FILE)
        cell = Cell(FILE, _SPARE, _HELPER, "file", VERSION)
        for what, message in MESSAGES.items():
            if VERSION in message.protocols and message.succeeds(STATES["an unknown fid"]) is False:
                with about(what):
                    assert tell(driver, message.kind, message.body(cell)) in (*NO_FID, "ENOTSUP"), what
        driver.walk(ROOT, FILE, "file")  # The number can be used again.
        driver.open(FILE)
        held.in_flight()
    assert driver.wait_answer(reading)[4:] == CONTENT
    assert driver.read(FILE, 0, 100) == CONTENT
    driver.expect_none_in_flight()
    assert fds(raw_guest.machine) == before, "the clunked fid's file is still open"


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
        "Tlcreate": lambda name: (T.LCREATE, p9.create(_SPARE, name)),
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
        "Tcreate": lambda name: (T.CREATE, p9.unix_create(_SPARE, name)),
        "Tcreate of a folder": lambda name: (T.CREATE, p9.unix_create(_SPARE, name, p9.DMDIR)),
        "Tcreate of a symlink": lambda name: (
            T.CREATE,
            p9.unix_create(_SPARE, name, p9.DMSYMLINK, extension="to"),
        ),
        "Tcreate of a link": lambda name: (
            T.CREATE,
            p9.unix_create(_SPARE, name, p9.DMLINK, extension=str(FILE)),
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
                driver.walk(ROOT, _SPARE)
                seen = tell(driver, *message(name))
                assert seen != ANSWERED, f"{what} with the name {name!r} was answered"
                driver.clunk(_SPARE)
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


#: What QEMU says when it gives a device up (QEMU: ``virtio_error`` in ``hw/9pfs/virtio-9p-device.c`` and
#: ``hw/virtio/virtio.c``).
_COMPLAINT = re.compile(
    r"VirtFS re|Desc next|Looped desc|ndirect buffer|indirect table|zero sized|bogus desc|Incorrect order"
    r"|Guest says|Virtqueue size|Cannot map"
)


def complaints(machine: Machine) -> int:
    """How often QEMU has given a device up."""
    return len(_COMPLAINT.findall(machine.artifacts.qemu.read_text(errors="replace")))


def wait_for_either(machine: Machine, driver: RawDriver, answered: int, complained: int) -> str:
    """Wait for an answer more than ``answered``, or a complaint more."""
    machine.wait_until(
        lambda: driver.answered() > answered or complaints(machine) > complained,
        what="an answer, or the end of the device",
        timeout_s=10,
        interval_s=0.002,
    )
    machine.qmp.execute("query-status")
    return ANSWERED if driver.answered() > answered else GIVEN_UP


#: Every message, whole, about fids that are as it needs them; in this order.
WHOLE: dict[str, tuple[tuple[T, bytes], ...]] = {
    VERSION: (
        (T.VERSION, p9.version(MSIZE)),
        (T.ATTACH, p9.attach(ROOT)),
        (T.WALK, p9.walk(ROOT, FILE, "file")),
        (T.WALK, p9.walk(ROOT, FOLDER, "folder")),
        (T.WALK, p9.walk(ROOT, OTHER, "link")),
        (T.READLINK, p9.fid(OTHER)),
        (T.CLUNK, p9.fid(OTHER)),
        (T.GETATTR, p9.getattr_(FILE)),
        (T.SETATTR, p9.setattr_(FILE, 0o600)),
        (T.STATFS, p9.fid(FILE)),
        (T.LOPEN, p9.open_(FILE, os.O_RDWR)),
        (T.READ, p9.read(FILE, 0, len(CONTENT))),
        (T.WRITE, p9.write(FILE, 0, CONTENT)),
        (T.FSYNC, p9.fsync(FILE)),
        (T.LOCK, p9.lock(FILE)),
        (T.GETLOCK, p9.getlock(FILE)),
        (T.MKDIR, p9.mkdir(FOLDER, "made")),
        (T.MKNOD, p9.mknod(FOLDER, "node")),
        (T.SYMLINK, p9.symlink(FOLDER, "symlink", "to")),
        (T.RENAMEAT, p9.renameat(FOLDER, "node", "renamed")),
        (T.UNLINKAT, p9.unlinkat(FOLDER, "renamed")),
        (T.WALK, p9.walk(FOLDER, OTHER, "symlink")),
        (T.RENAME, p9.rename(OTHER, FOLDER, "again")),
        (T.REMOVE, p9.fid(OTHER)),
        (T.LINK, p9.link(FOLDER, FILE, "linked")),
        (T.XATTRWALK, p9.xattrwalk(ROOT, OTHER, "")),
        (T.CLUNK, p9.fid(OTHER)),
        (T.WALK, p9.walk(ROOT, OTHER, "file")),
        (T.XATTRCREATE, p9.xattrcreate(OTHER, "user.harness", len(CONTENT))),
        (T.FLUSH, p9.flush(4711)),
        (T.LOPEN, p9.open_(FOLDER)),
        (T.READDIR, p9.read(FOLDER, 0, 4096)),
        (T.WALK, p9.walk(ROOT, _SPARE)),
        (T.LCREATE, p9.create(_SPARE, "created")),
    ),
    UNIX_VERSION: (
        (T.VERSION, p9.version(MSIZE, UNIX_VERSION)),
        (T.ATTACH, p9.attach(ROOT)),
        (T.WALK, p9.walk(ROOT, FILE, "file")),
        (T.STAT, p9.fid(FILE)),
        (T.WSTAT, p9.wstat(FILE, name="renamed")),
        (T.WSTAT, p9.wstat(FILE, name="file")),
        (T.OPEN, p9.unix_open(FILE, p9.ORDWR)),
        (T.WALK, p9.walk(ROOT, _SPARE)),
        (T.CREATE, p9.unix_create(_SPARE, "created")),
        (T.WALK, p9.walk(ROOT, FOLDER)),
        (T.OPEN, p9.unix_open(FOLDER, p9.OREAD)),
        (T.READ, p9.read(FOLDER, 0, 4096)),
    ),
}


def furnish(share: Share) -> None:
    """What the messages of :data:`WHOLE` are about."""
    for path in share.path.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    (share.path / "file").write_bytes(CONTENT)
    (share.path / "folder").mkdir()
    (share.path / "link").symlink_to("file")


@pytest.mark.parametrize("protocol", BOTH)
def test_messages_cut_short(raw_guest: RawGuest, share: Share, protocol: str) -> None:
    """Each message without its last byte, and without half of it: it fails, or ends the device.

    Fields, and strings, end beyond the message then, which is where the buffer ends.
    """
    driver = started(raw_guest, share, protocol)
    machine = raw_guest.machine
    for kind, body in WHOLE[protocol]:
        for length in sorted({len(body) // 2, len(body) - 1}):
            with about(f"{kind.name} with {length} of {len(body)} bytes of its body"):
                driver.version(protocol)
                answered, complained = driver.answered(), complaints(machine)
                request = driver.send(kind, body[:length])
                if wait_for_either(machine, driver, answered, complained) == ANSWERED:
                    assert told(driver, request) != ANSWERED, f"{kind.name} with {length} bytes"
                else:
                    driver = revived(raw_guest, share)
    revived(raw_guest, share).clunk(ROOT)
    raw_guest.eject(share)


#: What is beyond the room for an answer.
_CANARY = b"\xa5" * 64


def sent_with_room(raw_guest: RawGuest, driver: RawDriver, message: tuple[T, bytes], room: int) -> str:
    """Send a message with ``room`` bytes for its answer; what came of it.

    :raises Violation: when QEMU wrote beyond them.
    """
    machine = raw_guest.machine
    buffers = 2 * driver.max_in_flight * (driver.buffer(1) - driver.buffer(0))
    raw_guest.qtest.command(f"memset {driver.buffer(0):#x} {buffers:#x} {_CANARY[0]:#x}")
    answered, complained = driver.answered(), complaints(machine)
    request = driver.send(*message, reply_size=room)
    seen = wait_for_either(machine, driver, answered, complained)
    if raw_guest.qtest.read(driver.buffer(request.head + 1) + room, len(_CANARY)) != _CANARY:
        raise Violation(f"QEMU wrote beyond the {room} bytes that there are for an answer")
    return told(driver, request) if seen == ANSWERED else seen


@pytest.mark.parametrize("protocol", BOTH)
def test_reply_buffers_that_are_short(raw_guest: RawGuest, share: Share, protocol: str) -> None:
    """An answer as long as its buffer comes; of a longer one an error, or it ends the device."""
    driver = started(raw_guest, share, protocol)
    furnish(share)
    sizes = [p9.HEADER + len(driver.call(kind, body)) for kind, body in WHOLE[protocol]]
    furnish(share)
    for message, size in zip(WHOLE[protocol], sizes, strict=True):
        with about(f"{message[0].name}, with room for its {size} bytes"):
            assert sent_with_room(raw_guest, driver, message, size) == ANSWERED, message[0].name
    for at, (message, size) in enumerate(zip(WHOLE[protocol], sizes, strict=True)):
        for room in {p9.HEADER, size - 1} - {p9.HEADER - 1, size}:
            if message[0] in (T.READ, T.READDIR):
                continue  # See the next scenarios.
            with about(f"{message[0].name}, whose answer has {size} bytes, with room for {room}"):
                furnish(share)
                for kind, body in WHOLE[protocol][:at]:
                    driver.call(kind, body)
                seen = sent_with_room(raw_guest, driver, message, room)
                assert seen != ANSWERED, f"{message[0].name} in {room} of {size} bytes"
                if seen == GIVEN_UP:
                    driver = revived(raw_guest, share)
    revived(raw_guest, share).clunk(ROOT)


@pytest.mark.parametrize("room", [p9.HEADER, p9.READ_HEADER - 1, p9.READ_HEADER, p9.READ_HEADER + 1])
def test_a_read_with_hardly_any_room(raw_guest: RawGuest, share: Share, room: int) -> None:
    """Of a file, and of an attribute: more is asked for than there is room for, down to a header's."""
    driver = started(raw_guest, share)
    for kind in (T.LOPEN, T.XATTRCREATE):
        driver.walk(ROOT, FILE, "file")
        body = p9.open_(FILE) if kind == T.LOPEN else p9.xattrcreate(FILE, "user.harness", len(CONTENT))
        driver.call(kind, body)
        with about(f"a Tread after {kind.name} with room for {room} bytes", raw_guest.machine):
            message = (T.READ, p9.read(FILE, 0, len(CONTENT)))
            assert sent_with_room(raw_guest, driver, message, room) != ANSWERED
        driver = revived(raw_guest, share)
    driver.clunk(ROOT)


def test_a_readdir_with_little_room(raw_guest: RawGuest, share: Share) -> None:
    """Rreaddir has the entries that fit into its buffer: the guest may ask for more than it has room for."""
    driver = started(raw_guest, share)
    make_files(share.path, _ENTRIES)
    driver.walk(ROOT, FOLDER)
    driver.open(FOLDER)
    for room in (p9.READ_HEADER + 100, 1000, 4096, MSIZE - 1):
        with about(f"room for {room} bytes"):
            message = (T.READDIR, p9.read(FOLDER, 0, MSIZE - p9.READ_HEADER))
            assert sent_with_room(raw_guest, driver, message, room) == ANSWERED, f"with room for {room}"


#: A message that is answered: Tclunk of a fid that is none; room for the answer; nobody's memory.
_MESSAGE = struct.pack("<IBHI", 11, T.CLUNK, 1, 4711)
_ROOM, _NOWHERE = 100, 1 << 40


def _pieces(address: int, size: int, *, first: int = 0) -> list[Descriptor]:
    """A chain of ``size`` descriptors of a byte each, which goes on after them."""
    return [Descriptor(address + at, 1, NEXT, first + at + 1) for at in range(size)]


#: Chains that no driver makes, as functions of where the request and its answer's buffer are, and a table.
#: Those in :data:`_SOUND` are unusual, and right.
CHAINS: dict[str, Callable[[int, int, int], list[Descriptor]]] = {
    "no reply": lambda out, _into, _table: [Descriptor(out, 11)],
    "no request": lambda _out, into, _table: [Descriptor(into, _ROOM, WRITE)],
    "a request of 3 bytes": lambda out, into, _table: [
        Descriptor(out, 3, NEXT, 1),
        Descriptor(into, _ROOM, WRITE),
    ],
    "a reply of 6 bytes": lambda out, into, _table: [
        Descriptor(out, 11, NEXT, 1),
        Descriptor(into, 6, WRITE),
    ],
    "an empty request": lambda out, into, _table: [
        Descriptor(out, 0, NEXT, 1),
        Descriptor(into, _ROOM, WRITE),
    ],
    "an empty reply": lambda out, into, _table: [Descriptor(out, 11, NEXT, 1), Descriptor(into, 0, WRITE)],
    "buffers that are nowhere": lambda out, _into, _table: [
        Descriptor(out, 11, NEXT, 1),
        *(Descriptor(_NOWHERE + at * 0x10000, 5000, NEXT | WRITE, at + 1) for at in range(1, 5)),
        Descriptor(_NOWHERE, _ROOM, WRITE),
    ],
    "a next one beyond the ring": lambda out, _into, _table: [Descriptor(out, 11, NEXT, 4000)],
    "a loop": lambda out, _into, _table: [Descriptor(out, 11, NEXT, 0)],
    "a loop of two": lambda out, into, _table: [
        Descriptor(out, 11, NEXT, 1),
        Descriptor(into, _ROOM, NEXT | WRITE, 1),
    ],
    "the reply first": lambda out, into, _table: [
        Descriptor(into, _ROOM, NEXT | WRITE, 1),
        Descriptor(out, 11),
    ],
    "an empty table": lambda _out, _into, table: [Descriptor(table, 0, INDIRECT)],
    "a table of 17 bytes": lambda _out, _into, table: [Descriptor(table, 17, INDIRECT)],
    "a table that is nowhere": lambda _out, _into, _table: [Descriptor(_NOWHERE, 32, INDIRECT)],
    "a table that is huge": lambda _out, _into, table: [Descriptor(table, 0xFFFFFFF0, INDIRECT)],
    "a table of itself": lambda _out, _into, table: [Descriptor(table + 64, 32, INDIRECT)],
    "a table that leads out": lambda _out, _into, table: [Descriptor(table, 16, INDIRECT)],
    "a table": lambda _out, _into, table: [Descriptor(table, 32, INDIRECT)],
    "a byte a piece": lambda out, into, _table: [
        *_pieces(out, 11),
        *(replace(piece, flags=NEXT | WRITE) for piece in _pieces(into, 30, first=11)),
        Descriptor(into + 30, _ROOM, WRITE),
    ],
}
_SOUND = ("a table", "a byte a piece")


def test_chains_that_no_driver_makes(raw_guest: RawGuest, share: Share) -> None:
    """QEMU answers, or gives the device up until it is reset; then it serves, and can be ejected."""
    driver = started(raw_guest, share)
    machine, qtest = raw_guest.machine, raw_guest.qtest
    before = fds(machine)
    for what, chain in CHAINS.items():
        with about(f"a chain of {what}"):
            driver = revived(raw_guest, share)
            answered, complained = driver.answered(), complaints(machine)
            out, into, table = (driver.buffer(index) for index in (100, 101, 102))
            qtest.write(out, _MESSAGE)
            good = bytes(Descriptor(out, 11, NEXT, 1)) + bytes(Descriptor(into, _ROOM, WRITE))
            qtest.write(table, good + bytes(32) + bytes(Descriptor(table + 64, 32, INDIRECT)))
            driver.write_descriptors(0, *chain(out, into, table))
            driver.make_available(0)
            seen = wait_for_either(machine, driver, answered, complained)
            if what in _SOUND:
                assert (seen, qtest.read(into + 4, 1)[0]) == (ANSWERED, T.RLERROR), what
    for head in (driver.queue_size, 0x7FFF, 0xFFFF):
        with about(f"the head {head}"):
            driver = revived(raw_guest, share)
            answered, complained = driver.answered(), complaints(machine)
            driver.make_available(head)
            assert wait_for_either(machine, driver, answered, complained) == GIVEN_UP
    driver = revived(raw_guest, share)
    driver.clunk(ROOT)
    expect_fds(machine, before)
    raw_guest.eject(share)
    started(raw_guest, share)


def test_queues_that_are_not_there(raw_guest: RawGuest, share: Share) -> None:
    """The device has one; whatever is said of others, and of that one before it has a ring, it serves on."""
    driver = started(raw_guest, share)
    for queue in (1, 2, 63, 1023, 1024, 0xFFFF):
        with about(f"queue {queue}"):
            driver.set_queue(queue, 0x1234)
            driver.notify(queue)
            driver.set_queue(queue, 0)
    driver.set_queue(0, 0)
    driver.notify()
    for page in (0xFFFFFFFF, 0x0FFFFFFF):
        driver.set_queue(0, page)
        driver.notify()
    raw_guest.machine.qmp.execute("query-status")
    revived(raw_guest, share)


#: QEMU: ``hw/9pfs/9p.h``, ``MAX_REQ``.
_REQUESTS = 128


def test_more_requests_than_qemu_has_room_for(raw_guest: RawGuest, share: Share, hold: Hold) -> None:
    """All that QEMU can have in flight, each in a table of its own, and some more.

    Each of the first is answered once, and so are those beyond where the ring has room for them. Where it has
    none, they have a descriptor that is in use, and QEMU lives.
    """
    require_counted_requests(raw_guest.machine)
    driver = started(raw_guest, share)
    driver.walk(ROOT, FILE, "file")
    driver.open(FILE)
    base, each = driver.buffer(0), 0x400
    before = driver.answered()
    message = struct.pack("<IBH", 23, T.READ, 1) + p9.read(FILE, 0, 100)
    heads = range(min(_REQUESTS + 3, driver.queue_size))
    with hold.requests(share) as held:
        for head in heads:
            place = base + head * each
            out, into = Descriptor(place + 64, len(message), NEXT, 1), Descriptor(place + 128, 256, WRITE)
            raw_guest.qtest.write(place, bytes(out) + bytes(into) + bytes(32) + message)
            driver.write_descriptors(head, Descriptor(place, 32, INDIRECT))
            driver.make_available(head)
        held.wait_in_flight(_REQUESTS)
        for head in range(_REQUESTS + 3 - len(heads)):
            driver.make_available(head)
        held.in_flight()
        driver.expect_answered(before)
    raw_guest.machine.wait_until(
        lambda: driver.answered() >= before + len(heads),
        what=f"all {len(heads)} answers",
        timeout_s=3,
    )
    for head in heads:
        answer = raw_guest.qtest.read(base + head * each + 128, p9.READ_HEADER + len(CONTENT))
        assert answer[4] == T.READ + 1, f"the answer to request {head}"
        assert answer[p9.READ_HEADER :] == CONTENT
    revived(raw_guest, share)


@dataclass(frozen=True)
class InFlight:
    """A read that is held: its request, and what can be done meanwhile."""

    guest: RawGuest
    driver: RawDriver
    read: Request

    def send(self, kind: T, body: bytes, *, tag: int | None = None) -> Request:
        """Send another message."""
        return self.driver.send(kind, body, tag=tag)

    def flush(self, old: Request | int) -> Request:
        """Send a Tflush of a request, or of a tag."""
        return self.send(T.FLUSH, p9.flush(old if isinstance(old, int) else old.tag))


def _flushes(count: int) -> Callable[[InFlight], list[Request]]:
    return lambda it: [it.flush(it.read) for _ in range(count)]


def _flush_of_a_flush(it: InFlight) -> list[Request]:
    first = it.flush(it.read)
    second = it.flush(first)
    return [first, second, it.flush(second), it.flush(it.read)]


def _a_tag_twice(it: InFlight) -> list[Request]:
    same = it.send(T.READ, p9.read(FILE, 0, 100), tag=it.read.tag)
    return [same, it.flush(same), it.flush(same)]


def _flush_and(kind: T, body: bytes) -> Callable[[InFlight], list[Request]]:
    return lambda it: [it.flush(it.read), it.send(kind, body), it.flush(it.read)]


#: What is said while a read is in flight.
MEANWHILE: dict[str, Callable[[InFlight], list[Request]]] = {
    "a flush": _flushes(1),
    "two flushes": _flushes(2),
    "many flushes": _flushes(20),
    "flushes of flushes": _flush_of_a_flush,
    "a tag that is taken": _a_tag_twice,
    "a flush of no request": lambda it: [it.flush(0x7FFF), it.flush(0xFFFF), it.flush(it.read)],
    "a clunk": _flush_and(T.CLUNK, p9.fid(FILE)),
    "a remove": _flush_and(T.REMOVE, p9.fid(FILE)),
    "a rename": _flush_and(T.RENAMEAT, p9.renameat(ROOT, "file", "renamed")),
    "a new session": _flush_and(T.VERSION, p9.version(MSIZE)),
    "an attach": _flush_and(T.ATTACH, p9.attach(OTHER)),
    "a read of nothing": _flush_and(T.READ, p9.read(4711, 0, 100)),
}


def expect_each_answered_once(driver: RawDriver, requests: list[Request]) -> None:
    """Those of ``requests`` that were not flushed have an answer or an error."""
    for request in requests:
        with suppress(NineError, FlushedError):
            driver.wait_answer(request)
    driver.expect_none_in_flight()


@pytest.mark.parametrize("what", MEANWHILE)
def test_flushes_of_a_request_in_flight(raw_guest: RawGuest, share: Share, hold: Hold, what: str) -> None:
    """Every Tflush is answered, and the read no more than once; what else was said is answered, too.

    Then the ring takes as many requests as before: none of QEMU's is lost.
    """
    driver = started(raw_guest, share)
    before = fds(raw_guest.machine)
    driver.walk(ROOT, FILE, "file")
    driver.open(FILE)
    with hold.requests(share) as held:
        it = InFlight(raw_guest, driver, driver.send(T.READ, p9.read(FILE, 0, 100)))
        held.wait_caught()
        said = MEANWHILE[what](it)
        raw_guest.machine.qmp.execute("query-status")
        held.in_flight()
    expect_each_answered_once(driver, [it.read, *said])
    (share.path / "file").write_bytes(CONTENT)
    begin(driver)
    expect_serving(driver)
    sent = [driver.send(T.GETATTR, p9.getattr_(ROOT)) for _ in range(driver.max_in_flight)]
    for request in sent:
        driver.wait_answer(request)
    driver.expect_none_in_flight()
    driver.clunk(ROOT)
    left = fds(raw_guest.machine) - before
    assert not left, f"{left} files of the share stay open"


@pytest.mark.parametrize("end", ["device_reset", "system_reset"])
def test_a_reset_with_flushed_requests_in_flight(
    raw_guest: RawGuest, share: Share, hold: Hold, end: str
) -> None:
    """The reset waits for the requests, and not for ever for what waits for them."""
    driver = started(raw_guest, share)
    before = fds(raw_guest.machine)
    for fid in (FILE, OTHER):
        driver.walk(ROOT, fid, "file")
        driver.open(fid)
    with hold.requests(share) as held:
        reads = [driver.send(T.READ, p9.read(fid, 0, 100)) for fid in (FILE, OTHER, FILE)]
        held.wait_caught(len(reads))
        for read_ in (*reads, reads[0], reads[0]):
            driver.send(T.FLUSH, p9.flush(read_.tag))
        reset = Background(driver.reset if end == "device_reset" else raw_guest.system_reset)
        done_while_held = happens_while(
            raw_guest.machine, lambda: reset.done, while_=held.waiting, what=f"the {end}"
        )
    reset.wait(timeout_s=raw_guest.machine.timeout_scale.seconds(30))
    expect_blocked_by(raw_guest.machine)
    revived(raw_guest, share).clunk(ROOT)
    assert fds(raw_guest.machine) == before
    assert not done_while_held, "the reset was done with requests in flight"


def test_an_eject_with_requests_that_nobody_told_of(raw_guest: RawGuest, share: Share) -> None:
    """The ring has requests that QEMU was not told of when the device goes: they go with it."""
    before = fds(raw_guest.machine)
    for told_of in (False, True):
        driver = started(raw_guest, share)
        driver.walk(ROOT, FILE, "file")
        driver.clunk(ROOT)
        driver.clunk(FILE)
        for index in range(0, 40, 2):
            out = driver.buffer(index)
            raw_guest.qtest.write(out, _MESSAGE)
            driver.write_descriptors(
                index, Descriptor(out, 11, NEXT, index + 1), Descriptor(driver.buffer(index + 1), 99, WRITE)
            )
            driver.make_available(index, notify=False)
        if told_of:
            driver.notify()
        raw_guest.eject(share)
        expect_blocked_by(raw_guest.machine)
        expect_fds(raw_guest.machine, before)
    started(raw_guest, share)


#: Messages that would change what is exported, and those that only look.
CHANGING: dict[str, dict[str, tuple[T, bytes]]] = {
    VERSION: {
        "Tlopen to write": (T.LOPEN, p9.open_(FILE, os.O_WRONLY)),
        "Tlopen for both": (T.LOPEN, p9.open_(FILE, os.O_RDWR)),
        "Tlopen to truncate": (T.LOPEN, p9.open_(FILE, os.O_TRUNC)),
        "Tlopen to append": (T.LOPEN, p9.open_(FILE, os.O_APPEND)),
        "Tlcreate": (T.LCREATE, p9.create(FOLDER, "new")),
        "Tlcreate of what is there": (T.LCREATE, p9.create(ROOT, "file", os.O_RDONLY)),
        "Tsymlink": (T.SYMLINK, p9.symlink(ROOT, "new", "to")),
        "Tmknod": (T.MKNOD, p9.mknod(ROOT, "new")),
        "Trename": (T.RENAME, p9.rename(FILE, ROOT, "new")),
        "Tsetattr of the mode": (T.SETATTR, p9.setattr_(FILE, 0o600)),
        "Tsetattr of the size": (T.SETATTR, p9.truncate(FILE, 1)),
        "Txattrcreate": (T.XATTRCREATE, p9.xattrcreate(OTHER, "user.harness", 5)),
        "Tlink": (T.LINK, p9.link(ROOT, FILE, "new")),
        "Tmkdir": (T.MKDIR, p9.mkdir(ROOT, "new")),
        "Trenameat": (T.RENAMEAT, p9.renameat(ROOT, "file", "new")),
        "Tunlinkat": (T.UNLINKAT, p9.unlinkat(ROOT, "file")),
        "Tunlinkat of a folder": (T.UNLINKAT, p9.unlinkat(ROOT, "folder", p9.REMOVEDIR)),
        "Twrite": (T.WRITE, p9.write(_SPARE, 0, b"new")),
        "Tremove": (T.REMOVE, p9.fid(OTHER)),
    },
    UNIX_VERSION: {
        "Topen to write": (T.OPEN, p9.unix_open(FILE, p9.OWRITE)),
        "Topen for both": (T.OPEN, p9.unix_open(FILE, p9.ORDWR)),
        "Tcreate": (T.CREATE, p9.unix_create(FOLDER, "new")),
        "Tcreate of a folder": (
            T.CREATE,
            p9.unix_create(FOLDER, "new", p9.DMDIR | 0o755, p9.OREAD),
        ),
        "Twstat of the name": (T.WSTAT, p9.wstat(FILE, name="new")),
        "Twstat of the mode": (T.WSTAT, p9.wstat(FILE, mode=0o600)),
        "Twstat of the size": (T.WSTAT, p9.wstat(FILE, length=1)),
        "Twrite": (T.WRITE, p9.write(_SPARE, 0, b"new")),
        "Tremove": (T.REMOVE, p9.fid(OTHER)),
    },
}


@pytest.fixture
def guest_of_a_read_only_export(testbed: Testbed) -> RawGuest:
    """A guest whose first share is ``readonly=on``."""
    testbed.declare(replace(testbed.shares[0], fsdev_options={"readonly": "on"}), *testbed.shares[1:])
    return RawGuest(testbed)


def with_fids(driver: RawDriver) -> None:
    """Fids for :data:`CHANGING`; :data:`_SPARE` is open for reading."""
    for fid, name in ((FILE, "file"), (OTHER, "file"), (FOLDER, "folder"), (_SPARE, "file")):
        driver.walk(ROOT, fid, name)
    driver.call(*opening(os.O_RDONLY)(Cell(_SPARE, 0, 0, "", driver.protocol)))


def tree(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """What is in a folder: names, modes, times and content."""
    found = {}
    for path in folder.rglob("*"):
        stat_ = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        found[str(path)] = (stat_.st_mode, stat_.st_mtime_ns, content)
    return found


def expect_refused(
    guest: RawGuest, share: Share, protocol: str, messages: dict[str, tuple[T, bytes]]
) -> None:
    """Each of ``messages`` is EROFS, and nothing is changed."""
    furnish(share)
    before = tree(share.path)
    driver = guest.plug(share)
    begin(driver, protocol)
    with_fids(driver)
    for what, message in messages.items():
        with about(what):
            assert tell(driver, *message) == "EROFS", what
            assert tree(share.path) == before, f"{what} changed what is exported"
    expect_serving(driver)


@pytest.mark.parametrize("protocol", BOTH)
def test_a_read_only_export(testbed: Testbed, guest_of_a_read_only_export: RawGuest, protocol: str) -> None:
    """Every message that would change something is refused, and says so."""
    expect_refused(guest_of_a_read_only_export, testbed.shares[0], protocol, CHANGING[protocol])


def test_a_topen_that_truncates_on_a_read_only_export(
    testbed: Testbed, guest_of_a_read_only_export: RawGuest
) -> None:
    """The same for one that opens for reading, and would empty the file all the same."""
    messages = {"Topen to truncate": (T.OPEN, p9.unix_open(FILE, p9.OREAD | p9.OTRUNC))}
    expect_refused(guest_of_a_read_only_export, testbed.shares[0], UNIX_VERSION, messages)


#: Messages that change the path of :data:`FOLDER`, a folder that is in use.
MOVES: dict[str, Callable[[], tuple[T, bytes]]] = {
    "walk": lambda: (T.WALK, p9.walk(FOLDER, FOLDER, "inside")),
    "rename": lambda: (T.RENAME, p9.rename(OTHER, ROOT, "renamed")),
    "renameat": lambda: (T.RENAMEAT, p9.renameat(ROOT, "folder", "renamed")),
    "wstat": lambda: (T.WSTAT, p9.wstat(OTHER, name="renamed")),
}


@pytest.mark.parametrize("how", MOVES)
def test_a_path_changes_when_no_thread_uses_it(
    raw_guest: RawGuest, share: Share, hold: Hold, how: str
) -> None:
    """A thread makes a folder in one whose fid is walked on, or which is renamed: that has to wait.

    Afterwards both are done, and the fids go by the new path.
    """
    driver = started(raw_guest, share, UNIX_VERSION if how == "wstat" else VERSION)
    (share.path / "folder" / "inside").mkdir(parents=True)
    driver.walk(ROOT, FOLDER, "folder")
    driver.walk(ROOT, OTHER, "folder")
    with hold.requests(share, "mkdirat") as held:
        making = driver.send(T.MKDIR, p9.mkdir(FOLDER, "made"))
        held.wait_caught()
        moving = driver.send(*MOVES[how]())
        answered = driver.answered()
        # Each look needs QMP's answer as well: QEMU's main loop has been round, and has seen the message.
        held.in_flight()
        check_during(raw_guest.machine.timeout_scale.seconds(0.1), lambda: driver.expect_answered(answered))
        held.in_flight()
    driver.wait_answer(making)
    driver.wait_answer(moving)
    folder = share.path / ("folder" if how == "walk" else "renamed")
    assert sorted(path.name for path in folder.iterdir()) == ["inside", "made"]
    driver.call(T.MKDIR, p9.mkdir(FOLDER, "later"))
    assert (folder / ("inside/later" if how == "walk" else "later")).is_dir()
    expect_serving(driver)


@pytest.mark.thorough
def test_what_is_refused_leaves_nothing(leak_hunt: LeakHunt, share: Share) -> None:
    """Each message that fails, because of its fid, its name or its numbers, leaves no memory behind."""
    furnish(share)
    unknown, fresh = STATES["an unknown fid"], STATES["a fresh FIFO"]
    os.mkfifo(share.path / "fifo")

    def cycle(guest: RawGuest) -> None:
        if share.id not in guest.machine.plugged:
            guest.plug(share)
        driver = guest.driver(share)
        begin(driver)
        driver.walk(ROOT, FOLDER, "folder")
        driver.walk(ROOT, FILE, "file")
        driver.walk(ROOT, OTHER, "file")
        driver.open(OTHER)
        for message in MESSAGES.values():
            if VERSION in message.protocols and message.succeeds(unknown) is False:
                tell(driver, message.kind, message.body(Cell(4711, _SPARE, _HELPER, "1", VERSION)))
            if VERSION in message.protocols and message.succeeds(fresh) is False:
                driver.walk(ROOT, _FIRST, "fifo")
                tell(driver, message.kind, message.body(Cell(_FIRST, _SPARE, _HELPER, "1", VERSION)))
                tell(driver, T.CLUNK, p9.fid(_FIRST))
        for kind, body in (
            (T.READ, p9.read(OTHER, 1 << 63, 100)),
            (T.WRITE, p9.write(OTHER, 0, b"refused")),
            (T.XATTRCREATE, p9.xattrcreate(OTHER, "user.harness", 5)),
            (T.XATTRWALK, p9.xattrwalk(FILE, _SPARE, "user.none")),
            (T.XATTRWALK, p9.xattrwalk(FILE, OTHER, "")),
            (T.MKDIR, p9.mkdir(ROOT, "a/b")),
            (T.MKDIR, p9.mkdir(ROOT, "n" * 300)),
        ):
            assert tell(driver, kind, body) != ANSWERED
        driver.version()

    leak_hunt.repeat_raw(cycle)
