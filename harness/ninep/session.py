"""A 9P session of the raw client on one share, and the outcome of each message in it.

The scenarios about 9P messages share these functions. The client is :mod:`harness.ninep.client`.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from harness.errors import HarnessError, Violation
from harness.ninep import messages as p9
from harness.ninep.client import MSIZE, NineError, RawDriver, RawGuest, Request
from harness.ninep.messages import UNIX_VERSION, VERSION, T
from harness.qemu.machine import Machine
from harness.qemu.spec import Share

#: Fids that the scenarios use: the export's root; a folder; a file; a second file or folder.
ROOT, FOLDER, FILE, OTHER = 1, 2, 3, 4
#: The first fid that a message may create; the first fid that a check uses for itself.
SPARE, HELPER = 200, 300
#: What :func:`plug_and_attach` and :func:`reset_export` write into the export's file.
CONTENT = b"content"
PROTOCOLS = (VERSION, UNIX_VERSION)
#: Outcomes of a message besides an errno: an answer without an error, or QEMU marked the device broken
#: (``virtio_error``), after which it ignores the device until a reset.
ANSWERED, BROKEN = "answered", "device broken"
#: The folder in which ``mapped-file`` keeps the metadata of the files beside it, and the file in which it has
#: those of the export's root (QEMU: ``hw/9pfs/9p-local.c``, ``VIRTFS_META_DIR``, ``VIRTFS_META_ROOT_FILE``).
METADATA = (".virtfs_metadata", ".virtfs_metadata_root")
#: The texts of ``virtio_error`` (QEMU: ``hw/9pfs/virtio-9p-device.c``, ``hw/virtio/virtio.c``).
#: ``x-query-virtio-status`` would show the state itself, but QEMU 11.1.3 aborts in that command.
_VIRTIO_ERROR = re.compile(
    r"VirtFS re|Desc next|Looped desc|ndirect buffer|indirect table|zero sized|bogus desc|Incorrect order"
    r"|Guest says|Virtqueue size|Cannot map"
)


def open_request(protocol: str, fid: int, flags: int) -> tuple[T, bytes]:
    """The request that opens ``fid``: Topen in 9P2000.u, Tlopen in 9P2000.L.

    :param flags: O_RDONLY, O_WRONLY or O_RDWR.
    """
    if protocol == UNIX_VERSION:
        return T.OPEN, p9.unix_open(fid, flags)
    return T.LOPEN, p9.open_(fid, flags)


def start_session(driver: RawDriver, protocol: str = VERSION) -> None:
    """Send Tversion, which ends any session before, and attach :data:`ROOT` to the export."""
    driver.version(protocol)
    driver.attach(ROOT)


def plug_and_attach(raw_guest: RawGuest, share: Share, protocol: str = VERSION) -> RawDriver:
    """Write the export's file, plug the device in, and start a session."""
    (share.path / "file").write_bytes(CONTENT)
    driver = raw_guest.plug(share)
    start_session(driver, protocol)
    return driver


def reset_and_attach(raw_guest: RawGuest, share: Share) -> RawDriver:
    """Reset the device, whatever state it is in, start a session, and check that it serves the export's file.

    :raises Violation: when the file is read with other content.
    """
    driver = raw_guest.driver(share)
    start_session(driver)
    expect_serving(driver)
    return driver


def expect_serving(driver: RawDriver) -> None:
    """Read the file that :func:`plug_and_attach` wrote: the session works.

    :raises Violation: when it has other content.
    """
    driver.walk(ROOT, HELPER, "file")
    driver.call(*open_request(driver.protocol, HELPER, os.O_RDONLY))
    if (seen := driver.read(HELPER, 0, 100)) != CONTENT:
        raise Violation(f"the share's file is read as {seen!r} afterwards")
    driver.clunk(HELPER)


@contextmanager
def error_context(what: str, machine: Machine | None = None) -> Iterator[None]:
    """Name the 9P message of the session in an error that is raised in this block.

    :param machine: given where QEMU's exit may cause the error. The exit is waited for, so that QEMU is not
        ended while it still writes its core file, and its root cause is raised.
    """
    try:
        yield
    except HarnessError as exc:
        exc.args = (f"{exc} (about {what})",)
        if machine is not None:
            raise machine.root_cause(exc) from exc
        raise


def outcome(driver: RawDriver, kind: int, body: bytes) -> str:
    """Send a message in a session and wait for its outcome, as :func:`wait_outcome` does."""
    return wait_outcome(driver, driver.send(kind, body))


def wait_outcome(driver: RawDriver, request: Request) -> str:
    """The name of the errno in a message's answer, or :data:`ANSWERED` where there is none.

    :raises Violation: when the answer is longer than the session's msize, or its errno is unknown.
    """
    try:
        answer = driver.wait_answer(request)
    except NineError as exc:
        if exc.errno not in errno.errorcode:
            raise Violation(f"{exc}: there is no such error") from None
        return errno.errorcode[exc.errno]
    if len(answer) + p9.HEADER > MSIZE:
        raise Violation(f"an answer has {len(answer) + p9.HEADER} bytes, and the session's msize is {MSIZE}")
    return ANSWERED


def count_virtio_errors(machine: Machine) -> int:
    """In a session: how often QEMU has marked a device broken since it started."""
    return len(_VIRTIO_ERROR.findall(machine.artifacts.qemu.read_text(errors="replace")))


def wait_answered_or_broken(machine: Machine, driver: RawDriver, answered: int, virtio_errors: int) -> str:
    """In a session: wait until QEMU answers a request or marks the device broken.

    Then check that QMP answers.

    :param answered: :meth:`RawDriver.answered` before the request was sent.
    :param virtio_errors: :func:`count_virtio_errors` before the request was sent.
    :return: :data:`ANSWERED` or :data:`BROKEN`.
    :raises WaitTimeout: after 10 seconds.
    """
    machine.wait_until(
        lambda: driver.answered() > answered or count_virtio_errors(machine) > virtio_errors,
        what="an answer, or a device that is marked broken",
        timeout_s=10,
        interval_s=0.002,
    )
    machine.qmp.execute("query-status")
    return ANSWERED if driver.answered() > answered else BROKEN


def reset_export(share: Share) -> None:
    """Empty the session's export on the host, and make ``file``, ``folder`` and ``link`` to ``file``.

    ``link`` is a symbolic link.
    """
    for path in share.path.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    (share.path / "file").write_bytes(CONTENT)
    (share.path / "folder").mkdir()
    (share.path / "link").symlink_to("file")
