from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from harness.errors import CommandFailed, GuestError, Violation
from harness.guest import table
from harness.guest.table import calls, expect_printed, printed
from harness.tests.fakes import World


@pytest.fixture
def shell(world: World) -> World:
    """A guest whose shell is the host's."""

    def run(command: str) -> tuple[int, str, str]:
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    world.ssh.on("", run)
    return world


def test_what_commands_print(shell: World, tmp_path: Path) -> None:
    commands = ["echo a; echo b", "true", "cd / && pwd", "pwd", "cat", "echo told >&2", "printf 'x\\n\\n'"]
    expected = ["a\nb", "", "/", str(tmp_path), "", "told", "x\n"]
    assert printed(shell.guest, str(tmp_path), commands) == expected


def test_what_fails_gives_the_name_of_its_errno(shell: World, tmp_path: Path) -> None:
    commands = ["cat none", "mkdir .", "echo a b; false", "exit 7", "cat none; echo fine"]
    seen = printed(shell.guest, str(tmp_path), commands)
    assert seen[:2] == ["ENOENT", "EEXIST"]
    assert seen[2:4] == ["a b", "exit status 7"]
    assert seen[4].endswith("No such file or directory\nfine")


def test_rows_that_hold(shell: World, tmp_path: Path) -> None:
    expect_printed(
        shell.guest, str(tmp_path), [("echo 1 > f; cat f", "1"), ("cat f", "1"), ("cat g", "ENOENT")]
    )


def test_all_wrong_rows_are_reported(shell: World, tmp_path: Path) -> None:
    rows = [("echo 1", "1"), ("echo 2", "3"), ("cat none", "")]
    with pytest.raises(Violation, match=r"2 of 3 commands: 'echo 2' gave '2', expected '3'") as caught:
        expect_printed(shell.guest, str(tmp_path), rows)
    assert caught.value.details.splitlines()[1] == "'cat none' gave 'ENOENT', expected ''"


def test_a_shell_that_does_not_get_to_the_end(shell: World, tmp_path: Path) -> None:
    with pytest.raises(CommandFailed):
        printed(shell.guest, str(tmp_path), ["true", "kill -9 $$", "true"])


def test_an_answer_that_is_cut(world: World, tmp_path: Path) -> None:
    world.ssh.on("", "\x1c1\n\x1d0\x1c2")
    with pytest.raises(GuestError, match="ended after 2 of 2 commands"):
        printed(world.guest, str(tmp_path), ["echo 1", "echo 2"])


def test_a_folder_that_is_not_there(shell: World, tmp_path: Path) -> None:
    with pytest.raises(CommandFailed):
        printed(shell.guest, str(tmp_path / "none"), ["true"])


@pytest.mark.parametrize(("has_it", "sent"), [(0, 1), (1, 2)])
def test_the_program_is_sent_once(world: World, has_it: int, sent: int) -> None:
    world.ssh.on("^cat >", "")
    world.ssh.on(r"^\[ -x", (has_it, "", ""))
    calls(world.guest)
    assert len(world.ssh.commands) == sent


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["create", "new", "640"], ""),
        (["create", "there", "640"], "open: File exists\n"),
        (["types", "."], "link:10 there:8\n"),
        (["getxattr", "there", "user.none"], None),
        (["talk", "sock"], "through it\n"),
        (["nothing"], "calls.pl: no operation nothing"),
    ],
)
def test_the_program_itself(tmp_path: Path, words: list[str], expected: str | None) -> None:
    (tmp_path / "there").touch()
    (tmp_path / "link").symlink_to("there")
    command = ["perl", str(Path(table.__file__).with_name("calls.pl")), *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    output = done.stdout + done.stderr
    if expected is None:
        assert output.startswith("lgetxattr: ")
    else:
        assert output.startswith(expected) if expected else output == ""
    assert (done.returncode == 0) == (expected in ("", "link:10 there:8\n", "through it\n"))
