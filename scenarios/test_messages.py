"""A hostile guest cannot hurt QEMU: it answers each 9P message correctly, in whatever state the fid is.

The raw client (:mod:`harness.ninep.client`) sends messages that no kernel sends. QEMU has to answer each
request exactly once, with the right answer or an error. Afterwards it still runs, serves the export, and has
no more files open than before.

The cases are generated: each of :data:`MESSAGES` is sent about a fid in each of :data:`STATES`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from harness.actions.migration import expect_blocked_by
from harness.errors import GuestError, Violation
from harness.holds.hold import Hold
from harness.leaks.footprint import open_fds
from harness.leaks.hunt import MANY_REQUESTS, LeakHunt
from harness.ninep import messages as p9
from harness.ninep.client import RawDriver, RawGuest
from harness.ninep.messages import NOFID, UNIX_VERSION, VERSION, T
from harness.ninep.session import (
    ANSWERED,
    CONTENT,
    FILE,
    FOLDER,
    HELPER,
    OTHER,
    PROTOCOLS,
    ROOT,
    SPARE,
    error_context,
    expect_serving,
    open_request,
    outcome,
    plug_and_attach,
    reset_export,
    start_session,
    wait_outcome,
)
from harness.plugin.thorough import by_default
from harness.qemu.machine import Machine
from harness.qemu.spec import Share
from harness.testbed import Testbed

pytestmark = [pytest.mark.no_guest_kernel, pytest.mark.pin_machine("pc")]

#: The fid of the first case.
_FIRST = 100
#: The errnos with which QEMU answers a message about a fid that does not exist.
NO_FID = ("EINVAL", "ENOENT", "EBADF")


@dataclass(frozen=True)
class Case:
    """What one message of the table is about.

    :ivar fid: the fid whose state is tested. :ivar spare: a free fid, which the message may create.
    :ivar helper: a free fid for the steps that lead to the state.
    :ivar name: of the case's own file or folder; no other case uses it.
    """

    fid: int
    spare: int
    helper: int
    name: str
    protocol: str


#: The request that is one step on the way to a state.
Step = Callable[[Case], tuple[T, bytes]]


def open_fid(flags: int) -> Step:
    """Open the fid; ``flags`` are O_RDONLY, O_WRONLY or O_RDWR."""
    return lambda case: open_request(case.protocol, case.fid, flags)


def walk_to_own_file(case: Case) -> tuple[T, bytes]:
    """Twalk: the fid becomes the case's own file or folder."""
    return T.WALK, p9.walk(FOLDER, case.fid, case.name)


@dataclass(frozen=True)
class State:
    """The state of a fid when the message is sent.

    :ivar kind: "file", "folder", "root", "symlink" or "fifo"; "none" where the fid does not exist.
    :ivar opened: the flags that it was opened with; ``None`` where it is not open.
    :ivar xattr: "read" for a fid of Txattrwalk; "whole" or "part" for one of Txattrcreate, by how much of the
        value was written; "" for any other.
    :ivar unlinked: its file was unlinked. :ivar session_ended: a Tversion has ended its session.
    :ivar fid: its number, where that matters. :ivar steps: the requests that lead to the state.
    """

    kind: str = "file"
    opened: int | None = None
    xattr: str = ""
    unlinked: bool = False
    session_ended: bool = False
    fid: int | None = None
    steps: tuple[Step, ...] = (walk_to_own_file,)

    @property
    def exists(self) -> bool:
        """Whether QEMU knows the fid."""
        return self.kind != "none" and not self.session_ended

    @property
    def only_walked(self) -> bool:
        """Whether the fid stands for a path and nothing else: it is not open, and not of an attribute."""
        return self.opened is None and not self.xattr

    @property
    def is_folder(self) -> bool:
        """Whether files can be created in it."""
        return self.kind in ("folder", "root")


def _open(flags: int, **others: object) -> State:
    return State(opened=flags, steps=(walk_to_own_file, open_fid(flags)), **others)  # type: ignore[arg-type]


def _written(count: int) -> tuple[Step, ...]:
    return (
        walk_to_own_file,
        lambda c: (T.XATTRCREATE, p9.xattrcreate(c.fid, "user.harness", len(CONTENT))),
        lambda c: (T.WRITE, p9.write(c.fid, 0, CONTENT[:count])),
    )


