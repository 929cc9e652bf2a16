"""Another repository uses the harness: the wheel, a scenario of its own, a recipe and a known bug."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from harness.layout import checkout
from harness.provision import default_cache_root
from harness.report import summary
from harness.report.summary import Outcome

_SCENARIO = '''
"""A scenario of another repository, for a guest that has one more module."""

import pytest

from harness.errors import Violation


@pytest.mark.guarantee("the guest has what its recipe says")
@pytest.mark.pin_machine("pc")
@pytest.mark.cold
def test_the_guest_has_the_module(guest, hotplug, share):
    assert guest.run("test -d /sys/module/virtio_rng").returncode == 0
    hotplug.plug(share)
    raise Violation("a bug of this repository")
'''
_KNOWN_BUGS = """
[[bug]]
id = "EXAMPLE-1"
guarantee = "the guest has what its recipe says"
title = "an example"
affected = [">=0"]
seen_broken = ["7.2.22"]
scenarios = ["test_example.py::test_the_guest_has_the_module"]
failure = "a bug of this repository"
evidence = "none: it is an example"
"""
#: What a project that uses the harness has besides: its own options for pytest.
_CONFIGURATION = """
[pytest]
addopts = --recipes recipes --kernel with-rng --known-bugs known-bugs.toml --strict-markers
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel. Dependencies are this environment's, so that no network is needed."""
    folder = tmp_path_factory.mktemp("example")
    root = checkout()
    assert root is not None
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=root, check=True, capture_output=True, timeout=300)
    made = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(made)], check=True, timeout=300)
    (wheel,) = folder.glob("*.whl")
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    # A pure Python wheel is installed by unpacking it (PEP 427).
    packages = made / "lib" / version / "site-packages"
    shutil.unpack_archive(wheel, packages, "zip")
    # A folder that a .pth file names is searched last, and its own .pth files are not read: this
    # environment's harness, which is installed as editable, is not found.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return made


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The other repository. It has a folder of the harness's name, too."""
    (tmp_path / "test_example.py").write_text(_SCENARIO)
    (tmp_path / "known-bugs.toml").write_text(_KNOWN_BUGS)
    (tmp_path / "pytest.ini").write_text(_CONFIGURATION)
    root = checkout()
    assert root is not None
    guests = tmp_path / "recipes/guests"
    shutil.copytree(root / "images/guests/root", guests / "root")
    recipe = (root / "images/guests/6.1.toml").read_text().replace("default = true\n", "")
    (guests / "with-rng.toml").write_text(recipe.replace('"9p"]', '"9p", "virtio_rng"]'))
    (tmp_path / "harness").mkdir()
    return tmp_path


def _run(environment: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "PYTHON"))}
    return subprocess.run(
        [environment / "bin/python", "-P", *words],
        cwd=folder,
        env={**kept, "HARNESS_CACHE": str(default_cache_root())},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def test_the_wheel_has_the_scenarios_and_not_the_own_tests(environment: Path) -> None:
    (packages,) = environment.glob("lib/*/site-packages")
    root = checkout()
    assert root is not None
    assert not (packages / "harness/tests").exists()
    assert (packages / "harness/_images/known-bugs.toml").exists()
    for data in ("page/page.html", "page/page.css", "page/page.js", "timeline/timeline.css"):
        assert (packages / "harness/report" / data).exists()
    ours = {path.name for path in (root / "scenarios").glob("*.py")}
    assert {path.name for path in (packages / "harness_scenarios").glob("*.py")} == ours


def test_from_the_wheel_the_scenarios_run_without_a_checkout(environment: Path, tmp_path: Path) -> None:
    """A foreign package of the harness's name does no harm, nor does a configuration of pytest."""
    (tmp_path / "harness").mkdir()
    (tmp_path / "harness/__init__.py").write_text("raise RuntimeError('a foreign package')")
    collect = ("-m", "pytest", "--pyargs", "harness_scenarios", "--collect-only", "-q", "--strict-markers")
    by_name = _run(environment, tmp_path, *collect, "-p", "no:cacheprovider")
    assert by_name.returncode == 0, by_name.stdout + by_name.stderr
    tests = [line for line in by_name.stdout.splitlines() if "::" in line]
    assert any("test_leak.py::" in test for test in tests)
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --no-such-option\n")
    script = (
        "from harness.cli.main import main; from harness.mutation import runner\n"
        "print(len(runner.collected()), len(runner.files())); main(['faults', 'list'])"
    )
    by_command = _run(environment, tmp_path, "-c", script)
    assert by_command.returncode == 0, by_command.stderr
    numbers, _, listed = by_command.stdout.partition("\n")
    # Some files have no test in a default run.
    (installed,) = environment.glob("lib/python*/site-packages/harness_scenarios")
    assert numbers.split() == [str(len(tests)), str(len(list(installed.glob("test_*.py"))))]
    assert "tag-kept" in listed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["harness", "pytest.ini"]


@pytest.mark.qemu
def test_commands_start_guests_without_a_checkout(environment: Path, tmp_path: Path) -> None:
    """With their own folders of results, below the current one."""
    options = ("--qemu", "7.2", "--alphabet", "raw", "--programs", "3", "--accel", "tcg")
    searched = _run(environment, tmp_path, "-m", "harness", "explore", *options)
    assert searched.returncode in (0, 1), searched.stderr
    assert "no result" not in searched.stdout + searched.stderr
    (folder,) = (tmp_path / "artifacts/explore").iterdir()
    assert len((folder / "programs.ndjson").read_text().splitlines()) == 3
    timed = _run(environment, tmp_path, "-m", "harness", "bench", "qmp", "--rounds", "1", "--json")
    assert timed.returncode == 0, timed.stderr
    assert "harness" in timed.stdout


@pytest.mark.qemu
def test_a_scenario_of_another_repository(environment: Path, project: Path) -> None:
    options = ("--accel", "tcg", "--machine", "pc", "--qemu", "7.2", "--strict", "--summary", "out")
    # From another folder than the one that pytest.ini's options are written for.
    done = _run(environment, project / "harness", "-m", "pytest", "..", *options, "-p", "no:cacheprovider")
    assert done.returncode == 0, done.stdout + done.stderr
    (result,) = summary.read(project / "harness/out").results
    assert (result.outcome, result.bug) == (Outcome.KNOWN, "EXAMPLE-1")
    assert (result.guarantee, result.machine) == ("the guest has what its recipe says", "pc")
    assert "xfailed" in done.stdout
