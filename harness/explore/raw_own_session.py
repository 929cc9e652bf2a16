"""The raw step ``own_session``: a session with its own files, from Tversion to a reset of the device.

Its variants ask for what the other steps have no files or sizes for: replies at the limits of msize and of
their buffer, files without a name, files and folders that are renamed while they are in use, and what the
host has made. The device's earlier session ends with the Tversion. The reset also helps a device that is
marked broken.
"""

from __future__ import annotations

import os
import shutil
import stat
import struct
from collections.abc import Callable
from pathlib import Path

from harness.explore.disagreement import Disagreement
from harness.explore.program import Step
from harness.explore.raw_answers import HELPER, Perform, driver_of, share_of
from harness.explore.raw_machine import ORIGINAL, RawMachine
from harness.explore.raw_model import RawState
from harness.ninep import messages as p9
from harness.ninep.client import MSIZE, NineError, RawDriver
from harness.ninep.messages import T
from harness.ninep.session import ANSWERED, count_virtio_errors, outcome, wait_answered_or_broken

_ROOT, _FILE, _FOLDER, _OTHER = 1, HELPER, HELPER + 1, HELPER + 2
#: Many fids, because QEMU finds those that it has to change in the order of a hash table.
_MANY = range(200, 250)
#: QEMU: ``hw/9pfs/9p.h``, ``P9_MIN_MSIZE``; and the most that its transport carries (``virtio-9p-device.c``).
_SMALLEST_MSIZE, _LARGEST_MSIZE = 4096, (1024 - 2) * 4096
#: Bytes of a Tread, 1000 more than msize.
_BEYOND_MSIZE = MSIZE + 1000

Variant = Callable[[RawMachine, RawDriver, Path], None]


def _disagree(message: str, guarantee: str = "") -> None:
    raise Disagreement("own_session", message, guarantee=guarantee)


def _expect(driver: RawDriver, kind: T, body: bytes, what: str) -> None:
    """A request of the step ``own_session``. :raises Disagreement: when it fails."""
    if (seen := outcome(driver, kind, body)) != ANSWERED:
        _disagree(f"{what}: {seen}")


def _read(_on: RawMachine, driver: RawDriver, folder: Path) -> None:
    """``own_session``: a Tread of more than msize gets no reply that is larger."""
    (folder / "large").write_bytes(b"x" * 2 * MSIZE)
    driver.walk(_ROOT, _FILE, "large")
    driver.open(_FILE)
    outcome(driver, T.READ, p9.read(_FILE, 0, _BEYOND_MSIZE))  # It checks the length.


def _readlink(_on: RawMachine, driver: RawDriver, folder: Path) -> None:
    """``own_session``: a link's target that does not fit into msize is refused."""
    (folder / "link").symlink_to("l" * 4095)
    driver.call(T.VERSION, p9.version(_SMALLEST_MSIZE))
    driver.attach(_ROOT)
    driver.walk(_ROOT, _FILE, "link")
    try:
        size = p9.HEADER + len(driver.call(T.READLINK, p9.fid(_FILE)))
    except NineError:
        return
    if size > _SMALLEST_MSIZE:
        _disagree(f"Rreadlink has {size} bytes, and the session's msize is {_SMALLEST_MSIZE}")


def _no_room(on: RawMachine, driver: RawDriver, _folder: Path) -> None:
    """``own_session``: a Tread with room for a reply's header alone gets an error, or breaks the device."""
    driver.walk(_ROOT, _FILE, "file")
    driver.open(_FILE)
    answered, errors = driver.answered(), count_virtio_errors(on.machine)
    driver.send(T.READ, p9.read(_FILE, 0, len(ORIGINAL)), reply_size=p9.HEADER)
    wait_answered_or_broken(on.machine, driver, answered, errors)


def _msize(_on: RawMachine, driver: RawDriver, _folder: Path) -> None:
    """``own_session``: Tversion agrees to no msize that the transport cannot carry."""
    try:
        answer = driver.call(T.VERSION, p9.version(_LARGEST_MSIZE + 1))
    except NineError:
        return
    (seen,) = struct.unpack_from("<I", answer)
    if seen > _LARGEST_MSIZE:
        _disagree(f"an msize of {seen} was promised, and the transport carries {_LARGEST_MSIZE}")


def _locks(_on: RawMachine, driver: RawDriver, _folder: Path) -> None:
    """``own_session``: a fid that is not open cannot be locked."""
    driver.walk(_ROOT, _FILE, "file")
    for kind, body in ((T.LOCK, p9.lock(_FILE)), (T.GETLOCK, p9.getlock(_FILE))):
        if outcome(driver, kind, body) == ANSWERED:
            _disagree(f"T{kind.name.lower()} of a fid that is not open: answered, and has to fail")


