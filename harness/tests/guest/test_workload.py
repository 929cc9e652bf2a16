from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path

import pytest

from harness.deadline import wait_until
from harness.errors import GuestError, Violation
from harness.guest import workload
from harness.guest.workload import expect_replayed, lines, replay

JOURNAL = ["write f1 1", "read f1", "rename f1 g1", "append g1 7", "link g1 h1", "deep d1 1", "unlink h1"]
JOURNAL += ["fill D1 66", "lock g1"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files that result from the journal."""
    (tmp_path / "d1/a/b/c").mkdir(parents=True)
    (tmp_path / "d1/a/b/c/leaf").write_bytes(lines(1))
    (tmp_path / "g1").write_bytes(lines(1) + lines(7))
    (tmp_path / "D1").write_bytes(b"B" * 65536)
    return tmp_path


def test_what_is_acknowledged_and_there(folder: Path) -> None:
    expect_replayed(JOURNAL, folder)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("g1", None, "g1 was acknowledged, but is not on the host"),
        ("g1", lines(1), "g1 has other content than was acknowledged"),
        ("g1", lines(1) + lines(8), "g1 has other content than was acknowledged"),
        ("D1", b"B" * 65535 + b"\0", "D1 has other content than was acknowledged"),
        ("h1", lines(1), "h1 is on the host, but should not exist"),
        ("f1", lines(1), "f1 is on the host, but should not exist"),
        ("d1/a/b/c/leaf", b"", "leaf has other content than was acknowledged"),
    ],
)
def test_what_is_lost_changed_or_left(folder: Path, name: str, content: bytes | None, complaint: str) -> None:
    (folder / name).unlink(missing_ok=True)
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(Violation, match=complaint):
        expect_replayed(JOURNAL, folder)


@pytest.mark.parametrize("happened", [False, True])
def test_an_operation_that_failed_may_have_happened(folder: Path, happened: bool) -> None:
    if happened:
        (folder / "g1").unlink()
    expect_replayed([*JOURNAL, "error unlink g1"], folder)


def test_an_invalid_line() -> None:
    with pytest.raises(GuestError, match="invalid line in a worker's journal: 'wri'"):
        replay(["wri"])


def test_the_worker_does_what_it_says(tmp_path: Path) -> None:
    """The program itself, run by the host's Perl."""
    able = _supported_here(tmp_path)
    journal, stop, share = tmp_path / "journal", tmp_path / "stop", tmp_path / "w0"
    arguments = [str(share), str(journal), str(stop), *able]
    process = subprocess.Popen(["perl", workload.WORKER, "rounds", *arguments])
    wait_until(
        lambda: journal.exists() and len(journal.read_text().splitlines()) > 60, what="work", timeout_s=60
    )
    stop.touch()
    assert process.wait(timeout=60) == 0
    operations = journal.read_text().splitlines()
    expect_replayed(operations, share)
    assert {line.split()[0] for line in operations} == {
        "write",
        "read",
        "unlink",
        "rename",
        "append",
        "link",
        "symlink",
        "deep",
        *({"xattr"} if "xattr" in able else ()),
        *({"fill"} if {"direct", "map"} & set(able) else ()),
        "lock",
    }
    os.truncate(next(share.glob("g1")), 5)
    with pytest.raises(Violation):
        expect_replayed(operations, share)


def _supported_here(folder: Path) -> list[str]:
    """tmpfs has neither ``O_DIRECT`` nor extended attributes before Linux 6.6."""
    able = ["lock", "map"]
    with contextlib.suppress(OSError):
        os.close(os.open(folder / "probe", os.O_RDWR | os.O_CREAT | os.O_DIRECT))
        able.append("direct")
    with contextlib.suppress(OSError):
        os.setxattr(folder, workload.ATTRIBUTE, b"probe")
        able.append("xattr")
    return able


def test_an_attribute_that_is_lost_or_changed(folder: Path) -> None:
    if "xattr" not in _supported_here(folder.parent):
        pytest.skip(f"the file system of {folder} has no extended attributes")
    journal = [*JOURNAL, "xattr g1 v1"]
    with pytest.raises(Violation, match=r"g1#user\.workload was acknowledged, but is not on the host"):
        expect_replayed(journal, folder)
    os.setxattr(folder / "g1", workload.ATTRIBUTE, b"v2")
    with pytest.raises(Violation, match=r"g1#user\.workload has other content"):
        expect_replayed(journal, folder)
    os.setxattr(folder / "g1", workload.ATTRIBUTE, b"v1")
    expect_replayed(journal, folder)


def _operate(*words: str | Path, cwd: Path | None = None) -> str:
    """The error of one operation."""
    argv = ["perl", str(workload.WORKER), *map(str, words)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60, cwd=cwd)
    assert done.returncode != 0
    return done.stderr


@pytest.mark.parametrize(
    "what",
    ["write", "append", "read", "unlink_open", "unlink", "deep", "direct", "map", "mapread", "xattr", "lock"],
)
def test_an_operation_on_what_is_not_there_says_so(tmp_path: Path, what: str) -> None:
    assert _operate(what, tmp_path / "none" / "file", "65").endswith(": No such file or directory\n")


@pytest.mark.parametrize(
    ("what", "content", "error"),
    [
        ("read", lines(64) + b"1", "other bytes were read"),
        ("unlink_open", lines(65)[:-1], "other bytes were read"),
        ("mapread", b"A" * 65535 + b"B", "other bytes were read"),
        ("mapread", b"A" * 4096, "bus error"),
    ],
)
def test_other_bytes_are_seen(tmp_path: Path, what: str, content: bytes, error: str) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    assert _operate(what, file, "65") == f"{what}: {error}\n"


def test_a_folder_is_read_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    assert _operate("listed", "file", cwd=tmp_path) == "listed: not listed, or twice\n"


def test_a_read_that_fails_half_way_is_no_end(tmp_path: Path) -> None:
    """It reads its own memory, whose first page is never mapped (``man 5 proc``)."""
    assert _operate("read", "/proc/self/mem", "1") == "read: read: Input/output error\n"


def test_no_such_operation() -> None:
    assert "no operation nonsense" in _operate("nonsense", "file")


def test_a_worker_that_fails_says_at_what(tmp_path: Path) -> None:
    (tmp_path / "w0").mkdir()
    (tmp_path / "w0" / "h1").touch()
    assert _operate("rounds", tmp_path / "w0", tmp_path / "journal", "/none") == "link: File exists\n"
    assert (tmp_path / "journal").read_text().splitlines()[-1] == "error link g1 h1"
