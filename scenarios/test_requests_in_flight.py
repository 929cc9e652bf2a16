"""A hostile guest cannot hurt QEMU: messages and resets that meet requests in flight.

A raw client sends a request whose system call is held on the host, and acts while QEMU waits for that call:
it flushes the request, ends its session, renames its folder, or resets the device.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.actions.drain import happens_while
from harness.actions.migration import expect_blocked_by
from harness.background import Background
from harness.deadline import check_during
from harness.holds.hold import MKDIR, READDIR, STAT, Hold
from harness.holds.throttle import require_throttling, throttled
from harness.leaks.footprint import open_fds
from harness.ninep import messages as p9
from harness.ninep.client import (
    MSIZE,
    FlushedError,
    NineError,
    RawDriver,
    RawGuest,
    Request,
    make_files,
)
from harness.ninep.messages import UNIX_VERSION, VERSION, T
from harness.ninep.session import (
    CONTENT,
    FILE,
    FOLDER,
    OTHER,
    PROTOCOLS,
    ROOT,
    expect_serving,
    open_request,
    plug_and_attach,
    reset_and_attach,
    start_session,
)
from harness.qemu.spec import Share
from harness.testbed import Testbed

pytestmark = [pytest.mark.no_guest_kernel, pytest.mark.pin_machine("pc")]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_folder_is_read_twice_at_once(raw_guest: RawGuest, share: Share, hold: Hold, protocol: str) -> None:
    """A second request reads the folder of a fid while the first is held on the host: QEMU goes on meanwhile.

    Both are answered. They share the fid's position, so each may have a part of the names; a third has all.
    """
    driver = plug_and_attach(raw_guest, share, protocol)
    names = {*make_files(share.path, 5), "file", ".", ".."}
    driver.walk(ROOT, FOLDER)
    driver.call(*open_request(protocol, FOLDER, os.O_RDONLY))
    kind = T.READDIR if protocol == VERSION else T.READ
    with hold.requests(share, *READDIR) as held:
        requests = [driver.send(kind, p9.read(FOLDER, 0, 4000))]
        held.wait_caught()
        requests.append(driver.send(kind, p9.read(FOLDER, 0, 4000)))
        raw_guest.machine.qmp.execute("query-status")
        held.in_flight()
    for request in requests:
        assert set(names_in(protocol, driver.wait_answer(request))) <= names
    third = driver.call(kind, p9.read(FOLDER, 0, 4000))
    assert sorted(names_in(protocol, third)) == sorted(names)
    expect_serving(driver)


def names_in(protocol: str, answer: bytes) -> list[str]:
    """The names in the answer to a request that reads a folder."""
    return [name for name, _ in p9.entries(answer[4:])] if protocol == VERSION else p9.stat_names(answer[4:])


@dataclass(frozen=True)
class InFlight:
    """A read of :data:`FILE` that is held on the host, and the ways to send further messages meanwhile."""

    guest: RawGuest
    driver: RawDriver
    read: Request

    def send(self, kind: T, body: bytes, *, tag: int | None = None) -> Request:
        """Send another message."""
        return self.driver.send(kind, body, tag=tag)

    def flush(self, old: Request | int) -> Request:
        """Send a Tflush whose oldtag is that of a request, or a given tag."""
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


def _flush_and_remove(it: InFlight) -> list[Request]:
    """The Tremove is answered before the read ends: a worker thread unlinks the file, and takes a moment."""
    flush, answered = it.flush(it.read), it.driver.answered()
    remove = it.send(T.REMOVE, p9.fid(FILE))
    it.guest.machine.wait_until(
        lambda: it.driver.answered() > answered, what="the answer to Tremove", timeout_s=10.0
    )
    return [flush, remove, it.flush(it.read)]


#: What is sent while a read is in flight; each returns the requests.
MEANWHILE: dict[str, Callable[[InFlight], list[Request]]] = {
    "a flush": _flushes(1),
    "two flushes": _flushes(2),
    "many flushes": _flushes(20),
    "flushes of flushes": _flush_of_a_flush,
    "a tag that is taken": _a_tag_twice,
    "a flush of no request": lambda it: [it.flush(0x7FFF), it.flush(0xFFFF), it.flush(it.read)],
    "a clunk": _flush_and(T.CLUNK, p9.fid(FILE)),
    "a remove": _flush_and_remove,
    "a rename": _flush_and(T.RENAMEAT, p9.renameat(ROOT, "file", "renamed")),
    "a new session": _flush_and(T.VERSION, p9.version(MSIZE)),
    "an attach": _flush_and(T.ATTACH, p9.attach(OTHER)),
    "a read of nothing": _flush_and(T.READ, p9.read(4711, 0, 100)),
}


def expect_each_answered_once(driver: RawDriver, requests: list[Request]) -> None:
    """Wait until each of ``requests`` has an answer, an error, or was given back because it was flushed.

    :raises Violation: when one was answered twice, or none is left that QEMU should have answered.
    """
    for request in requests:
        with suppress(NineError, FlushedError):
            driver.wait_answer(request)
    driver.expect_none_in_flight()


@pytest.mark.parametrize("what", MEANWHILE)
def test_flushes_of_a_request_in_flight(raw_guest: RawGuest, share: Share, hold: Hold, what: str) -> None:
    """Every Tflush is answered, the read at most once, and every other message exactly once.

    Afterwards QEMU takes as many requests at a time as before (it has a fixed number of them), and no file of
    the share stays open.
    """
    driver = plug_and_attach(raw_guest, share)
    before = open_fds(raw_guest.machine)
    driver.walk(ROOT, FILE, "file")
    driver.open(FILE)
    with hold.requests(share) as held:
        it = InFlight(raw_guest, driver, driver.send(T.READ, p9.read(FILE, 0, 100)))
        held.wait_caught()
        sent = MEANWHILE[what](it)
        raw_guest.machine.qmp.execute("query-status")
        held.in_flight()
    expect_each_answered_once(driver, [it.read, *sent])
    (share.path / "file").write_bytes(CONTENT)
    start_session(driver)
    expect_serving(driver)
    for request in [driver.send(T.GETATTR, p9.getattr_(ROOT)) for _ in range(driver.max_in_flight)]:
        driver.wait_answer(request)
    driver.expect_none_in_flight()
    driver.clunk(ROOT)
    left = open_fds(raw_guest.machine) - before
    assert not left, f"{left} files of the share stay open"


@dataclass(frozen=True)
class Cut:
    """A request of several system calls, which is flushed during the first of them.

    :ivar message: the request, about :data:`FILE`, :data:`FOLDER` or :data:`OTHER`, a symbolic link.
    :ivar calls: the system calls of which the first is held.
    :ivar undone: what must be so because the later ones were not made; given the export's folder.
    :ivar opened: whether :data:`FOLDER` is opened before.
    :ivar answered: whether its answer is complete without the later ones, and given.
    """

    message: tuple[T, bytes]
    calls: tuple[str, ...] = STAT
    protocol: str = VERSION
    undone: Callable[[Path], bool] = lambda _: True
    opened: bool = False
    answered: bool = False


def _setattr(valid: int, **values: int) -> tuple[T, bytes]:
    return T.SETATTR, p9.set_fields(FILE, p9.MODE | valid, mode=0o100640, **values)


#: A time and an owner that no file of the export has.
_TIME_S, _UID = 1_000_000_000, 1234
#: ``P9_STATS_GEN`` (QEMU: ``hw/9pfs/9p.c``).
_GENERATION = 0x1000
CUTS: dict[str, Cut] = {
    "open": Cut((T.LOPEN, p9.open_(FILE, os.O_RDWR | os.O_TRUNC)), undone=lambda it: size(it) > 0),
    "open a folder": Cut((T.LOPEN, p9.open_(FOLDER))),
    "truncate": Cut(_setattr(p9.SIZE), undone=lambda it: size(it) > 0),
    "time": Cut(
        _setattr(p9.MTIME | p9.MTIME_SET, time_s=_TIME_S),
        undone=lambda it: (it / "file").stat().st_mtime != _TIME_S,
    ),
    "owner": Cut(_setattr(p9.UID, uid=_UID), undone=lambda it: (it / "file").stat().st_uid != _UID),
    "generation": Cut((T.GETATTR, p9.getattr_(FILE, _GENERATION))),
    "mode": Cut(
        (T.WSTAT, p9.wstat(FILE, mode=0o604)),
        protocol=UNIX_VERSION,
        undone=lambda it: (it / "file").stat().st_mode & 0o777 != 0o604,
    ),
    "rename": Cut(
        (T.WSTAT, p9.wstat(FILE, atime_s=_TIME_S, name="renamed")),
        calls=("openat",),
        protocol=UNIX_VERSION,
        undone=lambda it: (it / "file").exists(),
    ),
    "link": Cut((T.STAT, p9.fid(OTHER)), protocol=UNIX_VERSION),
    "folder": Cut(
        (T.CREATE, p9.unix_create(FOLDER, "made", p9.DMDIR | 0o755, mode=os.O_RDONLY)),
        calls=MKDIR,
        protocol=UNIX_VERSION,
    ),
    "list": Cut((T.READ, p9.read(FOLDER, 0, 4000)), protocol=UNIX_VERSION, opened=True),
    "list without room": Cut(
        (T.READ, p9.read(FOLDER, 0, 10)), protocol=UNIX_VERSION, opened=True, answered=True
    ),
}


def size(folder: Path) -> int:
    """The size of the export's file."""
    return (folder / "file").stat().st_size