STATES = {
    "an unknown fid": State("none", steps=()),
    "NOFID": State("none", fid=NOFID, steps=()),
    "an unopened file": State(),
    "an unopened folder": State("folder"),
    "an unopened symlink": State("symlink"),
    "an unopened FIFO": State("fifo"),
    "a file open for reading": _open(os.O_RDONLY),
    "a file open for writing": _open(os.O_WRONLY),
    "a file open for both": _open(os.O_RDWR),
    "an open folder": _open(os.O_RDONLY, kind="folder"),
    "a list of attributes": State(
        xattr="read",
        steps=(
            lambda c: (T.WALK, p9.walk(FOLDER, c.helper, c.name)),
            lambda c: (T.XATTRWALK, p9.xattrwalk(c.helper, c.fid, "")),
            lambda c: (T.CLUNK, p9.fid(c.helper)),
        ),
    ),
    "an attribute written as a whole": State(xattr="whole", steps=_written(len(CONTENT))),
    "an attribute written in part": State(xattr="part", steps=_written(len(CONTENT) // 2)),
    "an unlinked file": State(
        unlinked=True, steps=(walk_to_own_file, lambda c: (T.UNLINKAT, p9.unlinkat(FOLDER, c.name)))
    ),
    "an unlinked open file": State(
        opened=os.O_RDWR,
        unlinked=True,
        steps=(walk_to_own_file, open_fid(os.O_RDWR), lambda c: (T.UNLINKAT, p9.unlinkat(FOLDER, c.name))),
    ),
    "a removed folder": State(
        "folder",
        unlinked=True,
        steps=(
            walk_to_own_file,
            lambda c: (T.WALK, p9.walk(c.fid, c.helper, "inside")),
            lambda c: (T.REMOVE, p9.fid(c.helper)),
            lambda c: (T.UNLINKAT, p9.unlinkat(FOLDER, c.name, p9.REMOVEDIR)),
        ),
    ),
    "the root": State("root", steps=(lambda c: (T.ATTACH, p9.attach(c.fid)),)),
    "an open file of the session before": _open(os.O_RDWR, session_ended=True),
}

#: The required outcome for a fid in a state: success (``True``), an error (``False``), or either of them
#: (``None``) where neither the protocol nor Linux defines it.
Expected = Callable[[State], bool | None]


@dataclass(frozen=True)
class Message:
    """A message about a fid.

    :ivar expected: the required outcome when the fid exists.
    :ivar creates: the message creates the fid, so it has to fail when the fid exists.
    :ivar into: the fid is a target folder; NOFID there may mean that there is none.
    """

    kind: T
    body: Callable[[Case], bytes]
    expected: Expected
    protocols: tuple[str, ...] = PROTOCOLS
    creates: bool = False
    into: bool = False

    def succeeds(self, state: State) -> bool | None:
        """The required outcome in ``state``, also where the fid does not exist."""
        if state.fid == NOFID and (self.creates or self.into):
            return None
        if self.creates:
            return not state.exists
        return self.expected(state) if state.exists or self.expected is fid_is_ignored else False


def fid_is_ignored(_state: State) -> bool | None:
    """Either outcome, also where the fid does not exist: QEMU need not look at it."""
    return None


def must_fail(_state: State) -> bool | None:
    """An error in every state."""
    return False


def either(_state: State) -> bool | None:
    """Either outcome in every state, as long as the message is answered."""
    return None


def if_only_walked(state: State) -> bool | None:
    """Success for a fid that was only walked to; either outcome for others."""
    return True if state.only_walked and not state.unlinked else None


def must_be_only_walked(*kinds: str) -> Expected:
    """Success for a fid that was only walked to and is one of ``kinds``, either outcome for other kinds; an
    error for every other fid."""

    def rule(state: State) -> bool | None:
        if not state.only_walked:
            return False
        return True if state.kind in kinds and not state.unlinked else None

    return rule


def clone(state: State) -> bool | None:
    """Twalk without names, with the fid itself as newfid."""
    if not state.only_walked:
        return False
    return None if state.unlinked else True


def uses_entry(state: State) -> bool | None:
    """An entry of the folder is used. The root does not have that entry, so either outcome is right there."""
    if state.kind == "root":
        return None
    if not state.is_folder or state.unlinked:
        return False
    return True if state.only_walked else None


def makes_entry(state: State) -> bool | None:
    """A file is created in the folder."""
    return state.is_folder and not state.unlinked


def becomes_entry(state: State) -> bool | None:
    """A file is created in the folder, and the fid then stands for it: a fid that is open cannot."""
    return state.is_folder and not state.unlinked and state.only_walked


def open_to_read(state: State) -> bool | None:
    """Opening for reading: a file or folder that is not open yet."""
    if not state.only_walked or state.unlinked or state.kind == "symlink":
        return False
    return None if state.kind == "fifo" else True


def open_to_write(state: State) -> bool | None:
    """Opening for writing: a file that is not open yet. A folder may be opened or refused."""
    return None if open_to_read(state) and state.is_folder else open_to_read(state)


def read(state: State) -> bool | None:
    """Reading: a file that is open for it, or an attribute."""
    if state.xattr:
        return True if state.xattr == "read" else None
    if state.kind == "folder" and state.opened is not None:
        return None
    return state.opened in (os.O_RDONLY, os.O_RDWR)


def write(state: State) -> bool | None:
    """Writing: a file that is open for it, or an attribute that has room left."""
    if state.xattr:
        return True if state.xattr == "part" else None
    return state.kind == "file" and state.opened in (os.O_WRONLY, os.O_RDWR)


def readdir(state: State) -> bool | None:
    """Listing: a folder that is open."""
    return state.kind == "folder" and state.opened is not None


def clunk(state: State) -> bool | None:
    """Clunking: every fid. Tclunk sets a new attribute, so it fails when a part of the value is missing;
    with the whole value, the host's file system decides."""
    return {"part": False, "whole": None}.get(state.xattr, True)


def remove(state: State) -> bool | None:
    """Removing: a file that still has a name. The folders of the table are not empty."""
    if state.xattr:
        return None
    return not state.unlinked and not state.is_folder


def stat(state: State) -> bool | None:
    """Reading the status: every file that has a name (``test_data.py`` has the unlinked ones)."""
    return None if state.unlinked else True


def stat_of_file_or_folder(state: State) -> bool | None:
    """As :func:`stat`, for files and folders; either outcome for other kinds."""
    return None if state.kind in ("symlink", "fifo") else stat(state)


def truncate(state: State) -> bool | None:
    """Truncating: a file. One that is open for reading can be truncated with truncate(2), and not with
    ftruncate(2)."""
    if state.kind != "file":
        return False
    return None if state.unlinked or state.opened == os.O_RDONLY else True


def sync(state: State) -> bool | None:
    """Synchronizing: whatever is open."""
    return state.opened is not None


def lock(state: State) -> bool | None:
    """Locking: a file that is open."""
    return None if state.is_folder and state.opened is not None else state.opened is not None


def rename(state: State) -> bool | None:
    """Renaming: whatever is not open and still has a name, except the root."""
    return state.only_walked and not state.unlinked and state.kind != "root"


def wstat_name(state: State) -> bool | None:
    """Renaming by Twstat: as :func:`rename`; either outcome for an open fid."""
    return rename(state) if state.only_walked else None


def link(state: State) -> bool | None:
    """Linking to it: a file."""
    if state.is_folder:
        return False
    return True if state.kind == "file" and state.only_walked and not state.unlinked else None


MESSAGES = {
    "Twalk": Message(T.WALK, lambda c: p9.walk(c.fid, c.spare), if_only_walked),
    "Twalk into": Message(T.WALK, lambda c: p9.walk(c.fid, c.spare, "inside"), uses_entry),
    "Twalk to itself": Message(T.WALK, lambda c: p9.walk(c.fid, c.fid), clone),
    "Twalk up": Message(T.WALK, lambda c: p9.walk(c.fid, c.spare, "..", ".."), either),
    "Twalk of 16 names": Message(T.WALK, lambda c: p9.walk(c.fid, c.spare, *["."] * 16), either),
    "Twalk of 17 names": Message(T.WALK, lambda c: p9.walk(c.fid, c.spare, *["."] * 17), must_fail),
    "Twalk with it as newfid": Message(T.WALK, lambda c: p9.walk(ROOT, c.fid), either, creates=True),
    "Tattach": Message(T.ATTACH, lambda c: p9.attach(c.fid), either, creates=True),
    "Tattach with it as afid": Message(T.ATTACH, lambda c: p9.attach(c.spare, c.fid), fid_is_ignored),
    "Tauth": Message(T.AUTH, lambda c: p9.auth(c.fid), must_fail),
    "Tread": Message(T.READ, lambda c: p9.read(c.fid, 0, 100), read),
    "Twrite": Message(T.WRITE, lambda c: p9.write(c.fid, 0, CONTENT[:2]), write),
    "Tclunk": Message(T.CLUNK, lambda c: p9.fid(c.fid), clunk),
    "Tremove": Message(T.REMOVE, lambda c: p9.fid(c.fid), remove),
    "Tlopen": Message(T.LOPEN, lambda c: p9.open_(c.fid), open_to_read, (VERSION,)),
    "Tlopen to write": Message(T.LOPEN, lambda c: p9.open_(c.fid, os.O_RDWR), open_to_write, (VERSION,)),
    "Tlopen to truncate": Message(
        T.LOPEN, lambda c: p9.open_(c.fid, os.O_WRONLY | os.O_TRUNC), open_to_write, (VERSION,)
    ),
    "Tlopen with all flags": Message(T.LOPEN, lambda c: p9.open_(c.fid, 0xFFFFFFFF), either, (VERSION,)),
    "Tlcreate": Message(T.LCREATE, lambda c: p9.create(c.fid, f"new{c.name}"), becomes_entry, (VERSION,)),
    "Treaddir": Message(T.READDIR, lambda c: p9.read(c.fid, 0, 4096), readdir, (VERSION,)),
    "Tgetattr": Message(T.GETATTR, lambda c: p9.getattr_(c.fid), stat, (VERSION,)),
    "Tsetattr of the mode": Message(
        T.SETATTR, lambda c: p9.setattr_(c.fid, 0o755), stat_of_file_or_folder, (VERSION,)
    ),
    "Tsetattr of the size": Message(T.SETATTR, lambda c: p9.truncate(c.fid, 3), truncate, (VERSION,)),
    "Tstatfs": Message(T.STATFS, lambda c: p9.fid(c.fid), stat_of_file_or_folder, (VERSION,)),
    "Trename": Message(T.RENAME, lambda c: p9.rename(c.fid, FOLDER, f"new{c.name}"), rename, (VERSION,)),
    "Trename into it": Message(
        T.RENAME, lambda c: p9.rename(FILE, c.fid, f"new{c.name}"), either, (VERSION,), into=True
    ),
    "Trenameat from": Message(
        T.RENAMEAT,
        lambda c: p9.renameat(c.fid, "inside", f"new{c.name}", FOLDER),
        uses_entry,
        (VERSION,),
    ),
    "Trenameat into": Message(
        T.RENAMEAT,
        lambda c: p9.renameat(FOLDER, f"moved{c.name}", f"new{c.name}", c.fid),
        makes_entry,
        (VERSION,),
        into=True,
    ),
    "Tunlinkat": Message(T.UNLINKAT, lambda c: p9.unlinkat(c.fid, "inside"), uses_entry, (VERSION,)),
    "Tlink into": Message(T.LINK, lambda c: p9.link(c.fid, FILE, f"new{c.name}"), makes_entry, (VERSION,)),
    "Tlink to it": Message(T.LINK, lambda c: p9.link(FOLDER, c.fid, f"new{c.name}"), link, (VERSION,)),
    "Tsymlink": Message(
        T.SYMLINK, lambda c: p9.symlink(c.fid, f"new{c.name}", "to"), makes_entry, (VERSION,)
    ),
    "Tmknod": Message(T.MKNOD, lambda c: p9.mknod(c.fid, f"new{c.name}"), makes_entry, (VERSION,)),
    "Tmkdir": Message(T.MKDIR, lambda c: p9.mkdir(c.fid, f"new{c.name}"), makes_entry, (VERSION,)),
    "Treadlink": Message(T.READLINK, lambda c: p9.fid(c.fid), lambda s: s.kind == "symlink", (VERSION,)),
    "Txattrwalk": Message(T.XATTRWALK, lambda c: p9.xattrwalk(c.fid, c.spare, ""), either, (VERSION,)),
    "Txattrwalk of an unknown name": Message(
        T.XATTRWALK, lambda c: p9.xattrwalk(c.fid, c.spare, "user.none"), must_fail, (VERSION,)
    ),
    "Txattrwalk with it as newfid": Message(
        T.XATTRWALK, lambda c: p9.xattrwalk(FOLDER, c.fid, ""), either, (VERSION,), creates=True
    ),
    "Txattrcreate": Message(
        T.XATTRCREATE,
        lambda c: p9.xattrcreate(c.fid, "user.new", 9),
        must_be_only_walked("file", "folder", "root"),
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
    "Topen with all flags": Message(T.OPEN, lambda c: p9.unix_open(c.fid, 0xFF), either, (UNIX_VERSION,)),
    "Tcreate": Message(
        T.CREATE, lambda c: p9.unix_create(c.fid, f"new{c.name}"), becomes_entry, (UNIX_VERSION,)
    ),
    "Tcreate of a folder": Message(
        T.CREATE,
        lambda c: p9.unix_create(c.fid, f"new{c.name}", p9.DMDIR | 0o755, p9.OREAD),
        becomes_entry,
        (UNIX_VERSION,),
    ),
    "Tcreate of a symlink": Message(
        T.CREATE,
        lambda c: p9.unix_create(c.fid, f"new{c.name}", p9.DMSYMLINK, extension="to"),
        becomes_entry,
        (UNIX_VERSION,),
    ),
    "Tcreate of a link": Message(
        T.CREATE,
        lambda c: p9.unix_create(c.fid, f"new{c.name}", p9.DMLINK, extension=str(FILE)),
        becomes_entry,
        (UNIX_VERSION,),
    ),
    "Tcreate of a link to it": Message(
        T.CREATE,
        lambda c: p9.unix_create(OTHER, f"new{c.name}", p9.DMLINK, extension=str(c.fid)),
        either,
        (UNIX_VERSION,),
    ),
    "Tstat": Message(T.STAT, lambda c: p9.fid(c.fid), stat, (UNIX_VERSION,)),
    "Twstat of the name": Message(
        T.WSTAT, lambda c: p9.wstat(c.fid, name=f"new{c.name}"), wstat_name, (UNIX_VERSION,)
    ),
    "Twstat of the size": Message(T.WSTAT, lambda c: p9.wstat(c.fid, length=3), truncate, (UNIX_VERSION,)),
}
#: Further messages, of which QEMUs answer some wrongly (R42, R43, R95 and R96 in ``images/known-bugs.toml``).
#: Each has its own test, so that a known bug hides nothing else.
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
            must_fail,
            (UNIX_VERSION,),
        ),
    },
}


