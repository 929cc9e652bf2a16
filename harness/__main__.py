"""``python3 harness scenarios`` and ``python3 harness tests``: prepare the checkout, then run pytest.

It needs nothing but the standard library. The environment is ``.venv`` beside this package. A stamp file in
it has the hash of the ``pyproject.toml`` that it was installed from; when the hash differs, the project is
installed again. ``python -m harness`` is the command line of the installed package (``harness --help``).
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

NEEDS_PYTHON = (3, 11)
CHECKOUT = Path(__file__).resolve().parent.parent
#: pytest's arguments by command. The tests wait for processes that they start: four at a time on two cores.
COMMANDS = {"scenarios": ["scenarios", "-n", "auto"], "tests": ["harness/tests", "-n", "4"]}
#: The file in the environment that says what it was installed from. It is written last: without it the
#: environment is not complete.
STAMP = "harness-installed-from"
#: Exit statuses of the bootstrap itself; 2 is argparse's for a command line that cannot be understood.
FAILED, USAGE = 1, 2


class Failed(Exception):
    """Why there is no environment, in one line."""


def run(checkout: Path, arguments: list[str]) -> int:
    """Run one of :data:`COMMANDS` of the bootstrap in ``checkout``; further arguments are pytest's.

    :returns: the exit status when pytest could not be started. Otherwise pytest replaces this process, so
        that signals and the exit status are its own.
    """
    if not arguments or arguments[0] not in COMMANDS:
        commands = " and ".join(f"'python3 harness {name} [PYTEST'S ARGUMENTS]'" for name in COMMANDS)
        print(f"harness: the commands of a checkout are {commands}", file=sys.stderr)
        return USAGE
    try:
        prepare(checkout)
    except Failed as exc:
        print(f"harness: {exc}", file=sys.stderr)
        return FAILED
    return _become_pytest(checkout, [*COMMANDS[arguments[0]], *arguments[1:]])


def _become_pytest(checkout: Path, arguments: list[str]) -> NoReturn:
    pytest = checkout / ".venv" / "bin" / "pytest"
    os.chdir(checkout)
    os.execv(pytest, [str(pytest), *arguments])


def prepare(checkout: Path) -> None:
    """Make ``.venv``, unless there is one that was installed from this ``pyproject.toml`` by this Python.

    :raises Failed: when it cannot be made. The next run tries again, because there is no stamp file.
    """
    environment = checkout / ".venv"
    stamp, wanted = environment / STAMP, _installed_from(checkout / "pyproject.toml")
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    _check_python()
    stamp.unlink(missing_ok=True)
    print("harness: installing into .venv ...", file=sys.stderr, flush=True)
    _call([sys.executable, "-m", "venv", "--without-pip", str(environment)], checkout, "venv")
    python = str(environment / "bin" / "python")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "-e", ".[dev]"]
    _call(pip, checkout, "pip")
    stamp.write_text(wanted)


def _check_python() -> None:
    if sys.version_info[:2] < NEEDS_PYTHON:
        needed, found = (".".join(map(str, version[:2])) for version in (NEEDS_PYTHON, sys.version_info))
        raise Failed(f"this is Python {found}; Python {needed} or newer is needed")
    probe = [sys.executable, "-m", "pip", "--version"]
    if subprocess.run(probe, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode:
        raise Failed(f"{sys.executable} has no pip (Debian: apt-get install python3-pip)")


def _call(command: list[str], folder: Path, what: str) -> None:
    """Run a step of the installation into ``.venv``; its output is the user's to see."""
    status = subprocess.run(command, cwd=folder, check=False).returncode
    if status != 0:
        raise Failed(f"{what} failed with status {status}: {' '.join(command)}")


def _installed_from(file: Path) -> str:
    version = ".".join(map(str, sys.version_info[:2]))
    return f"python{version} {hashlib.sha256(file.read_bytes()).hexdigest()}"


def main() -> int:
    """``python3 harness`` in a checkout, or ``python -m harness`` anywhere."""
    if __package__:
        from harness.cli.main import main as command_line

        command_line()
    return run(CHECKOUT, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
