"""Raw steps of a session: the requests of a correct client."""

from __future__ import annotations

import os

from harness.explore.disagreement import Disagreement
from harness.explore.program import Step
from harness.explore.raw_answers import (
    FIDS,
    HELPER,
    UNKNOWN,
    Perform,
    driver_of,
    expect_content,
    expect_errno,
    expect_written,
    root_of,
)
from harness.explore.raw_invariants import WRITTEN
from harness.explore.raw_machine import ORIGINAL, RawMachine
from harness.explore.raw_model import FILE, MADE, ROOT, SECOND_ROOT, RawState
from harness.ninep import messages as p9
from harness.ninep.client import NineError, RawDriver
from harness.ninep.messages import T

#: Bytes, fewer than the file has.
_FEW = 100
_XATTR_NAME, _XATTR = "user.harness", b"an attribute"


def _version(on: RawMachine, step: Step, _before: RawState) -> None:
    driver_of(on, step).version()


def _attach(on: RawMachine, step: Step, before: RawState) -> None:
    driver = driver_of(on, step)
    fid = FIDS[SECOND_ROOT if step.value == "second" else ROOT]
    if before.migrating:
        expect_errno(step, driver, T.ATTACH, p9.attach(fid), "EBUSY")
    elif step.value == "again":
        expect_errno(step, driver, T.ATTACH, p9.attach(fid), "EINVAL")
    else:
        driver.attach(fid)


def _open(on: RawMachine, step: Step, before: RawState) -> None:
    driver = driver_of(on, step)
    driver.walk(root_of(before, step), FIDS[FILE], "file")
    driver.open(FIDS[FILE], os.O_RDWR)


def _read(on: RawMachine, step: Step, before: RawState) -> None:
    """The raw request Tread: of more than the file has, and of less."""
    driver = driver_of(on, step)
    expect_content(step, before, driver.read(FIDS[FILE], 0, 2 * len(ORIGINAL)))
    if len(driver.read(FIDS[FILE], 0, _FEW)) != _FEW:
        raise Disagreement("content", f"a Tread of {_FEW} bytes gives another number of bytes")


def _write(on: RawMachine, step: Step, _before: RawState) -> None:
    expect_written(driver_of(on, step).write(FIDS[FILE], 0, WRITTEN))


def _fsync(on: RawMachine, step: Step, _before: RawState) -> None:
    driver_of(on, step).call(T.FSYNC, p9.fsync(FIDS[FILE]))


def _create(on: RawMachine, step: Step, before: RawState) -> None:
    driver = driver_of(on, step)
    driver.walk(root_of(before, step), FIDS[MADE])
    driver.create(FIDS[MADE], "made")


def _unlink(on: RawMachine, step: Step, before: RawState) -> None:
    driver = driver_of(on, step)
    driver.call(T.UNLINKAT, p9.unlinkat(root_of(before, step), "made"))
    if MADE in before.device(step).fids:  # It is open, so its attributes can still be read.
        driver.call(T.GETATTR, p9.getattr_(FIDS[MADE]))


def _remove(on: RawMachine, step: Step, _before: RawState) -> None:
    driver = driver_of(on, step)
    driver.call(T.REMOVE, p9.fid(FIDS[MADE]))
    driver.fids.discard(FIDS[MADE])


def _readdir(on: RawMachine, step: Step, before: RawState) -> None:
    driver = driver_of(on, step)
    driver.walk(root_of(before, step), HELPER)
    driver.open(HELPER)
    names = {name for name, _ in p9.entries(driver.readdir(HELPER))}
    driver.call(T.FSYNC, p9.fsync(HELPER))
    driver.clunk(HELPER)
    expected = {".", "..", "file"} | ({"made"} if before.folder(step).made else set())
    if names != expected:
        what = "Rreaddir has other names than the folder"
        raise Disagreement("content", what, details=f"{sorted(names)}, expected {sorted(expected)}")


