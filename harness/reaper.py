"""What a run owes the host, paid even when the run is killed.

A *run folder* holds the sockets and scratch files of one pytest worker or one command. Every process
started for it carries :data:`MARK` in its environment, so "who belongs to this folder" is a question
for ``/proc`` and not for anybody's memory. A small watching process holds the end of a pipe; when its
owner ends, in whatever way, the pipe closes, and the watcher ends those processes and removes the
folder. Should the watcher be killed as well, the next run's :func:`sweep` does the same.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from harness.deadline import wait_until
from harness.errors import WaitTimeout

#: The environment variable that ties a process to its run folder.
MARK = "HARNESS_RUN_FOLDER"
PREFIX = "harness-"
_OWNER = "owner"


class RunFolder:
    """A private folder (mode 0700) whose content and processes do not outlive their owner.

    :param parent: where to make it; the default is the system's temporary folder. The path is kept
        short, because a unix socket's path has at most 107 bytes (``man 7 unix``).
    """

    def __init__(self, parent: Path | None = None) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        (self.path / _OWNER).write_text(f"{os.getpid()} {start_time(os.getpid())}\n")
        environment = {k: v for k, v in os.environ.items() if k != MARK}
        environment["PYTHONPATH"] = str(Path(__file__).parent.parent)
        self._watcher = subprocess.Popen(
            [sys.executable, "-m", "harness.reaper", str(self.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env=environment,
        )

    def environment(self) -> dict[str, str]:
        """The environment for every process that is started for this folder."""
        return {**os.environ, MARK: str(self.path)}

    def processes(self) -> list[int]:
        """The pids that belong to this folder now."""
        return processes_of(self.path)

    def close(self) -> None:
        """End what still runs and remove the folder; returns when both are done."""
        if self._watcher.stdin is not None and not self._watcher.stdin.closed:
            self._watcher.stdin.close()
        self._watcher.wait()
        clear(self.path)


def start_time(pid: int) -> int:
    """The kernel's start time of ``pid`` in clock ticks, which tells it from a later one of that number.

    0 when there is no such process (``man 5 proc``, field 22 of ``/proc/PID/stat``).
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    fields = text.rpartition(")")[2].split()
    return 0 if fields[0] == "Z" else int(fields[19])


def processes_of(folder: Path) -> list[int]:
    """The living processes whose environment names ``folder``."""
    wanted = f"{MARK}={folder}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            environment = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if wanted in environment and start_time(int(entry.name)):
            found.append(int(entry.name))
    return found


def clear(folder: Path, *, patience_s: float = 10.0) -> None:
    """End every process of ``folder`` with SIGKILL, then remove it.

    Two empty looks in a row are needed: a child between ``fork`` and ``exec`` does not show the mark.
    """
    empty_looks = 0

    def quiet() -> bool:
        nonlocal empty_looks
        pids = processes_of(folder)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        empty_looks = 0 if pids else empty_looks + 1
        return empty_looks == 2

    with contextlib.suppress(WaitTimeout):
        wait_until(quiet, what=f"the end of {folder}'s processes", timeout_s=patience_s)
    shutil.rmtree(folder, ignore_errors=True)


def sweep(parent: Path | None = None) -> list[Path]:
    """Clear the run folders whose owner is gone; returns those that were cleared."""
    cleared = []
    for folder in Path(parent or tempfile.gettempdir()).glob(PREFIX + "*"):
        try:
            pid, started = (int(word) for word in (folder / _OWNER).read_text().split())
        except (OSError, ValueError):
            continue
        if folder.stat().st_uid == os.getuid() and start_time(pid) != started:
            clear(folder)
            cleared.append(folder)
    return cleared


def _watch(folder: Path) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    clear(folder)


if __name__ == "__main__":
    _watch(Path(sys.argv[1]))
