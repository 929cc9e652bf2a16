from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.deadline import wait_until
from harness.errors import GuestError, UsageError, Violation
from harness.guest import fileops
from harness.guest.fileops import File, Program, content

CREATE = os.O_RDWR | os.O_CREAT


def perform(program: Program, folder: Path) -> None:
    """Perform the program on the host, with its Perl."""
    done = subprocess.run(command(folder), cwd=folder, input=program.stdin, capture_output=True, check=True)
    program.judge(done.stdout.decode())


def command(folder: Path) -> list[str]:
    return ["perl", str(fileops.PERFORMER), "65521", str(folder.parent)]


def ordinary(program: Program, file: File) -> None:
    program.open("a", file, CREATE, "a")
    program.pwrite("a", 70001, 131072, 5)
    program.open("b", file, os.O_WRONLY | os.O_APPEND, "a")
    program.append("b", 4097, 9)
    program.truncate("a", 100_003)
    program.truncate("a", 300_000)
    program.pread("a", 99_999, 200_001)
    program.map_shared("a", 5000, 70_000, 11)
    program.map_private("a", 4096, 9000, 3)
    program.processes("a", 3, 8192, 4, 17)
    program.whole("a", 4096)
    program.add("fsync", "a")
    program.add("fstat", "a", 1)
    program.close("a", "b")


def test_what_every_file_system_can_do(tmp_path: Path) -> None:
    program, file = Program(), File("f")
    ordinary(program, file)
    perform(program, tmp_path)
    file.expect_on_host(tmp_path / "a")


def test_a_file_that_is_unlinked(tmp_path: Path) -> None:
    program, file = Program(), File("f")
    program.open("a", file, CREATE, "a")
    program.add("unlink", "a")
    program.pwrite("a", 0, 100, 1)
    program.truncate("a", 200)
    program.add("fchmod", "a", 0o600)
    program.add("futimens", "a", 1_000_000_000)
    program.add("fstat", "a", 0)
    program.expect(errno.ENOENT, "access", "a")
    perform(program, tmp_path)


def test_a_folder_that_changes_while_it_is_read(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"s{number}").touch()
    program = Program()
    program.open("folder", File("none"), os.O_DIRECTORY, ".")
    program.add("part", "folder", 200)
    program.open("new", File("new"), CREATE, "n")
    program.add("rest", "folder", "s", 20, 512)
    program.add("names", "folder", 21, 300)
    perform(program, tmp_path)
    program.add("rest", "folder", "s", 19, 512)
    with pytest.raises(Violation, match=r"the number of names is [0-9]+, and not 19"):
        perform(program, tmp_path)


def test_a_program_that_pauses(tmp_path: Path) -> None:
    """Its files stay open, it continues on request, and a signal that it handles has no effect."""
    folder, program, file = tmp_path / "share", Program(), File("f")
    folder.mkdir()
    program.open("a", file, CREATE, "a")
    program.pause("opened")
    program.pwrite("a", 0, 100, 1)
    with subprocess.Popen(
        command(folder), cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(program.stdin)
        process.stdin.close()
        wait_until((tmp_path / "fileops.opened.reached").exists, what="the pause", timeout_s=60.0)
        assert (folder / "a").read_bytes() == b""
        assert (tmp_path / "fileops.pid").read_text() == f"{process.pid}\n"
        process.send_signal(signal.SIGUSR1)
        (tmp_path / "fileops.opened.go").touch()
        program.judge(process.stdout.read().decode())
    file.expect_on_host(folder / "a")


WRONG: dict[str, tuple[tuple[object, ...], str]] = {
    "a byte": (("pread", "x", 0, 10), "operation 4 pread x 0 10: another byte at 3 of 10"),
    "the length": (("pread", "x", 0, 20), "operation 4 pread x 0 20: 10 bytes, and not 12"),
    "the size": (("fstat", "x", 1), "the size is 10, and not 12"),
    "an errno": (("unlink", "none"), r"operation 4 unlink none: errno 2 \(No such file"),
    "no error": (("expect", errno.EIO, "access", "x"), r"succeeded, and not errno 5 \(Input/output error\)"),
    "another error": (("expect", errno.EIO, "access", "none"), r"errno 2 \(.*\), and not errno 5"),
    "the links": (("links", "folder", 77), "the links is [0-9]+, and not 77"),
    "the names": (("names", "folder", 2, 512), "the number of names is 1, and not 2"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_result_is_reported(tmp_path: Path, what: str) -> None:
    """The file on the host differs from the one that the program declares."""
    words, complaint = WRONG[what]
    seen = bytearray(content(0, 10))
    seen[3] ^= 1
    (tmp_path / "x").write_bytes(seen)
    program, file = Program(), File("f")
    program.given(file, 0, 10 if what == "a byte" else 12)
    program.open("x", file, os.O_RDWR, "x")
    program.open("folder", File("none"), os.O_DIRECTORY, ".")
    program.add(*words)
    with pytest.raises(Violation, match=complaint):
        perform(program, tmp_path)


def _changed(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(777)
        file.write(bytes([content(0, 1000)[777] ^ 1]))


HOST: dict[str, tuple[Callable[[Path], object], str]] = {
    "a byte": (_changed, "a wrong byte in a at offset 777 of 1000"),
    "shorter": (lambda path: os.truncate(path, 999), "999 bytes in a, expected 1000"),
    "longer": (lambda path: os.truncate(path, 1001), "1001 bytes in a, expected 1000"),
}


@pytest.mark.parametrize("what", HOST)
def test_the_host_has_other_content(tmp_path: Path, what: str) -> None:
    change, complaint = HOST[what]
    program, file = Program(), File("f")
    program.open("a", file, CREATE, "a")
    program.pwrite("a", 0, 1000, 0)
    perform(program, tmp_path)
    file.expect_on_host(tmp_path / "a")
    change(tmp_path / "a")
    with pytest.raises(Violation, match=complaint):
        file.expect_on_host(tmp_path / "a")


@pytest.mark.parametrize("output", ["", "1 open a: errno 2\n", "done 3\n"])
def test_a_program_that_did_not_complete(output: str) -> None:
    program = Program()
    program.add("unlink", "a")
    with pytest.raises(GuestError, match="did not complete"):
        program.judge(output)


def test_the_maximum_length_of_content() -> None:
    assert len(content(65520, fileops.MAX_LENGTH)) == fileops.MAX_LENGTH
    with pytest.raises(UsageError, match="the maximum is"):
        content(0, fileops.MAX_LENGTH + 1)
