"""A hostile guest cannot hurt QEMU: no message changes an export that is ``readonly=on``.

The raw client sends the messages, also those that a kernel would not send to such an export.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from harness.ninep import messages as p9
from harness.ninep.client import (
    RawDriver,
    RawGuest,
)
from harness.ninep.messages import UNIX_VERSION, VERSION, T
from harness.ninep.session import (
    FILE,
    FOLDER,
    OTHER,
    PROTOCOLS,
    ROOT,
    SPARE,
    error_context,
    expect_serving,
    open_request,
    outcome,
    reset_export,
    start_session,
)
from harness.qemu.spec import Share
from harness.testbed import Testbed

pytestmark = [pytest.mark.no_guest_kernel, pytest.mark.pin_machine("pc")]


#: Messages that would change the export, or open it for a change.
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
        "Twrite": (T.WRITE, p9.write(SPARE, 0, b"new")),
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
        "Twrite": (T.WRITE, p9.write(SPARE, 0, b"new")),
        "Tremove": (T.REMOVE, p9.fid(OTHER)),
    },
}


@pytest.fixture
def guest_of_a_read_only_export(testbed: Testbed) -> RawGuest:
    """A machine whose first share is ``readonly=on``."""
    testbed.declare(replace(testbed.shares[0], fsdev_options={"readonly": "on"}), *testbed.shares[1:])
    return RawGuest(testbed)


def walk_to_files(driver: RawDriver) -> None:
    """Make the fids that :data:`CHANGING` uses; :data:`SPARE` is open for reading."""
    for fid, name in ((FILE, "file"), (OTHER, "file"), (FOLDER, "folder"), (SPARE, "file")):
        driver.walk(ROOT, fid, name)
    driver.call(*open_request(driver.protocol, SPARE, os.O_RDONLY))


def tree(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """The mode, modification time and content of each file below ``folder``, by path."""
    found = {}
    for path in folder.rglob("*"):
        stat_ = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        found[str(path)] = (stat_.st_mode, stat_.st_mtime_ns, content)
    return found


def expect_refused(
    guest: RawGuest, share: Share, protocol: str, messages: dict[str, tuple[T, bytes]]
) -> None:
    """Send each of ``messages``: it has to fail with EROFS and to change nothing on the host."""
    reset_export(share)
    before = tree(share.path)
    driver = guest.plug(share)
    start_session(driver, protocol)
    walk_to_files(driver)
    for what, message in messages.items():
        with error_context(what):
            assert outcome(driver, *message) == "EROFS", what
            assert tree(share.path) == before, f"{what} changed what is exported"
    expect_serving(driver)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_read_only_export(testbed: Testbed, guest_of_a_read_only_export: RawGuest, protocol: str) -> None:
    """Every message that would change the export is refused with EROFS, and the export stays as it is."""
    expect_refused(guest_of_a_read_only_export, testbed.shares[0], protocol, CHANGING[protocol])


def test_an_unknown_type_on_a_read_only_export(
    testbed: Testbed, guest_of_a_read_only_export: RawGuest
) -> None:
    """A message of an unknown type is refused as on any export; it is not taken for one that changes it."""
    driver = guest_of_a_read_only_export.plug(testbed.shares[0])
    start_session(driver)
    for kind in (0, 98, 127, 254):
        with error_context(f"a message of type {kind}"):
            seen = outcome(driver, kind, p9.fid(ROOT))
            assert seen == "ENOTSUP", f"a message of type {kind} was answered with {seen}"


def test_a_topen_that_truncates_on_a_read_only_export(
    testbed: Testbed, guest_of_a_read_only_export: RawGuest
) -> None:
    """The same for a Topen that opens for reading with OTRUNC, which would truncate the file."""
    messages = {"Topen to truncate": (T.OPEN, p9.unix_open(FILE, p9.OREAD | p9.OTRUNC))}
    expect_refused(guest_of_a_read_only_export, testbed.shares[0], UNIX_VERSION, messages)
