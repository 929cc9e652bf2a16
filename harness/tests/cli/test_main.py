from __future__ import annotations

import re
import subprocess
import sys

import click
import pytest

from harness import errors
from harness.cli import main as main_module
from harness.cli.main import COMMANDS, cli
from harness.errors import HarnessError
from harness.tests.cli.conftest import Harness


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """What the command ``harness fails`` raises."""
    raises: list[BaseException] = []

    @click.command()
    def fails() -> None:
        raise raises[0]

    monkeypatch.setitem(main_module.cli.commands, "fails", fails)
    return raises


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.UsageError("no such thing"), 2),
        (errors.SetupError("no such thing"), 3),
        (errors.GuestError("no such thing"), 1),
        (errors.Violation("no such thing"), 1),
    ],
)
def test_an_error_gives_one_line_and_a_status(
    harness: Harness, raising: list[BaseException], error: HarnessError, status: int
) -> None:
    raising.append(error)
    ended = harness("fails")
    assert (ended.status, ended.line, ended.out) == (status, "harness: no such thing", "")


def test_ctrl_c_is_quiet(harness: Harness, raising: list[BaseException]) -> None:
    raising.append(KeyboardInterrupt())
    ended = harness("fails")
    assert (ended.status, ended.out, ended.err.strip()) == (130, "", "")


def test_an_unexpected_exception_is_not_hidden(raising: list[BaseException]) -> None:
    raising.append(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        main_module.main(["fails"])


def test_a_command_imports_no_other() -> None:
    """Each command starts as quickly as what it needs allows."""
    script = (
        "import sys; from harness.cli.main import main; sys.argv[1:] = ['check', '--help']\n"
        "try: main()\n"
        "except SystemExit: print(*(name for name in sys.modules if name.startswith('harness.cli.')))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    last = done.stdout.splitlines()[-1].split()
    assert sorted(last) == ["harness.cli.check", "harness.cli.main"]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_example_in_the_help_is_accepted(harness: Harness, name: str) -> None:
    ended = harness(name, "--help")
    assert ended.status == 0
    (examples,) = re.findall(r"Examples?: (.*)", ended.out, re.DOTALL)
    for example in examples.split(";"):
        program, command, *words = example.split()
        assert (program, command) == ("harness", name)
        named = cli.get_command(click.Context(cli), name)
        assert named is not None
        named.make_context(name, words, resilient_parsing=False).close()


def test_an_unknown_command_or_option(harness: Harness) -> None:
    for words in (["shel"], ["shell", "--share"], ["doctor", "--jason"]):
        ended = harness(*words)
        assert ended.status == 2
        assert ended.out == ""
        assert ended.err.splitlines()[-1].startswith("Error: ")
