"""Run folders: their files and processes do not outlive their owner."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from harness.deadline import wait_until
from harness.reaper import (
    MARK,
    PREFIX,
    RunFolder,
    claim_if_abandoned,
    lock_folder,
    processes_of,
    start_time,
    sweep,
    unlock,
)

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
SWEEP = """
import sys
from pathlib import Path
from harness.reaper import sweep
print(sweep(Path(sys.argv[1])))
"""


class Owner:
    def __init__(self, parent: Path, *prefix: str, folder: Path | None = None) -> None:
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-P", "-c", OWNER, str(parent)],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={k: v for k, v in os.environ.items() if k != MARK},
        )
        assert self.process.stdout is not None
        path, watcher = self.process.stdout.readline().split()
        self.folder, self.watcher = Path(path), int(watcher)
        wait_until(lambda: len(processes_of(self.folder)) == 2, what="two children", timeout_s=60)

    def gone(self) -> bool:
        return not self.folder.exists() and not processes_of(self.folder)

    def watcher_outside(self) -> int:
        """The watcher's process id here, where its namespace is another."""
        words = f"harness.reaper\0{self.folder}\0".encode()
        found = [p for p in Path("/proc").glob("[0-9]*/cmdline") if words in p.read_bytes()]
        return int(found[0].parent.name)

    def kill(self, number: int) -> None:
        self.process.send_signal(number)
        self.process.wait(timeout=60)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_when_the_owner_ends_so_does_everything(tmp_path: Path, number: int) -> None:
    owner = Owner(tmp_path)
    owner.kill(number)
    wait_until(owner.gone, what="the end of everything", timeout_s=60)


def test_a_foreign_package_of_that_name_in_the_current_folder_is_not_run(tmp_path: Path) -> None:
    for module in ("__init__", "reaper", "deadline"):
        foreign = tmp_path / "harness" / f"{module}.py"
        foreign.parent.mkdir(exist_ok=True)
        foreign.write_text("raise SystemExit('a foreign module')")
    owner = Owner(tmp_path, folder=tmp_path)
    owner.kill(signal.SIGKILL)
    wait_until(owner.gone, what="the end of everything", timeout_s=60)


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
    wait_until(owner.gone, what="the end of everything", timeout_s=60)
    assert (tmp_path / "harness-not-ours").exists()


@pytest.fixture(scope="module")
def namespace() -> tuple[str, ...]:
    """A prefix that runs a command in a new PID namespace with its own ``/proc``, as in a container."""
    why = ""
    for user in ((), ("--map-root-user",)):
        words = ("unshare", *user, "--pid", "--fork", "--kill-child", "--mount-proc")
        try:
            tried = subprocess.run([*words, "true"], capture_output=True, text=True, check=False, timeout=60)
        except OSError as exc:
            pytest.skip(f"no unshare: {exc}")
        if tried.returncode == 0:
            return words
        why = tried.stderr.strip()
    pytest.skip(f"no PID namespace: {why}")


def test_a_sweep_leaves_the_living_of_another_pid_namespace_alone(
    tmp_path: Path, namespace: tuple[str, ...]
) -> None:
    """Two containers share their temporary folder; neither finds the other's owner among its processes."""
    outside, inside = Owner(tmp_path), Owner(tmp_path, *namespace)
    assert sweep(tmp_path) == []
    words = [sys.executable, "-c", SWEEP, str(tmp_path)]
    swept = subprocess.run([*namespace, *words], capture_output=True, text=True, check=True, timeout=60)
    assert swept.stdout == "[]\n"
    for owner in (outside, inside):
        assert owner.folder.exists()
        assert len(processes_of(owner.folder)) == 2
        owner.kill(signal.SIGKILL)
    wait_until(outside.gone, what="the end of everything", timeout_s=60)


def test_a_sweep_clears_folders_of_a_container_that_has_ended(
    tmp_path: Path, namespace: tuple[str, ...]
) -> None:
    """The kernel ends all of a PID namespace with its first process, the watcher included."""
    owner = Owner(tmp_path, *namespace)
    # By hand all the same: in the last moment it may see its owner's end.
    os.kill(owner.watcher_outside(), signal.SIGKILL)
    owner.kill(signal.SIGKILL)
    wait_until(lambda: not processes_of(owner.folder), what="the end of the namespace", timeout_s=60)
    assert sweep(tmp_path) == [owner.folder]
    assert owner.gone()


def test_a_folder_without_a_lock_is_not_abandoned(tmp_path: Path) -> None:
    (tmp_path / f"{PREFIX}new").mkdir()
    half = tmp_path / f"{PREFIX}half"
    half.mkdir()
    (half / "lock.new").touch()
    (tmp_path / f"{PREFIX}file").touch()
    (tmp_path / f"{PREFIX}link").symlink_to(half)
    assert sweep(tmp_path) == []
    assert len(list(tmp_path.iterdir())) == 4


def test_a_folder_is_abandoned_once_it_is_unlocked(tmp_path: Path) -> None:
    lock = lock_folder(tmp_path)
    with claim_if_abandoned(tmp_path) as gone:
        assert not gone
    unlock(lock)
    with claim_if_abandoned(tmp_path) as gone:
        assert gone
        with claim_if_abandoned(tmp_path) as taken_twice:
            assert not taken_twice, "two would clear it"


def test_nothing_is_abandoned_on_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("harness.reaper.fcntl.flock", refuse)
    folder = RunFolder(tmp_path)
    assert sweep(tmp_path) == []
    assert folder.path.exists()
    folder.close()
    assert list(tmp_path.iterdir()) == []


def test_closing_is_complete_when_it_returns(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    child = subprocess.Popen(["sleep", "1000"], env=folder.environment())
    wait_until(lambda: folder.processes() == [child.pid], what="the child", timeout_s=60)
    assert folder.path.stat().st_mode & 0o777 == 0o700
    folder.close()
    assert list(tmp_path.iterdir()) == []
    assert child.wait(timeout=60) == -signal.SIGKILL


def test_a_start_time_distinguishes_processes() -> None:
    child = subprocess.Popen(["sleep", "1000"])
    started = start_time(child.pid)
    assert started > 0
    assert started >= start_time(os.getpid())
    child.kill()
    wait_until(lambda: start_time(child.pid) == 0, what="a zombie, which counts as gone", timeout_s=60)
    child.wait()
    assert start_time(child.pid) == 0
