"""Raw steps of a hostile client: messages and descriptors that no driver sends."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from harness.explore.disagreement import Disagreement
from harness.explore.program import Step
from harness.explore.raw_answers import (
    FIDS,
    HELPER,
    UNKNOWN,
    Perform,
    driver_of,
    expect_errno,
    expect_error,
    root_of,
    share_of,
)
from harness.explore.raw_machine import RawMachine
from harness.explore.raw_model import FILE, SMALL_MSIZE, RawState
from harness.ninep import messages as p9
from harness.ninep.client import MSIZE, RawDriver
from harness.ninep.messages import T
from harness.ninep.session import BROKEN, count_virtio_errors, wait_answered_or_broken
from harness.ninep.virtio_driver import INDIRECT, NEXT, WRITE, Descriptor

#: Bytes, more than an attribute can have (kernel: ``include/uapi/linux/limits.h``, ``XATTR_SIZE_MAX``).
_HUGE = 1 << 24
#: Less than a message needs (QEMU: ``hw/9pfs/9p.c``, ``P9_MIN_MSIZE``).
_SMALL_MSIZE = 100


def _malformed(on: RawMachine, step: Step, _before: RawState) -> None:
    driver, what = driver_of(on, step), str(step.value)
    if what == "unknown_type":
        expect_errno(step, driver, 250, b"junk", "ENOTSUP", "EOPNOTSUPP")
    elif what == "unknown_fid":
        expect_errno(step, driver, T.READ, p9.read(UNKNOWN, 0, 10), "EINVAL", "ENOENT")
    elif what == "queue":
        driver.set_queue(1, 1)  # The device has no such queue.
    elif what == SMALL_MSIZE:
        expect_error(step, driver, T.VERSION, p9.version(_SMALL_MSIZE))
    else:
        _break(on, step, driver, what)


def _break(on: RawMachine, step: Step, driver: RawDriver, what: str) -> None:
    """A misuse: offer the device what it has to refuse with ``virtio_error``."""
    answered, errors = driver.answered(), count_virtio_errors(on.machine)
    last, out = driver.queue_size - 2, driver.buffer(0)
    chains = {
        "next": (Descriptor(out, p9.HEADER, NEXT, driver.queue_size + 5),),
        "no_reply": (Descriptor(out, p9.HEADER),),
        "empty": (Descriptor(out, 0, NEXT, last + 1), Descriptor(out, 4096, WRITE)),
        "indirect": (Descriptor(out, 0, INDIRECT),),
    }
    if what == "ring":
        driver.break_device()
    elif what == "no_body":
        driver.send(T.READ)
    else:
        driver.write_descriptors(last, *chains[what])
        driver.make_available(last)
    if wait_answered_or_broken(on.machine, driver, answered, errors) != BROKEN:
        raise Disagreement(step.do, f"{step.do} {what}: answered, and the device has to be marked broken")


def _ignored(on: RawMachine, step: Step, _before: RawState) -> None:
    """A misused device that is marked broken answers nothing until a reset, also where it has migrated to."""
    driver = driver_of(on, step)
    answered = driver.answered()
    driver.send(T.VERSION, p9.version(MSIZE))
    on.execute("query-status")  # QEMU's main loop has handled the notification.
    if driver.answered() != answered:
        raise Disagreement(step.do, "a device that is marked broken answers")


def _misuse(on: RawMachine, step: Step, before: RawState) -> None:
    root, file, what = root_of(before, step), FIDS[FILE], str(step.value)
    messages: dict[str, tuple[T, bytes]] = {
        "open": (T.LOPEN, p9.open_(file)),
        "walk_to_it": (T.WALK, p9.walk(root, file, "file")),
        "walk_itself": (T.WALK, p9.walk(file, file)),
        "rename": (T.RENAME, p9.rename(file, root, "renamed")),
        "readdir": (T.READDIR, p9.read(file, 0, 4096)),
        "xattrcreate": (T.XATTRCREATE, p9.xattrcreate(file, "user.harness", 8)),
        "slash": (T.WALK, p9.walk(root, HELPER, "../outside")),
    }
    if what in messages:
        expect_error(step, driver_of(on, step), *messages[what])
    elif what == "huge_xattr":
        body = p9.xattrcreate(HELPER, "user.harness", _HUGE)
        _misuse_of(on, step, root, "file", (T.XATTRCREATE, body))
    else:
        _misuse_of_the_hosts(on, step, root)


def _misuse_of(on: RawMachine, step: Step, root: int, name: str, message: tuple[T, bytes]) -> None:
    """A misuse: send a message about a fid that was walked to; it has to fail."""
    driver = driver_of(on, step)
    driver.walk(root, HELPER, name)
    expect_error(step, driver, *message)
    driver.clunk(HELPER)


def _misuse_of_the_hosts(on: RawMachine, step: Step, root: int) -> None:
    """A misuse of what is on the host, and no guest has made.

    These are links that lead out of the export, and a FIFO.
    """
    path = on.shares[share_of(step)].path / "special"
    if step.value == "below_link":
        _misuse_below_a_link(on, step, root, path)
        return
    if step.value == "open_fifo":
        os.mkfifo(path)
    else:
        outside = path.parent.parent / "outside"
        outside.mkdir(exist_ok=True)
        (outside / "secret").write_text("secret")
        path.symlink_to(outside / "secret" if step.value == "open_link" else outside)
    try:
        if step.value == "through_link":
            _misuse_of(on, step, root, "special", (T.WALK, p9.walk(HELPER, UNKNOWN, "secret")))
        else:
            _misuse_of(on, step, root, "special", (T.LOPEN, p9.open_(HELPER)))
    finally:
        path.unlink()


def _misuse_below_a_link(on: RawMachine, step: Step, root: int, path: Path) -> None:
    """A misuse: the host replaces a folder by a link out of the export.

    A fid below it must not follow the link.

    The link is neither the last component of the path nor its folder: QEMU opens those in another way (QEMU:
    ``hw/9pfs/9p-util.h``, ``openat_dir`` and ``openat_file``).
    """
    outside, was = path.parent.parent / "outside", path.with_name("was")
    for folder in (outside, path):
        (folder / "inside").mkdir(parents=True, exist_ok=True)
        (folder / "inside" / "secret").write_text("secret")
    driver = driver_of(on, step)
    driver.walk(root, HELPER, path.name, "inside", "secret")
    path.rename(was)
    path.symlink_to(outside)
    try:
        expect_error(step, driver, T.LOPEN, p9.open_(HELPER))
        driver.clunk(HELPER)
    finally:
        path.unlink()
        shutil.rmtree(was)


STEPS: dict[str, Perform] = {
    "malformed": _malformed,
    "ignored": _ignored,
    "misuse": _misuse,
}