@pytest.mark.thorough
@pytest.mark.parametrize("what", CUTS)
def test_a_flushed_request_stops_at_its_next_system_call(
    raw_guest: RawGuest, share: Share, hold: Hold, what: str
) -> None:
    """A request is flushed during its first system call: it makes no further one, and is given back. The
    session goes on, and no file stays open."""
    cut = CUTS[what]
    (share.path / "folder").mkdir()
    (share.path / "link").symlink_to("target")
    driver = plug_and_attach(raw_guest, share, cut.protocol)
    before = open_fds(raw_guest.machine)
    for fid, name in ((FILE, "file"), (FOLDER, "folder"), (OTHER, "link")):
        driver.walk(ROOT, fid, name)
    if cut.opened:
        driver.call(T.OPEN, p9.unix_open(FOLDER, os.O_RDONLY))
    with hold.requests(share, *cut.calls) as held:
        request = driver.send(*cut.message)
        held.wait_caught()
        flush = driver.send(T.FLUSH, p9.flush(request.tag))
        held.in_flight()
    driver.wait_answer(flush)
    answered = not driver.wait_dropped(request)
    assert answered is cut.answered, (
        "a request that was flushed in time has to be given back, a complete one answered"
    )
    assert cut.undone(share.path), "a flushed request has made a later system call"
    driver.expect_none_in_flight()
    expect_serving(driver)
    driver.clunk_all()
    left = open_fds(raw_guest.machine) - before
    assert not left, f"{left} files of the share stay open"


