"""``python3 harness COMMAND`` in a checkout; pip is a stand-in, the virtual environment is real."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness import __main__ as bootstrap
from harness.__main__ import STAMP

#: Records its arguments, and installs a pytest that prints its own. ``FAKE_PIP`` is the status of an install.
_PIP = """
import os, sys
from pathlib import Path
if sys.argv[1:] == ["--version"]:
    sys.exit(os.environ.get("FAKE_PIP") == "missing")
with open("pip-calls", "a") as calls:
    print(*sys.argv[1:], file=calls)
status = int(os.environ.get("FAKE_PIP") or 0)
if status == 0:
    program = Path(".venv/bin/pytest")
    program.write_text("#!/bin/sh\\necho pytest $PWD $@\\nexit ${FAKE_PYTEST:-0}\\n")
    program.chmod(0o755)
sys.exit(status)
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    made = tmp_path / "checkout"
    (made / "harness").mkdir(parents=True)
    shutil.copy(bootstrap.__file__, made / "harness/__main__.py")
    (made / "pyproject.toml").write_text("[project]\n")
    (tmp_path / "stand-ins/pip").mkdir(parents=True)
    (tmp_path / "stand-ins/pip/__main__.py").write_text(_PIP)
    (tmp_path / "stand-ins/pip/__init__.py").write_text("")
    return made


def _run(checkout: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, checkout / "harness", *arguments],
        cwd=checkout.parent,
        env={**os.environ, "PYTHONPATH": str(checkout.parent / "stand-ins"), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def _installs(checkout: Path) -> int:
    calls = checkout / "pip-calls"
    return len(calls.read_text().splitlines()) if calls.exists() else 0


@pytest.mark.parametrize(
    ("command", "arguments"), [("scenarios", "scenarios -n auto"), ("tests", "harness/tests -n 4")]
)
def test_the_project_is_installed_once_and_pytest_runs(checkout: Path, command: str, arguments: str) -> None:
    first = _run(checkout, command, "-k", "blocker")
    assert (first.returncode, first.stdout) == (0, f"pytest {checkout} {arguments} -k blocker\n")
    assert first.stderr == "harness: installing into .venv ...\n"
    python = checkout / ".venv/bin/python"
    assert (checkout / "pip-calls").read_text() == f"--python {python} install -q -e .[dev]\n"
    second = _run(checkout, command, FAKE_PYTEST="5")
    assert (second.returncode, second.stderr) == (5, "")
    assert _installs(checkout) == 1


def test_a_change_of_pyproject_is_installed(checkout: Path) -> None:
    _run(checkout, "tests")
    (checkout / "pyproject.toml").write_text("[project]\ndependencies = ['more']\n")
    assert _run(checkout, "tests").returncode == 0
    assert _installs(checkout) == 2


def test_an_environment_without_a_stamp_is_not_complete(checkout: Path) -> None:
    _run(checkout, "tests")
    (checkout / ".venv" / STAMP).unlink()
    _run(checkout, "tests")
    assert _installs(checkout) == 2


@pytest.mark.parametrize("existed", [False, True])
def test_a_failed_install_does_not_count(checkout: Path, existed: bool) -> None:
    if existed:
        _run(checkout, "tests")
        (checkout / "pyproject.toml").write_text("[project]\nname = 'another'\n")
    before = _installs(checkout)
    failed = _run(checkout, "tests", FAKE_PIP="3")
    assert failed.returncode == 1
    assert failed.stdout == ""
    _, error = failed.stderr.splitlines()
    assert error.startswith("harness: pip failed with status 3: ")
    assert _run(checkout, "tests").returncode == 0
    assert _installs(checkout) == before + 2


def test_without_pip_nothing_is_made(checkout: Path) -> None:
    failed = _run(checkout, "tests", FAKE_PIP="missing")
    assert failed.returncode == 1
    (error,) = failed.stderr.splitlines()
    assert error == f"harness: {sys.executable} has no pip (Debian: apt-get install python3-pip)"
    assert not (checkout / ".venv").exists()


def test_an_old_python_is_named(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 2))
    assert bootstrap.run(checkout, ["tests"]) == 1
    assert capsys.readouterr().err == "harness: this is Python 3.9; Python 3.11 or newer is needed\n"
    assert not (checkout / ".venv").exists()


def test_an_old_python_can_read_it() -> None:
    ast.parse(Path(bootstrap.__file__).read_text(), feature_version=(3, 7))


def test_no_module_hides_one_of_the_standard_library() -> None:
    """``python3 harness`` puts the package's folder first on the module path."""
    names = {path.stem for path in Path(bootstrap.__file__).parent.iterdir()}
    assert not (names - {"__main__", "__init__"}) & sys.stdlib_module_names


@pytest.mark.parametrize("arguments", [[], ["scenario"], ["--help"]])
def test_another_command_is_one_line(checkout: Path, arguments: list[str]) -> None:
    done = _run(checkout, *arguments)
    assert done.returncode == 2
    (error,) = done.stderr.splitlines()
    assert "'python3 harness scenarios [PYTEST'S ARGUMENTS]'" in error


def test_as_a_module_it_is_the_command_line() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "harness", "--help"], capture_output=True, text=True, timeout=60, check=True
    )
    assert "Usage: harness" in shown.stdout
    assert "doctor" in shown.stdout