def _xattrwalk(on: RawMachine, step: Step, _before: RawState) -> None:
    """The raw request Txattrwalk: the list of the file's attributes, if the host's file system has any."""
    driver = driver_of(on, step)
    try:
        driver.xattrwalk(FIDS[FILE], HELPER)
    except NineError:
        return
    driver.clunk(HELPER)


def _xattr(on: RawMachine, step: Step, before: RawState) -> None:
    """Raw requests that set an attribute, read it, and remove it, if the host's file system has any."""
    driver, root = driver_of(on, step), root_of(before, step)
    try:
        _set_xattr(driver, root, _XATTR)
    except NineError:
        return
    driver.walk(root, HELPER, "file")
    driver.xattrwalk(HELPER, UNKNOWN, _XATTR_NAME)
    seen = driver.read(UNKNOWN, 0, 2 * len(_XATTR))
    driver.clunk(UNKNOWN)
    driver.clunk(HELPER)
    if seen != _XATTR:
        raise Disagreement("content", "an extended attribute is read with another value", details=repr(seen))
    _set_xattr(driver, root, b"")


def _set_xattr(driver: RawDriver, root: int, value: bytes) -> None:
    """A raw request's Tclunk sets the attribute; an empty value removes it.

    Source: kernel, ``fs/9p/xattr.c``, ``v9fs_fid_xattr_set``.
    """
    driver.walk(root, HELPER, "file")
    driver.call(T.XATTRCREATE, p9.xattrcreate(HELPER, _XATTR_NAME, len(value)))
    if value:
        driver.write(HELPER, 0, value)
    driver.clunk(HELPER)


def _clunk(on: RawMachine, step: Step, _before: RawState) -> None:
    driver_of(on, step).clunk(FIDS[str(step.value)])


def _every_kind(on: RawMachine, step: Step, before: RawState) -> None:
    """Raw requests of many kinds, which together leave the folder as it was."""
    driver, root, file = driver_of(on, step), root_of(before, step), FIDS[FILE]
    for kind, body in (
        (T.STATFS, p9.fid(root)),
        (T.GETATTR, p9.getattr_(file)),
        (T.SETATTR, p9.setattr_(file, 0o600)),
        (T.LOCK, p9.lock(file)),
        (T.GETLOCK, p9.getlock(file)),
        (T.LINK, p9.link(root, file, "linked")),
        (T.RENAMEAT, p9.renameat(root, "linked", "renamed")),
        (T.UNLINKAT, p9.unlinkat(root, "renamed")),
        (T.SYMLINK, p9.symlink(root, "symbolic", "target")),
        (T.WALK, p9.walk(root, HELPER, "symbolic")),
        (T.READLINK, p9.fid(HELPER)),
        (T.RENAME, p9.rename(HELPER, root, "again")),
        (T.REMOVE, p9.fid(HELPER)),
        (T.MKNOD, p9.mknod(root, "node")),
        (T.UNLINKAT, p9.unlinkat(root, "node")),
        (T.MKDIR, p9.mkdir(root, "folder")),
        (T.WALK, p9.walk(root, HELPER, "folder")),
        (T.LCREATE, p9.create(HELPER, "inside")),
        (T.REMOVE, p9.fid(HELPER)),
        (T.UNLINKAT, p9.unlinkat(root, "folder", p9.REMOVEDIR)),
    ):
        answer = driver.call(kind, body)
        if kind == T.READLINK and answer[2:] != b"target":
            raise Disagreement("content", f"Rreadlink has {answer[2:]!r} instead of the link's target")


STEPS: dict[str, Perform] = {
    "version": _version,
    "attach": _attach,
    "open": _open,
    "read": _read,
    "write": _write,
    "fsync": _fsync,
    "create": _create,
    "unlink": _unlink,
    "remove": _remove,
    "readdir": _readdir,
    "xattrwalk": _xattrwalk,
    "clunk": _clunk,
    "xattr": _xattr,
    "every_kind": _every_kind,
}
