"""A run that asks for no guest imports nothing; one that does is provisioned once, wherever that shows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.plugin import activation, provisioning
from harness.tests.plugin import inner
from harness.tests.plugin.conftest import Pytest

#: Of what this project needs; none of it is needed by a run without guests.
_NOT_IMPORTED = (
    "click",
    "cryptography",
    "elftools",
    "filelock",
    "gcovr",
    "harness.channel",
    "harness.matrix",
    "harness.report",
    "harness.testbed",
    "jinja2",
    "paramiko",
    "pexpect",
    "psutil",
    "pydantic",
    "qemu",
    "rich",
    "sqlite3",
    "zstandard",
)
_RECORDING = f"""
import os, sys

def pytest_sessionfinish(session):
    name = getattr(session.config, "workerinput", {{}}).get("workerid", "user")
    found = sorted(set({_NOT_IMPORTED!r}) & set(sys.modules))
    (session.config.rootpath / f"modules-{{name}}").write_text(" ".join(found))
"""
_NO_GUEST = "import pytest\n@pytest.mark.parametrize('n', range(4))\ndef test_theirs(n): pass\n"
_GUEST = """
import pytest

@pytest.mark.parametrize("n", range(2))
def test_with_a_guest(cell, testbed, n): pass
def test_without(): pass
"""
#: For ``inner``: records which process provisions, and that no cell is looked up.
_PREPARING = """
from harness.plugin import provisioning

@pytest.fixture(scope="session")
def cell(qemu_name, kernel_name, machine_name): pass

def _prepare(self):
    Path(f"prepared-{os.getpid()}-{os.environ.get('PYTEST_XDIST_WORKER', 'user')}").touch()
    return []

def pytest_sessionstart():
    Matrix.prepare = _prepare
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "conftest.py").write_text(_RECORDING)
    (tmp_path / "test_theirs.py").write_text(_NO_GUEST)
    return tmp_path


def record_provisioning(folder: Path) -> None:
    """Let each process that provisions leave a file ``prepared-PID-WORKER`` in the folder of the run."""
    content = Path(inner.__file__).read_text().replace("import json\n", "import json\nimport os\n")
    (folder / "conftest.py").write_text(content + _PREPARING)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_without_a_guest_nothing_is_imported_or_touched(
    folder: Path, run_fresh_pytest: Pytest, workers: str
) -> None:
    (folder / "artifacts").mkdir()
    done = run_fresh_pytest(folder, "-n", workers, "--strict-markers")
    assert done.returncode == 0, done.stdout + done.stderr
    written = {path.name: path.read_text() for path in folder.glob("modules-*")}
    assert len(written) == (1 if workers == "0" else 3)
    assert set(written.values()) == {""}
    assert "harness: " not in done.stdout + done.stderr
    assert "guarantees" not in done.stdout
    assert (folder / "artifacts").exists()
    assert not (folder / "cache").exists()


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_test_that_asks_for_a_guest_has_it_provisioned_once(
    folder: Path, run_pytest: Pytest, workers: str
) -> None:
    """By the process that the user started; no option of ours is given."""
    record_provisioning(folder)
    (folder / "test_guest.py").write_text(_GUEST)
    done = run_pytest(folder, "-n", workers)
    assert done.returncode == 0, done.stdout + done.stderr
    (prepared,) = folder.glob("prepared-*")
    assert prepared.name.endswith("-user")
    assert "(no guarantee named)" in done.stdout


@pytest.mark.parametrize(("path", "asks"), [("harness/tests", False), ("scenarios", True)])
def test_workers_with_own_tests_have_nothing_provisioned(
    path: str, asks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the id of an own test reads like that of a scenario."""
    done: list[str] = []
    monkeypatch.setattr(activation, "activate", lambda config: done.append("activated"))
    monkeypatch.setattr(provisioning, "prepare", lambda config: done.append("provisioned"))
    root = Path(activation.__file__).parents[2]
    config = SimpleNamespace(args=[path], invocation_params=SimpleNamespace(dir=root), stash={})
    ids = ["test_it.py::test_it[one]", "test_it.py::test_it[default-default-pc]"]
    activation.pytest_xdist_node_collection_finished(SimpleNamespace(config=config), ids)
    assert done == (["activated", "provisioned"] if asks else [])


def test_what_is_only_collected_is_not_provisioned(folder: Path, run_pytest: Pytest) -> None:
    (folder / "test_guest.py").write_text(_GUEST.replace("cell, testbed", "guest"))
    done = run_pytest(folder, "--collect-only", "-q")
    assert "test_guest.py::test_with_a_guest[default-default-pc-0]" in done.stdout
    assert done.returncode == 0
    assert not (folder / "cache").exists()


@pytest.mark.parametrize("workers", ["0", "2"])
def test_nothing_is_provisioned_for_a_path_that_does_not_exist(
    folder: Path, run_pytest: Pytest, workers: str
) -> None:
    """Also where an option shows at the start that guests are wanted: it can ask for a QEMU to be built."""
    record_provisioning(folder)
    done = run_pytest(folder, "-n", workers, "--machine", "pc", "test_theirs.py", "test_gone.py::test_it")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "test_gone.py" in done.stdout + done.stderr
    assert not list(folder.glob("prepared-*"))


_THEIR_OPTIONS = """
def pytest_addoption(parser):
    parser.addoption("--kernel", dest="kernel", type=int, default=5)
    parser.addoption("--full", action="store_true")
    parser.addoption("--machine")
    parser.addoption("-M", "--cold", dest="machine")

def pytest_report_header(config):
    return f"theirs: {config.option.kernel} {config.option.full}"
"""


def test_an_option_that_another_has_is_left_to_it(folder: Path, run_pytest: Pytest) -> None:
    (folder / "conftest.py").write_text(Path(inner.__file__).read_text() + _THEIR_OPTIONS)
    (folder / "more").mkdir()
    (folder / "more" / "conftest.py").write_text("raise RuntimeError('an artefact is no test')")
    done = run_pytest(folder, "--kernel", "7", "--full", "--artifacts", "more", "test_theirs.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "theirs: 7 True" in done.stdout
    for name in ("kernel", "machine", "full", "cold"):
        line = f"harness: --{name} is another plugin's option; the harness's is --harness-{name}"
        assert line in done.stdout


def test_an_option_that_another_has_has_a_second_name(folder: Path, run_pytest: Pytest) -> None:
    (folder / "conftest.py").write_text(_THEIR_OPTIONS)
    (folder / "test_guest.py").write_text("def test_it(qemu_name, kernel_name, machine_name): pass")
    names = ("--harness-kernel", "6.1", "--harness-machine", "q35", "--qemu", "7.2")
    done = run_pytest(folder, "--collect-only", "-q", *names, "test_guest.py")
    assert "test_guest.py::test_it[7.2-6.1-q35]" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("is_package", [True, False])
def test_a_foreign_folder_of_the_harness_s_name(folder: Path, is_package: bool) -> None:
    """pytest's own script puts no folder on the module path (``python -m pytest`` does)."""
    (folder / "harness").mkdir()
    if is_package:
        (folder / "harness" / "__init__.py").write_text("raise RuntimeError('a foreign package')")
    done = subprocess.run(
        [Path(sys.executable).with_name("pytest"), "-p", "no:cacheprovider"],
        cwd=folder,
        env={**os.environ, "HARNESS_CACHE": str(folder / "cache")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
