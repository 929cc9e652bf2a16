"""``harness shell`` with a real guest: with a pipe or a terminal as stdin, and ended by signals."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from harness.deadline import wait_until
from harness.reaper import MARK, PREFIX
from harness.tests.cli.conftest import Harness
from harness.tests.ways_in import assert_running, expect_qmp

pytestmark = pytest.mark.qemu
HARNESS = [sys.executable, "-c", "from harness.cli.main import main; main()"]


@pytest.fixture
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A temporary folder for this test alone, whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="sh-", dir="/tmp") as name:
        assert tmp_path_factory
        yield Path(name)


def environment(temporary: Path) -> dict[str, str]:
    return {**{k: v for k, v in os.environ.items() if k != MARK}, "TMPDIR": str(temporary), "TERM": "vt100"}


def expect_nothing_left(temporary: Path) -> None:
    def left() -> list[str]:
        processes = [
            entry.name
            for entry in Path("/proc").iterdir()
            if entry.name.isdigit() and f"{MARK}={temporary}".encode() in _environ(entry)
        ]
        return processes + [str(p) for p in temporary.glob(PREFIX + "*")]

    wait_until(lambda: not left(), what=f"nothing left of {temporary}", timeout_s=60)


def _environ(process: Path) -> bytes:
    try:
        return (process / "environ").read_bytes()
    except OSError:
        return b""


def test_a_script_on_stdin(temporary: Path, tmp_path: Path) -> None:
    (tmp_path / "from-host").write_text("seen in the guest\n")
    done = subprocess.run(
        [*HARNESS, "shell", "--share", str(tmp_path)],
        input="cat from-host; echo written > from-guest; echo oops >&2; exit 5\n",
        capture_output=True,
        text=True,
        check=False,
        env=environment(temporary),
        timeout=180,
    )
    assert (done.returncode, done.stdout) == (5, "seen in the guest\n")
    assert "oops" in done.stderr
    assert (tmp_path / "from-guest").read_text() == "written\n"
    expect_nothing_left(temporary)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_after_a_signal_nothing_is_left(temporary: Path, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [*HARNESS, "shell"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(temporary),
        start_new_session=True,
    )
    assert process.stderr is not None
    lines = iter(process.stderr.readline, "")
    assert any(line.startswith("SSH:") for line in lines), "the guest did not boot"
    process.send_signal(number)
    process.wait(timeout=60)
    assert process.returncode != 0
    expect_nothing_left(temporary)


def test_a_session_on_a_terminal_and_the_printed_addresses(temporary: Path) -> None:
    session = pexpect.spawn(
        HARNESS[0],
        [*HARNESS[1:], "shell"],
        env={**environment(temporary), "COLUMNS": "80", "LINES": "24"},  # other than the terminal's size
        dimensions=(33, 111),
        encoding="utf-8",
        timeout=120,
    )
    qmp = expect_qmp(session)
    session.expect(r"SSH: +ssh .*\n")
    session.expect("# ")
    session.sendline("stty size; echo in-$((6*7)); pwd")
    session.expect("33 111")
    session.expect("in-42")
    session.expect("/mnt/share0")

    assert_running(*qmp)

    session.sendline("exit 3")
    session.expect(pexpect.EOF)
    session.close()
    assert session.exitstatus == 3
    expect_nothing_left(temporary)


def program(folder: Path, *steps: str, alphabet: str = "guest") -> Path:
    made = [{"do": do} | ({} if do in ("stop", "migrate") else {"share": 0}) for do in steps]
    path = folder / "program.json"
    path.write_text(json.dumps({"version": 1, "alphabet": alphabet, "steps": made}))
    return path


def test_the_steps_of_a_program_before_one(temporary: Path, tmp_path: Path) -> None:
    """Also across a migration; the shell begins in the mount."""
    path = program(tmp_path, "plug", "migrate", "mount", "umount", "device_del")
    done = subprocess.run(
        [*HARNESS, "shell", "--program", str(path), "--until", "3"],
        input="pwd; grep -c 9p /proc/mounts; exit 4\n",
        capture_output=True,
        text=True,
        check=False,
        env=environment(temporary),
        timeout=180,
    )
    assert (done.returncode, done.stdout) == (4, "/mnt/share0\n1\n")
    assert "program: the next step is 3, umount(0)\n" in done.stderr
    assert "destination-1" in done.stderr
    expect_nothing_left(temporary)


def test_a_machine_that_a_program_has_stopped(temporary: Path, tmp_path: Path) -> None:
    path = program(tmp_path, "plug", "mount", "stop")
    session = pexpect.spawn(
        HARNESS[0],
        [*HARNESS[1:], "shell", "--program", str(path)],
        env=environment(temporary),
        encoding="utf-8",
        timeout=120,
    )
    session.expect("program: all steps were made")
    qmp = expect_qmp(session)
    session.expect("The machine is stopped")
    answer = subprocess.run(
        qmp, input="query-status\n", capture_output=True, text=True, check=False, timeout=60
    )
    assert "paused" in answer.stdout
    session.sendline("")
    session.expect(pexpect.EOF)
    session.close()
    assert session.exitstatus == 0
    expect_nothing_left(temporary)


@pytest.mark.parametrize(
    ("steps", "alphabet", "words", "line"),
    [
        (("plug",), "raw", (), "a program of the raw client runs no guest"),
        (("plug",), "guest", ("--until", "2"), "there is no step 2: the program has 1 steps, from 0"),
        (
            ("plug", "stop"),
            "guest",
            (),
            "the machine is stopped before step 2: its guest cannot run a script",
        ),
        (("mount",), "guest", (), "step 0, mount(0): not possible after the start"),
        (("plug",), "guest", ("--share", "/"), "--share cannot be used with --program"),
    ],
)
def test_a_program_that_leaves_no_guest(
    harness: Harness,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    steps: tuple[str, ...],
    alphabet: str,
    words: tuple[str, ...],
    line: str,
) -> None:
    """It is said before anything is started."""
    monkeypatch.setattr("sys.stdin", io.StringIO())
    ended = harness("shell", "--program", program(tmp_path, *steps, alphabet=alphabet), *words)
    assert ended.status == 2
    assert line in ended.line


def test_until_is_about_a_program(harness: Harness) -> None:
    assert harness("shell", "--until", "1").line == "harness: --until can only be used with --program"
