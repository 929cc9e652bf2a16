"""Run folders: nothing in them, and nothing that was started for them, outlives their owner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from harness.deadline import wait_until
from harness.reaper import MARK, RunFolder, processes_of, start_time, sweep

OWNER = """
import subprocess, sys
from pathlib import Path
from harness.reaper import RunFolder
folder = RunFolder(Path(sys.argv[1]))
# One child, and one that left its session: neither may survive.
for session in (False, True):
    subprocess.Popen(["sleep", "1000"], env=folder.environment(), start_new_session=session)
print(folder.path, folder._watcher.pid, flush=True)
sys.stdin.read()
"""


class Owner:
    def __init__(self, parent: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", OWNER, str(parent)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={k: v for k, v in os.environ.items() if k != MARK},
        )
        assert self.process.stdout is not None
        path, watcher = self.process.stdout.readline().split()
        self.folder, self.watcher = Path(path), int(watcher)
        wait_until(lambda: len(processes_of(self.folder)) == 2, what="two children", timeout_s=10)

    def gone(self) -> bool:
        return not self.folder.exists() and not processes_of(self.folder)

    def kill(self, number: int) -> None:
        self.process.send_signal(number)
        self.process.wait(timeout=20)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_when_the_owner_ends_so_does_everything(tmp_path: Path, number: int) -> None:
    owner = Owner(tmp_path)
    owner.kill(number)
    wait_until(owner.gone, what="the end of everything", timeout_s=20)


def test_when_the_watcher_is_killed_too_the_next_sweep_does_it(tmp_path: Path) -> None:
    owner = Owner(tmp_path)
    os.kill(owner.watcher, signal.SIGKILL)
    owner.kill(signal.SIGKILL)
    assert not owner.gone()
    assert sweep(tmp_path) == [owner.folder]
    assert owner.gone()


def test_a_sweep_leaves_the_living_alone(tmp_path: Path) -> None:
    owner = Owner(tmp_path)
    (tmp_path / "harness-not-ours").mkdir()
    assert sweep(tmp_path) == []
    assert len(processes_of(owner.folder)) == 2
    owner.kill(signal.SIGKILL)
    wait_until(owner.gone, what="the end of everything", timeout_s=20)
    assert (tmp_path / "harness-not-ours").exists()


def test_closing_is_complete_when_it_returns(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    child = subprocess.Popen(["sleep", "1000"], env=folder.environment())
    wait_until(lambda: folder.processes() == [child.pid], what="the child", timeout_s=10)
    assert folder.path.stat().st_mode & 0o777 == 0o700
    folder.close()
    assert list(tmp_path.iterdir()) == []
    assert child.wait(timeout=1) == -signal.SIGKILL


def test_a_start_time_tells_a_process_from_a_later_one() -> None:
    child = subprocess.Popen(["sleep", "1000"])
    started = start_time(child.pid)
    assert started > 0
    assert started >= start_time(os.getpid())
    child.kill()
    wait_until(lambda: start_time(child.pid) == 0, what="a zombie, which counts as gone", timeout_s=5)
    child.wait()
    assert start_time(child.pid) == 0
