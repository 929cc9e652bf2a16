from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

#: Runs pytest in a folder, with options; without a home, a network cache or a QEMU on PATH.
Pytest = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def run_pytest() -> Pytest:
    def run(
        folder: Path, *options: str, path: str = "/usr/sbin:/nowhere"
    ) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": path,
            "HOME": str(folder),
            "HARNESS_CACHE": str(folder / "cache"),
            "TMPDIR": os.environ.get("TMPDIR", "/tmp"),
        }
        argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options]
        return subprocess.run(
            argv, cwd=folder, env=environment, capture_output=True, text=True, timeout=400, check=False
        )

    return run