def _unlinked(kind: str, body: bytes) -> Variant:
    def perform(_on: RawMachine, driver: RawDriver, folder: Path) -> None:
        """The attributes of an open file that was unlinked can be set."""
        (folder / "nameless").write_bytes(ORIGINAL)
        driver.walk(_ROOT, _FILE, "nameless")
        driver.open(_FILE, os.O_RDWR)
        driver.call(T.UNLINKAT, p9.unlinkat(_ROOT, "nameless"))
        _expect(driver, T.SETATTR, body, f"{kind} of an open file that is unlinked")

    return perform


def _replaced(_on: RawMachine, driver: RawDriver, folder: Path) -> None:
    """``own_session``: the fid of an open file over which another is renamed keeps to the old one.

    It does not refer to the new file.
    """
    for name in ("replaced", "other"):
        (folder / name).write_bytes(ORIGINAL)
        (folder / name).chmod(0o644)
    driver.walk(_ROOT, _FILE, "replaced")
    driver.open(_FILE)
    driver.call(T.RENAMEAT, p9.renameat(_ROOT, "other", "replaced"))
    outcome(driver, T.SETATTR, p9.setattr_(_FILE, 0o600))
    if stat.S_IMODE((folder / "replaced").stat().st_mode) != 0o644:
        _disagree("a fid refers to the file that was renamed over its own")


def _renamed_folder(_on: RawMachine, driver: RawDriver, folder: Path) -> None:
    """``own_session``: the fids of files in a folder can be used after a Trename of it."""
    (folder / "folder").mkdir()
    (folder / "folder" / "f").write_text("")
    for fid in _MANY:
        driver.walk(_ROOT, fid, "folder", "f")
    driver.walk(_ROOT, _FOLDER, "folder")
    driver.call(T.RENAME, p9.rename(_FOLDER, _ROOT, "moved"))
    fids = (*_MANY, _FOLDER)
    lost = [fid for fid in fids if outcome(driver, T.SETATTR, p9.setattr_(fid, 0o700)) != ANSWERED]
    if lost:
        _disagree(f"after a Trename of their folder {len(lost)} of {len(fids)} fids are of no file")


def _hosts_folder(_on: RawMachine, driver: RawDriver, folder: Path) -> None:
    """``own_session``: files that the host has made are linked and renamed to another folder.

    They have no metadata.
    """
    for name in ("theirs", "others"):
        (folder / name).mkdir()
    for name in ("f", "g"):
        (folder / "theirs" / name).write_text("")
    driver.walk(_ROOT, _FOLDER, "theirs")
    driver.walk(_ROOT, _OTHER, "others")
    driver.walk(_ROOT, _FILE, "theirs", "f")
    requests = {
        "Tlink": (T.LINK, p9.link(_OTHER, _FILE, "linked")),
        "Trenameat": (T.RENAMEAT, p9.renameat(_FOLDER, "g", "renamed", _OTHER)),
    }
    answers = {name: outcome(driver, *message) for name, message in requests.items()}
    failed = [f"{name}: {answer}" for name, answer in answers.items() if answer != ANSWERED]
    if failed:
        _disagree(f"files that the host made: {', '.join(failed)}")


def _fifo(_on: RawMachine, driver: RawDriver, _folder: Path) -> None:
    """``own_session``: a FIFO can be made."""
    body = p9.fid_and_name(_ROOT, "pipe") + struct.pack("<IIII", stat.S_IFIFO | 0o640, 0, 0, 0)
    _expect(driver, T.MKNOD, body, "Tmknod of a FIFO")


_VARIANTS: dict[str, Variant] = {
    "read": _read,
    "readlink": _readlink,
    "no_room": _no_room,
    "msize": _msize,
    "locks": _locks,
    "ftruncate": _unlinked("ftruncate", p9.truncate(_FILE, 3)),
    "fchmod": _unlinked("fchmod", p9.setattr_(_FILE, 0o600)),
    "replaced": _replaced,
    "renamed_folder": _renamed_folder,
    "hosts_folder": _hosts_folder,
    "fifo": _fifo,
}


def _own_session(on: RawMachine, step: Step, _before: RawState) -> None:
    driver, folder = driver_of(on, step), on.shares[share_of(step)].path
    driver.version()
    driver.attach(_ROOT)
    before = {path.name for path in folder.iterdir()}
    try:
        _VARIANTS[str(step.value)](on, driver, folder)
    finally:
        _remove_all_but(before, folder)
    driver.reset()
    on.forget_driver(share_of(step))


def _remove_all_but(names: set[str], folder: Path) -> None:
    for path in folder.iterdir():
        if path.name not in names:
            shutil.rmtree(path) if not path.is_symlink() and path.is_dir() else path.unlink()


STEPS: dict[str, Perform] = {"own_session": _own_session}
