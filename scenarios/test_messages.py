"""A hostile guest cannot hurt QEMU: messages of 9P about fids in each state, at each limit, in each order.

A 9p client of our own says what no kernel says. What has to come of it: each request is answered once, with
the answer that belongs to it or an error, or the device is given up until it is reset; QEMU lives, serves on,
and has no file open that it had not before.

The first table is generated: :data:`MESSAGES` by :data:`STATES`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.actions.migration import expect_blocked_by
from harness.errors import GuestError, Violation
from harness.holds.hold import Hold
from harness.leaks.footprint import open_fds
from harness.leaks.hunt import LeakHunt
from harness.ninep import messages as p9
from harness.ninep.client import (
    RawDriver,
    RawGuest,
)
from harness.ninep.messages import NOFID, UNIX_VERSION, VERSION, T
from harness.ninep.session import (
    ANSWERED,
    BOTH,
    CONTENT,
    FILE,
    FOLDER,
    HELPER,
    OTHER,
    ROOT,
    SPARE,
    about,
    begin,
    expect_serving,
    furnish,
    open_request,
    started,
    tell,
)
from harness.qemu.machine import Machine
from harness.qemu.spec import Share

pytestmark = [pytest.mark.no_guest_kernel, pytest.mark.pin_machine("pc")]

#: The fid of the first cell.
_FIRST = 100
#: What is said of a fid that is none.
NO_FID = ("EINVAL", "ENOENT", "EBADF")


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
    return lambda cell: open_request(cell.protocol, cell.fid, flags)


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


def together(driver: RawDriver, requests: list[tuple[T, bytes]]) -> None:
    """All of them at once; each has to succeed."""
    for sent in [driver.send(kind, body) for kind, body in requests]:
        driver.wait_answer(sent)


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
        Cell(_FIRST + i if state.fid is None else state.fid, SPARE + i, HELPER + i, str(i), protocol)
        for i in range(len(messages))
    ]
    before = open_fds(machine)
    bring_into(state, driver, cells)
    left = open_fds(machine)
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
            if (now := open_fds(machine)) != left:
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
    before = open_fds(raw_guest.machine)
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
    if (more := open_fds(raw_guest.machine) - before) != 0:
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
    before = open_fds(raw_guest.machine)
    with hold.requests(share) as held:
        reading = driver.send(T.READ, p9.read(FILE, 0, 100))
        held.wait_caught()
        driver.clunk(FILE)
        cell = Cell(FILE, SPARE, HELPER, "file", VERSION)
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
    assert open_fds(raw_guest.machine) == before, "the clunked fid's file is still open"


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
                tell(driver, message.kind, message.body(Cell(4711, SPARE, HELPER, "1", VERSION)))
            if VERSION in message.protocols and message.succeeds(fresh) is False:
                driver.walk(ROOT, _FIRST, "fifo")
                tell(driver, message.kind, message.body(Cell(_FIRST, SPARE, HELPER, "1", VERSION)))
                tell(driver, T.CLUNK, p9.fid(_FIRST))
        for kind, body in (
            (T.READ, p9.read(OTHER, 1 << 63, 100)),
            (T.WRITE, p9.write(OTHER, 0, b"refused")),
            (T.XATTRCREATE, p9.xattrcreate(OTHER, "user.harness", 5)),
            (T.XATTRWALK, p9.xattrwalk(FILE, SPARE, "user.none")),
            (T.XATTRWALK, p9.xattrwalk(FILE, OTHER, "")),
            (T.MKDIR, p9.mkdir(ROOT, "a/b")),
            (T.MKDIR, p9.mkdir(ROOT, "n" * 300)),
        ):
            assert tell(driver, kind, body) != ANSWERED
        driver.version()

    leak_hunt.repeat_raw(cycle)