def call_all(driver: RawDriver, requests: list[tuple[T, bytes]]) -> None:
    """Send all of ``requests``, then wait for the answers.

    :raises NineError: when one of them fails.
    """
    for sent in [driver.send(kind, body) for kind, body in requests]:
        driver.wait_answer(sent)


def fill(folder: Path, kind: str, names: list[str]) -> None:
    """Make, for each case, a file of that kind called NAME, and ``movedNAME``, which Trenameat renames."""
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
            with suppress(OSError):  # The host's file system may have no extended attributes.
                os.setxattr(path, "user.listed", b"1")


def walk_to_common_files(driver: RawDriver) -> None:
    """Make the fids that all cases of a state share."""
    driver.walk(ROOT, FOLDER, "table")
    driver.walk(FOLDER, FILE, "file")
    driver.walk(FOLDER, OTHER, "other")


def bring_into(state: State, driver: RawDriver, cases: list[Case]) -> None:
    """Bring the fid of each of ``cases`` into ``state``."""
    walk_to_common_files(driver)
    for step in state.steps:
        call_all(driver, [step(case) for case in cases])
    if state.session_ended:
        start_session(driver, cases[0].protocol)
        walk_to_common_files(driver)


def problem_of(seen: str, message: Message, state: State) -> str | None:
    """What is wrong with the outcome ``seen``; ``None`` when it is right."""
    expected = message.succeeds(state)
    if expected is not None and expected != (seen == ANSWERED):
        return f"{seen}, and has to {'succeed' if expected else 'fail'}"
    if not state.exists and not message.creates and seen not in (*NO_FID, ANSWERED, "ENOTSUP"):
        return f"{seen} for a fid that does not exist"
    return None


