from __future__ import annotations

import os
import struct
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from harness.errors import GuestError, HarnessError, QemuDied, Violation
from harness.ninep import messages as p9
from harness.ninep import session
from harness.ninep.client import MSIZE
from harness.ninep.messages import UNIX_VERSION, VERSION, T
from harness.qemu.machine import Machine
from harness.tests.fakes import World
from harness.tests.ninep.conftest import Drive
from harness.tests.qemu.specs import share


def test_the_request_that_opens_a_fid() -> None:
    assert session.open_request(VERSION, 3, os.O_RDWR) == (T.LOPEN, p9.open_(3, os.O_RDWR))
    assert session.open_request(UNIX_VERSION, 3, os.O_RDWR) == (T.OPEN, p9.unix_open(3, p9.ORDWR))


def test_a_session_begins_with_a_version_and_an_attach(drive: Drive) -> None:
    driver = drive()
    session.start_session(driver, UNIX_VERSION)
    assert (driver.protocol, driver.fids) == (UNIX_VERSION, {session.ROOT})


@pytest.mark.parametrize("content", [session.CONTENT, b"other"])
def test_a_device_serves_when_the_file_has_its_content(drive: Drive, content: bytes) -> None:
    def device(kind: int, tag: int, body: bytes) -> tuple[int, int, bytes]:
        answer = struct.pack("<I", len(content)) + content if kind == T.READ else b""
        return kind + 1, tag, answer

    driver = drive(device)
    if content == session.CONTENT:
        session.expect_serving(driver)
        assert session.HELPER not in driver.fids
    else:
        with pytest.raises(Violation, match=r"^the share's file is read as b'other' afterwards$"):
            session.expect_serving(driver)


def test_outcomes(drive: Drive) -> None:
    """An answer, or the name of its errno."""
    assert session.outcome(drive(), T.CLUNK, p9.fid(1)) == session.ANSWERED
    failing = drive(lambda _kind, tag, _body: (T.RLERROR, tag, struct.pack("<I", 2)))
    assert session.outcome(failing, T.CLUNK, p9.fid(1)) == "ENOENT"


def test_an_errno_that_does_not_exist(drive: Drive) -> None:
    driver = drive(lambda _kind, tag, _body: (T.RLERROR, tag, struct.pack("<I", 9999)))
    with pytest.raises(Violation, match=r"there is no such error$"):
        session.outcome(driver, T.CLUNK, p9.fid(1))


@pytest.mark.parametrize("beyond", [0, 1])
def test_an_answer_longer_than_the_msize(drive: Drive, beyond: int) -> None:
    body = bytes(MSIZE - p9.HEADER + beyond)
    driver = drive(lambda kind, tag, _body: (kind + 1, tag, body))
    if beyond:
        with pytest.raises(Violation, match=r"^an answer has 8193 bytes, and the session's msize is 8192$"):
            session.outcome(driver, T.READ, p9.read(1, 0, 100))
    else:
        assert session.outcome(driver, T.READ, p9.read(1, 0, 100)) == session.ANSWERED


def test_an_error_says_what_was_being_done() -> None:
    with pytest.raises(GuestError, match=r"^no answer \(about a Tread\)$"), session.error_context("a Tread"):
        raise GuestError("no answer")


def test_an_error_that_qemus_exit_causes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    died = QemuDied("killed by SIGABRT")
    monkeypatch.setattr(world.machine, "root_cause", lambda _exc: died, raising=False)
    machine = cast(Machine, world.machine)
    with pytest.raises(QemuDied) as raised, session.error_context("a Tread", machine):
        raise HarnessError("no answer")
    assert raised.value is died


def machine_with(tmp_path: Path, text: str) -> Machine:
    """A machine whose QEMU has printed ``text``."""
    (tmp_path / "qemu.log").write_text(text)
    return cast(Machine, SimpleNamespace(artifacts=SimpleNamespace(qemu=tmp_path / "qemu.log")))


def test_virtio_errors_are_counted(tmp_path: Path) -> None:
    text = "qemu: VirtFS reply type 117 needs 12 bytes\nqemu: warning\nqemu: Looped descriptor\n"
    assert session.count_virtio_errors(machine_with(tmp_path, text)) == 2
    assert session.count_virtio_errors(machine_with(tmp_path, "qemu: warning\n")) == 0


@pytest.mark.parametrize(
    ("answered", "virtio_errors", "seen"), [(0, 1, session.ANSWERED), (1, 0, session.BROKEN)]
)
def test_an_answer_or_a_broken_device(
    world: World, drive: Drive, monkeypatch: pytest.MonkeyPatch, answered: int, virtio_errors: int, seen: str
) -> None:
    """One request was answered, and there was one error in all."""
    monkeypatch.setattr(session, "count_virtio_errors", lambda _machine: 1)
    world.qmp.on("query-status", {})
    driver = drive()
    driver.clunk(0)
    machine = cast(Machine, world.machine)
    assert session.wait_answered_or_broken(machine, driver, answered, virtio_errors) == seen


def test_the_export_is_reset(tmp_path: Path) -> None:
    """Whatever was in it before; what a link leads to stays."""
    export, outside = tmp_path / "export", tmp_path / "outside"
    for folder in (export / "folder" / "sub", outside):
        folder.mkdir(parents=True)
    (outside / "kept").touch()
    (export / "leads-out").symlink_to(outside)
    (export / "file").write_bytes(b"changed")
    session.reset_export(replace(share(), path=export))
    assert sorted(path.name for path in export.rglob("*")) == ["file", "folder", "link"]
    assert (export / "link").read_bytes() == session.CONTENT
    assert (outside / "kept").exists()
