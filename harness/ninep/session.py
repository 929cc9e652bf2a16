"""A session on the share of a guest that is driven by hand, and what comes of each message in it."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from harness.errors import HarnessError, Violation
from harness.ninep import messages as p9
from harness.ninep.client import (
    MSIZE,
    NineError,
    RawDriver,
    RawGuest,
    Request,
)
from harness.ninep.messages import UNIX_VERSION, VERSION, T
from harness.qemu.machine import Machine
from harness.qemu.spec import Share

#: Fids of each session: the export's root; a folder; a file and a second folder, or file, in it.
ROOT, FOLDER, FILE, OTHER = 1, 2, 3, 4
SPARE, HELPER = 200, 300
CONTENT = b"content"
BOTH = (VERSION, UNIX_VERSION)
ANSWERED, GIVEN_UP = "answered", "given up"


def open_request(protocol: str, fid: int, flags: int) -> tuple[T, bytes]:
    """Open the fid, in the words of the protocol; ``flags`` are O_RDONLY, O_WRONLY or O_RDWR."""
    if protocol == UNIX_VERSION:
        return T.OPEN, p9.unix_open(fid, flags)
    return T.LOPEN, p9.open_(fid, flags)


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
    driver.walk(ROOT, HELPER, "file")
    driver.call(*open_request(driver.protocol, HELPER, os.O_RDONLY))
    if (seen := driver.read(HELPER, 0, 100)) != CONTENT:
        raise Violation(f"the share's file is read as {seen!r} afterwards")
    driver.clunk(HELPER)


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


def furnish(share: Share) -> None:
    """A file, a folder and a symlink to the file, and nothing else."""
    for path in share.path.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    (share.path / "file").write_bytes(CONTENT)
    (share.path / "folder").mkdir()
    (share.path / "link").symlink_to("file")