def leaves_the_fid(message: Message, state: State) -> bool:
    """Whether the fid has to exist after the message, and not stand for a new attribute: its Tclunk, which
    would set that one, has to succeed."""
    ends = (T.CLUNK, T.REMOVE, T.XATTRCREATE)
    return state.exists and state.xattr in ("", "read") and message.kind not in ends


def problems_of(
    machine: Machine, driver: RawDriver, name: str, messages: dict[str, Message], protocol: str
) -> Iterator[str]:
    """Send each message about a fid in the state ``name``; yield what is wrong with the outcomes.

    Also wrong is a message after which the fid's Tclunk fails, or after which QEMU has more or fewer files
    open, once the case's fids are clunked.
    """
    state = STATES[name]
    cases = [
        Case(_FIRST + i if state.fid is None else state.fid, SPARE + i, HELPER + i, str(i), protocol)
        for i in range(len(messages))
    ]
    before = open_fds(machine)
    bring_into(state, driver, cases)
    left = open_fds(machine)
    fds_a_case = 0 if state.session_ended else (left - before) // len(cases)
    for case, (what, message) in zip(cases, messages.items(), strict=True):
        with error_context(f"{what} on {name}"):
            try:
                wrong = problem_of(outcome(driver, message.kind, message.body(case)), message, state)
            except (Violation, GuestError) as exc:
                wrong = exc.message
            clunked = outcome(driver, T.CLUNK, p9.fid(case.fid))
            if leaves_the_fid(message, state) and clunked != ANSWERED:
                wrong = wrong or f"the fid's clunk then fails with {clunked}"
            outcome(driver, T.CLUNK, p9.fid(case.spare))
            left -= fds_a_case
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
    """Send each of ``messages`` about a fid in each state; QEMU has to serve on and to free everything.

    :raises Violation: when an outcome is wrong; it lists all of them.
    """
    driver = plug_and_attach(raw_guest, share, protocol)
    chosen = {name: message for name, message in messages.items() if protocol in message.protocols}
    problems: list[str] = []
    before = open_fds(raw_guest.machine)
    for name, state in STATES.items():
        fill(share.path / "table", state.kind, [str(number) for number in range(len(chosen))])
        problems += problems_of(raw_guest.machine, driver, name, chosen, protocol)
        with error_context(f"reading a file after the messages on {name}"):
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


