"""The exit statuses of ``git bisect run``; once in a bisection that git itself runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from harness.errors import HarnessError, SetupError, Unsupported, UsageError
from harness.explore.attempt import Attempt, Ending, Failure
from harness.explore.exit_status import ABORT, BAD, GOOD, SKIP, is_enough, of_error, of_replay
from harness.explore.program import AlphabetName, Program
from harness.explore.replay import Replay
from harness.tests.explore.git_tree import commit_files, git, make

OURS = Attempt(Ending.FAILED, Failure("qemu_alive", "killed"))
OTHER = Attempt(Ending.FAILED, Failure("blocked_reasons", "blocked"))
PASSED, ERROR = Attempt(Ending.PASSED), Attempt(Ending.ERROR, error="no space")
SIGNATURE = "qemu_alive | killed"


@pytest.mark.parametrize(
    ("attempts", "signature", "status"),
    [
        ([PASSED, PASSED], "", GOOD),
        ([PASSED, OURS], "", BAD),
        ([PASSED, ERROR], "", GOOD),
        ([ERROR], "", ABORT),
        ([], "", ABORT),
        ([PASSED, OURS, OTHER], SIGNATURE, BAD),
        ([PASSED, OTHER], SIGNATURE, SKIP),
        ([PASSED], SIGNATURE, GOOD),
    ],
)
def test_the_status_of_attempts(attempts: list[Attempt], signature: str, status: int) -> None:
    found = Replay(Program(alphabet=AlphabetName.RAW, steps=()))
    for attempt in attempts:
        found.add(attempt)
    assert of_replay(found, signature) == status
    assert is_enough(found, signature) == (status == BAD)


@pytest.mark.parametrize(
    ("error", "qemu", "status"),
    [
        (UsageError("--qemu /: has no virtio-9p-pci device"), "/", SKIP),
        (UsageError("--qemu /nowhere: no such file"), "/nowhere", ABORT),
        (UsageError("program.json: not JSON"), "/", ABORT),
        (Unsupported("hotplug does not work on q35"), "/", SKIP),
        (SetupError("no space left"), "/", ABORT),
    ],
)
def test_the_status_of_an_error(error: HarnessError, qemu: str, status: int) -> None:
    assert of_error(error, qemu) == status


def test_git_bisect_run_understands_them(tmp_path: Path) -> None:
    """A script that exits with these statuses: bad from the fifth commit on; the fourth cannot be tested."""
    repo = tmp_path / "qemu"
    ids = [make(repo), *(commit_files(repo, f"edit {number}", {"n": str(number)}) for number in range(1, 8))]
    script = tmp_path / "replay.py"
    script.write_text(
        "from pathlib import Path\nimport sys\n"
        f"number = int(Path('n').read_text())\n"
        f"sys.exit({SKIP} if number == 3 else {BAD} if number >= 4 else {GOOD})\n"
    )
    git(repo, "bisect", "start", ids[7], ids[1])
    done = subprocess.run(
        ["git", "-C", str(repo), "bisect", "run", sys.executable, str(script)],
        capture_output=True,
        text=True,
        check=False,
    )
    # The third commit and the fourth: which of them is the first bad one cannot be said.
    assert "cannot bisect more" in (done.stdout + done.stderr).lower()
    assert ids[3] in done.stdout + done.stderr
    assert ids[4] in done.stdout + done.stderr