@pytest.mark.thorough
@pytest.mark.parametrize("end", ["device_reset", "system_reset"])
def test_a_reset_with_flushed_requests_in_flight(
    raw_guest: RawGuest, share: Share, hold: Hold, end: str
) -> None:
    """The reset waits for the requests in flight, also where flushes wait for them; then the device works."""
    driver = plug_and_attach(raw_guest, share)
    before = open_fds(raw_guest.machine)
    for fid in (FILE, OTHER):
        driver.walk(ROOT, fid, "file")
        driver.open(fid)
    with hold.requests(share) as held:
        reads = []
        for fid in (FILE, OTHER, FILE):
            reads.append(driver.send(T.READ, p9.read(fid, 0, 100)))
            held.wait_caught(len(reads))
        for read_ in (*reads, reads[0], reads[0]):
            driver.send(T.FLUSH, p9.flush(read_.tag))
        reset = Background(driver.reset if end == "device_reset" else raw_guest.system_reset)
        done_while_held = happens_while(
            raw_guest.machine, lambda: reset.done, while_=held.waiting, what=f"the {end}"
        )
    reset.wait(timeout_s=raw_guest.machine.timeout_scale.seconds(30))
    expect_blocked_by(raw_guest.machine)
    reset_and_attach(raw_guest, share).clunk(ROOT)
    assert open_fds(raw_guest.machine) == before
    assert not done_while_held, "the reset was done with requests in flight"


#: Messages that change the path of :data:`FOLDER`, while a request uses that path.
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
    """A worker thread makes a directory below :data:`FOLDER`; meanwhile the guest moves the fid or folder.

    The move has to wait for the thread, which uses the fid's path (QEMU: ``hw/9pfs/9p.h``,
    ``v9fs_path_write_lock``). Then both complete, and the fids have the new path.
    """
    driver = plug_and_attach(raw_guest, share, UNIX_VERSION if how == "wstat" else VERSION)
    (share.path / "folder" / "inside").mkdir(parents=True)
    driver.walk(ROOT, FOLDER, "folder")
    driver.walk(ROOT, OTHER, "folder")
    with hold.requests(share, *MKDIR) as held:
        making = driver.send(T.MKDIR, p9.mkdir(FOLDER, "made"))
        held.wait_caught()
        moving = driver.send(*MOVES[how]())
        answered = driver.answered()
        # in_flight() sends a QMP command: once that is answered, QEMU's main loop has read the message.
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


#: So slow that each request of :data:`_CONTENT`'s size waits some tenths of a second for its turn.
_BYTES_PER_S, _CONTENT = 20_000, b"throttled" * 400


@pytest.fixture
def slow(testbed: Testbed, share: Share) -> Share:
    """A throttled export; to be made before the machine."""
    require_throttling(testbed.cell.qemu)
    (declared,) = testbed.declare(throttled(share, bytes_per_s=_BYTES_PER_S))
    return declared


def test_requests_that_wait_for_their_turn(slow: Share, raw_guest: RawGuest) -> None:
    """On a throttled export, reads and writes in flight together are answered with their own bytes."""
    driver = plug_and_attach(raw_guest, slow)
    for fid, name in ((FILE, "read"), (OTHER, "written")):
        (slow.path / name).write_bytes(_CONTENT)
        driver.walk(ROOT, fid, name)
        driver.open(fid, os.O_RDWR)
    size = len(_CONTENT)
    reads = [driver.send(T.READ, p9.read(FILE, 0, size)) for _ in range(2)]
    writes = [driver.send(T.WRITE, p9.write(OTHER, at, _CONTENT)) for at in (0, size)]
    assert [driver.wait_answer(read)[4:] for read in reads] == [_CONTENT] * 2
    assert [int.from_bytes(driver.wait_answer(write), "little") for write in writes] == [size] * 2
    assert (slow.path / "written").read_bytes() == _CONTENT * 2
    driver.clunk_all()
    raw_guest.eject(slow)