@pytest.mark.parametrize("protocol", by_default(VERSION, of=PROTOCOLS))
def test_every_message_on_every_fid(raw_guest: RawGuest, share: Share, protocol: str) -> None:
    """Each message has the required outcome in each state, is answered once, and leaves no file open."""
    expect_right_answers(raw_guest, share, MESSAGES, protocol)


@pytest.mark.thorough
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_each_message_twice_at_once(raw_guest: RawGuest, share: Share, protocol: str) -> None:
    """QEMU finds each message twice in the ring, about the same fid: it answers both, with an error where one
    alone would fail, and serves on."""
    driver = plug_and_attach(raw_guest, share, protocol)
    driver.reply_timeout_s = 10
    chosen = {what: message for what, message in MESSAGES.items() if protocol in message.protocols}
    problems: list[str] = []
    for name, state in STATES.items():
        if not state.exists:
            continue
        fill(share.path / "table", state.kind, [str(number) for number in range(len(chosen))])
        cases = [Case(_FIRST + i, SPARE + i, HELPER + i, str(i), protocol) for i in range(len(chosen))]
        bring_into(state, driver, cases)
        for case, (what, message) in zip(cases, chosen.items(), strict=True):
            with error_context(f"two times {what} on {name}", raw_guest.machine):
                body = message.body(case)
                sent = [driver.send(message.kind, body, notify=last) for last in (False, True)]
                seen = [wait_outcome(driver, request) for request in sent]
                if message.succeeds(state) is False and ANSWERED in seen:
                    problems.append(f"two times {what} on {name}: {' and '.join(seen)}")
        start_session(driver, protocol)
        with error_context(f"reading a file after the messages on {name}", raw_guest.machine):
            expect_serving(driver)
        shutil.rmtree(share.path / "table")
    driver.expect_none_in_flight()
    assert problems == []


