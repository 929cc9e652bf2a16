from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.tests import forked

#: Runs pytest in a folder, with options; without a home, a network cache or a QEMU on PATH.
Pytest = Callable[..., subprocess.CompletedProcess[str]]
#: Of the tests' environment; hypothesis is imported only to print that nothing failed in it.
_OPTIONS = ("-p", "no:cacheprovider", "-p", "no:hypothesispytest")


def _environment(folder: Path, path: str) -> dict[str, str]:
    return {
        "PATH": path,
        "HOME": str(folder),
        "HARNESS_CACHE": str(folder / "cache"),
        "TMPDIR": os.environ.get("TMPDIR", "/tmp"),
    }


@pytest.fixture(scope="session")
def run_pytest() -> Pytest:
    """In a forked process: it has imported the harness already (:mod:`harness.tests.forked`)."""

    def run(
        folder: Path, *options: str, path: str = "/usr/sbin:/nowhere"
    ) -> subprocess.CompletedProcess[str]:
        return forked.run(
            forked.run_pytest,
            (*_OPTIONS, *options),
            folder=folder,
            environment=_environment(folder, path),
        )

    return run


@pytest.fixture(scope="session")
def run_fresh_pytest() -> Pytest:
    """In a fresh process, for what is imported."""

    def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "pytest", *_OPTIONS, *options]
        environment = _environment(folder, "/usr/sbin:/nowhere")
        return subprocess.run(
            argv, cwd=folder, env=environment, capture_output=True, text=True, timeout=400, check=False
        )

    return run
