from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from harness.tests.plugin.conftest import Pytest

_CASES = """
def test_fails(artifacts_root):
    artifacts_root.mkdir(parents=True, exist_ok=True)
    (artifacts_root / "evidence").write_text(str(artifacts_root))
    assert False

def test_leaves_nothing(artifacts_root):
    artifacts_root.mkdir(parents=True, exist_ok=True)

def test_says_where(artifacts_root, tmp_path_factory, pytestconfig):
    worker = getattr(pytestconfig, "workerinput", {}).get("workerid", "alone")
    (pytestconfig.rootpath / f"where-{worker}").write_text(str(artifacts_root))

def test_says_where_again(artifacts_root, pytestconfig):
    test_says_where(artifacts_root, None, pytestconfig)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "conftest.py").write_text(Path(__file__).with_name("inner.py").read_text())
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_cases.py").write_text(_CASES)
    return tmp_path


def test_every_run_has_a_folder_of_its_own(folder: Path, run_pytest: Pytest) -> None:
    for _ in range(2):
        run_pytest(folder, "--machine", "pc", "-k", "fails")
    kept = sorted(path for path in (folder / "artifacts").iterdir() if not path.is_symlink())
    assert len(kept) == 2
    assert [(path / "evidence").read_text() for path in kept] == [str(path) for path in kept]
    assert (folder / "artifacts/latest").resolve() == kept[1]


def test_a_run_that_kept_nothing_leaves_no_folder(folder: Path, run_pytest: Pytest) -> None:
    assert run_pytest(folder, "--machine", "pc", "-k", "leaves_nothing").returncode == 0
    assert not (folder / "artifacts").exists()


def test_all_workers_write_to_the_same_folder(folder: Path, run_pytest: Pytest) -> None:
    assert run_pytest(folder, "--machine", "pc", "-n", "2", "-k", "says_where").returncode == 0
    said = {path.read_text() for path in folder.glob("where-gw*")}
    assert len(list(folder.glob("where-gw*"))) == 2
    assert len(said) == 1


def test_a_folder_that_another_run_writes_to_is_refused(folder: Path, run_pytest: Pytest) -> None:
    out = folder / "out"
    out.mkdir()
    descriptor = os.open(out, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    done = run_pytest(folder, "--artifacts", "out")
    os.close(descriptor)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert f"--artifacts {out}: another run is writing there; give another folder" in done.stderr
    assert run_pytest(folder, "--artifacts", "out", "-k", "leaves_nothing").returncode == 0


def test_a_folder_that_cannot_be_made_is_refused(folder: Path, run_pytest: Pytest) -> None:
    (folder / "out").write_text("a file")
    done = run_pytest(folder, "--artifacts", "out")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "--artifacts" in done.stderr
    assert "Traceback" not in done.stderr