@pytest.mark.thorough
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_files_of_messages_that_come_twice_at_once(
    raw_guest: RawGuest, share: Share, protocol: str
) -> None:
    """Of two messages at once that open a file for the same fid, none leaves a file open after its clunk."""
    driver = plug_and_attach(raw_guest, share, protocol)
    problems: list[str] = []
    for name, state in STATES.items():
        if state.kind in ("none", "symlink", "fifo") or not state.only_walked or state.unlinked:
            continue
        for what, message in MESSAGES.items():
            if message.kind not in _OPENING or protocol not in message.protocols:
                continue
            fill(share.path / "table", state.kind, ["0"])
            case = Case(_FIRST, SPARE, HELPER, "0", protocol)
            bring_into(state, driver, [case])
            before = open_fds(raw_guest.machine)
            with error_context(f"two times {what} on {name}", raw_guest.machine):
                sent = [driver.send(message.kind, message.body(case), notify=last) for last in (False, True)]
                seen = [wait_outcome(driver, request) for request in sent]
                driver.clunk(case.fid)
            if (more := open_fds(raw_guest.machine) - before) != 0:
                problems.append(f"two times {what} on {name}: {' and '.join(seen)}, {more:+} fds")
            start_session(driver, protocol)
            shutil.rmtree(share.path / "table")
    if problems:
        raise Violation(f"files stay open: {'; '.join(problems)}")


#: The messages that open a file.
_OPENING = (T.OPEN, T.LOPEN, T.CREATE, T.LCREATE)


@pytest.mark.parametrize("what", FURTHER)
def test_further_messages_on_every_fid(raw_guest: RawGuest, share: Share, what: str) -> None:
    """The same for messages that shipped QEMUs answer wrongly, such as Tlock of a fid that is not open."""
    messages = FURTHER[what]
    (protocol,) = next(iter(messages.values())).protocols
    expect_right_answers(raw_guest, share, messages, protocol)


def test_a_fid_that_is_clunked_while_it_is_used(raw_guest: RawGuest, share: Share, hold: Hold) -> None:
    """A fid is clunked while a read of its file is in flight: every message about the fid fails at once, the
    number can be used again, the read is answered with the right bytes, and no file stays open."""
    driver = plug_and_attach(raw_guest, share)
    driver.walk(ROOT, FOLDER)
    driver.walk(ROOT, FILE, "file")
    driver.open(FILE)
    before = open_fds(raw_guest.machine)
    with hold.requests(share) as held:
        reading = driver.send(T.READ, p9.read(FILE, 0, 100))
        held.wait_caught()
        driver.clunk(FILE)
        case = Case(FILE, SPARE, HELPER, "file", VERSION)
        for what, message in MESSAGES.items():
            if VERSION in message.protocols and message.succeeds(STATES["an unknown fid"]) is False:
                with error_context(what):
                    assert outcome(driver, message.kind, message.body(case)) in (*NO_FID, "ENOTSUP"), what
        driver.walk(ROOT, FILE, "file")
        driver.open(FILE)
        held.in_flight()
    assert driver.wait_answer(reading)[4:] == CONTENT
    assert driver.read(FILE, 0, 100) == CONTENT
    driver.expect_none_in_flight()
    assert open_fds(raw_guest.machine) == before, "the clunked fid's file is still open"


