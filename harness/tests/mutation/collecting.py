"""What pytest collects of the scenarios, once for a whole run of these tests and all its workers."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from filelock import FileLock

from harness.mutation import runner
from harness.tests import forked

#: pytest's options, by what they select.
SETS: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "always": ("-m", "always"),
    "every": ("--thorough",),
}


def collected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, ...]]:
    """The scenarios of each of the :data:`SETS`."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # The run's; each worker has a folder in it.
    path = root / "collected.json"
    with FileLock(f"{path}.lock"):
        if not path.exists():
            done = forked.run(write, str(path), folder=Path.cwd(), environment=os.environ)
            assert done.returncode == 0, done.stdout + done.stderr
    return {name: tuple(found) for name, found in json.loads(path.read_text()).items()}


def write(path: str) -> int:
    """Collect one set after the other, in this process: the files are imported once."""
    vars(runner)["run_pytest"] = _here
    found = {name: runner.collected(*options) for name, options in SETS.items()}
    Path(path).write_text(json.dumps(found))
    return 0


def _here(argv: Sequence[str], folder: Path, *, what: str) -> subprocess.CompletedProcess[str]:
    os.chdir(folder)
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        status = forked.run_pytest(argv[argv.index("pytest") + 1 :])
    return subprocess.CompletedProcess(argv, status, output.getvalue(), what)