@pytest.mark.thorough
def test_what_is_refused_leaves_nothing(leak_hunt: LeakHunt, share: Share) -> None:
    """No leak: a message that fails because of its fid, name or numbers leaves no memory behind."""
    reset_export(share)
    unknown, unopened = STATES["an unknown fid"], STATES["an unopened FIFO"]
    os.mkfifo(share.path / "fifo")

    def cycle(guest: RawGuest) -> None:
        if share.id not in guest.machine.plugged:
            guest.plug(share)
        driver = guest.driver(share)
        start_session(driver)
        driver.walk(ROOT, FOLDER, "folder")
        driver.walk(ROOT, FILE, "file")
        driver.walk(ROOT, OTHER, "file")
        driver.open(OTHER)
        for message in MESSAGES.values():
            if VERSION in message.protocols and message.succeeds(unknown) is False:
                outcome(driver, message.kind, message.body(Case(4711, SPARE, HELPER, "1", VERSION)))
            if VERSION in message.protocols and message.succeeds(unopened) is False:
                driver.walk(ROOT, _FIRST, "fifo")
                outcome(driver, message.kind, message.body(Case(_FIRST, SPARE, HELPER, "1", VERSION)))
                outcome(driver, T.CLUNK, p9.fid(_FIRST))
        for kind, body in (
            (T.READ, p9.read(OTHER, 1 << 63, 100)),
            (T.WRITE, p9.write(OTHER, 0, b"refused")),
            (T.XATTRCREATE, p9.xattrcreate(OTHER, "user.harness", 5)),
            (T.XATTRWALK, p9.xattrwalk(FILE, SPARE, "user.none")),
            (T.XATTRWALK, p9.xattrwalk(FILE, OTHER, "")),
            (T.MKDIR, p9.mkdir(ROOT, "a/b")),
            (T.MKDIR, p9.mkdir(ROOT, "n" * 300)),
        ):
            assert outcome(driver, kind, body) != ANSWERED
        driver.version()

    leak_hunt.repeat_raw(cycle, MANY_REQUESTS)


def _about_a_file(protocol: str, fids: Iterator[int]) -> Iterator[tuple[T, bytes]]:
    """Messages that use the file of a fid by its name, each about a fid of its own."""
    yield open_request(protocol, next(fids), os.O_RDONLY)
    yield T.WALK, p9.walk(next(fids), SPARE)
    yield T.STATFS, p9.fid(next(fids))
    yield T.REMOVE, p9.fid(next(fids))
    if protocol == UNIX_VERSION:
        yield T.STAT, p9.fid(next(fids))
        yield T.WSTAT, p9.wstat(next(fids), mode=0o600)
        yield T.WSTAT, p9.wstat(next(fids), length=1)
        yield T.WSTAT, p9.wstat(next(fids), atime_s=1)
        yield T.WSTAT, p9.wstat(next(fids), uid=0)
        yield T.WSTAT, p9.wstat(next(fids), name="other")
        return
    yield T.GETATTR, p9.getattr_(next(fids))
    yield T.SETATTR, p9.setattr_(next(fids), 0o600)
    yield T.SETATTR, p9.truncate(next(fids), 1)
    yield T.SETATTR, p9.set_fields(next(fids), p9.ATIME)
    yield T.SETATTR, p9.set_fields(next(fids), p9.UID)
    yield T.READLINK, p9.fid(next(fids))
    yield T.XATTRWALK, p9.xattrwalk(next(fids), SPARE, "")
    yield T.XATTRWALK, p9.xattrwalk(next(fids), SPARE, "user.a")
    yield T.LINK, p9.link(ROOT, next(fids), "other")
    yield T.RENAME, p9.rename(next(fids), ROOT, "other")


@pytest.mark.parametrize("protocol", by_default(VERSION, of=PROTOCOLS))
def test_a_file_that_the_host_has_removed(raw_guest: RawGuest, share: Share, protocol: str) -> None:
    """Every message that uses it by name is answered with ENOENT, and the fids can be clunked."""
    driver = plug_and_attach(raw_guest, share, protocol)
    (share.path / "gone").touch()
    fids = range(_FIRST, _FIRST + 20)
    for fid in fids:
        driver.walk(ROOT, fid, "gone")
    (share.path / "gone").unlink()
    seen = {
        f"{kind.name} {body.hex()}": outcome(driver, kind, body)
        for kind, body in _about_a_file(protocol, iter(fids))
    }
    assert {what: seen for what, seen in seen.items() if seen != "ENOENT"} == {}
    assert [outcome(driver, T.CLUNK, p9.fid(fid)) for fid in fids].count(ANSWERED) == len(fids) - 1, "Tremove"
    expect_serving(driver)


def test_flags_that_do_not_exist(raw_guest: RawGuest, share: Share) -> None:
    """Unknown flags are refused, and nothing is done."""
    driver = plug_and_attach(raw_guest, share)
    driver.walk(ROOT, FILE, "file")
    driver.open(FILE)
    refused = [(T.UNLINKAT, p9.unlinkat(ROOT, "file", 0x400)), (T.LOCK, p9.lock(FILE, flags=0x2))]
    for kind, body in refused:
        assert outcome(driver, kind, body) == "EINVAL", kind
    expect_serving(driver)


def test_a_treaddir_of_9p2000u(raw_guest: RawGuest, share: Share) -> None:
    """The protocol has no such message: it is refused."""
    driver = plug_and_attach(raw_guest, share, UNIX_VERSION)
    driver.walk(ROOT, FOLDER)
    driver.call(*open_request(UNIX_VERSION, FOLDER, os.O_RDONLY))
    assert outcome(driver, T.READDIR, p9.read(FOLDER, 0, 1000)) == "ENOTSUP"
    expect_serving(driver)


@pytest.fixture
def synth(testbed: Testbed, share: Share) -> Share:
    """An export that QEMU makes up; to be made before the machine."""
    (declared,) = testbed.declare(replace(share, fsdriver="synth"))
    return declared


def test_a_driver_whose_fids_are_no_paths(synth: Share, raw_guest: RawGuest) -> None:
    """Trename and Tremove need a driver with paths; others refuse them, and what else would change a file."""
    driver = raw_guest.plug(synth)
    start_session(driver)
    driver.walk(ROOT, OTHER)
    assert outcome(driver, T.RENAME, p9.rename(OTHER, ROOT, "x")) == "ENOTSUP"
    assert outcome(driver, T.REMOVE, p9.fid(OTHER)) == "ENOTSUP"
    for kind, body in ((T.MKDIR, p9.mkdir(ROOT, "x")), (T.SYMLINK, p9.symlink(ROOT, "x", "y"))):
        assert outcome(driver, kind, body) == "EPERM", kind
    assert outcome(driver, T.STATFS, p9.fid(ROOT)) == ANSWERED


#: Messages about the root of a synth export, which only QEMU's own tests fill (``hw/9pfs/9p-synth.c``,
#: ``synth_init``), and their outcomes. The driver supports neither changes nor attributes.
SYNTH: tuple[tuple[T, bytes, str], ...] = (
    (T.WALK, p9.walk(ROOT, SPARE, "nothing"), "ENOENT"),
    (T.GETATTR, p9.getattr_(ROOT), ANSWERED),
    (T.SETATTR, p9.set_fields(ROOT, p9.MODE, mode=0o40700), "EPERM"),
    (T.SETATTR, p9.set_fields(ROOT, p9.UID, uid=1), "EPERM"),
    (T.SETATTR, p9.set_fields(ROOT, p9.SIZE), "ENOSYS"),
    (T.MKNOD, p9.mknod(ROOT, "x"), "EPERM"),
    (T.LCREATE, p9.create(OTHER, "x"), "ENOSYS"),
    (T.LINK, p9.link(ROOT, OTHER, "x"), "EPERM"),
    (T.READLINK, p9.fid(ROOT), "ENOSYS"),
    (T.RENAMEAT, p9.renameat(ROOT, "x", "y"), "EPERM or ENOTSUP"),
    (T.UNLINKAT, p9.unlinkat(ROOT, "x"), "ENOENT"),
    (T.XATTRWALK, p9.xattrwalk(ROOT, SPARE, ""), "ENOTSUP"),
    (T.XATTRWALK, p9.xattrwalk(ROOT, SPARE, "user.x"), "ENOTSUP"),
    (T.LOPEN, p9.open_(FOLDER), ANSWERED),
    (T.GETATTR, p9.getattr_(FOLDER), ANSWERED),
)


@pytest.mark.thorough
def test_an_export_that_qemu_makes_up(synth: Share, raw_guest: RawGuest) -> None:
    """Its root can be listed, in parts as well; what the driver does not support is refused."""
    driver = raw_guest.plug(synth)
    start_session(driver)
    for fid in (FOLDER, OTHER):
        driver.walk(ROOT, fid)
    for kind, body, expected in SYNTH:
        assert outcome(driver, kind, body) in expected.split(" or "), kind
    names = [name for name, _ in p9.entries(driver.readdir(FOLDER))]
    assert sorted(names) == [".", ".."]
    (first, following), *_ = p9.entries(driver.readdir(FOLDER, count=30))
    ((second, _),) = p9.entries(driver.call(T.READDIR, p9.read(FOLDER, following, 1000))[4:])
    assert {first, second} == {".", ".."}
    for removes in (True, False):
        driver.walk(ROOT, SPARE)
        driver.call(T.XATTRCREATE, p9.xattrcreate(SPARE, "user.x", 0 if removes else 1))
        if not removes:
            driver.write(SPARE, 0, b"v")
        # Newer QEMUs pretend that it worked.
        assert outcome(driver, T.CLUNK, p9.fid(SPARE)) in ("ENOTSUP", ANSWERED)
    start_session(driver, UNIX_VERSION)
    driver.walk(ROOT, FOLDER)
    driver.call(*open_request(UNIX_VERSION, FOLDER, os.O_RDONLY))
    assert outcome(driver, T.READ, p9.read(FOLDER, 0, 1000)) == "EINVAL", "the driver has no name ."
    driver.clunk(FOLDER)
