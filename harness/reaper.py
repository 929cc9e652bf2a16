"""Cleans up the processes and files of a run, even when the run is killed.

A *run folder* holds the sockets and scratch files of one pytest worker or one command, its owner. Every
process started for it has :data:`MARK` in its environment, so ``/proc`` shows which processes belong to the
folder. A small watcher process holds the read end of a pipe. When the owner ends, for whatever reason, the
pipe closes, and the watcher kills these processes and removes the folder. If the watcher is killed as well,
:func:`sweep` of the next run does the same.

A lock that the kernel releases when the owner ends (:func:`lock_folder`) shows whether the owner is alive. A
process id would not do: containers that share a temporary folder do not see each other's processes, and each
of them counts from 1.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from harness.deadline import wait_until
from harness.errors import WaitTimeout

#: The environment variable that ties a process to its run folder.
MARK = "HARNESS_RUN_FOLDER"
PREFIX = "harness-"
_LOCK = "lock"


class RunFolder:
    """A private folder (mode 0700) whose content and processes do not outlive their owner.

    :param parent: where to create it; the default is the system's temporary folder. The path is short,
        because the path of a unix socket has at most 107 bytes (``man 7 unix``).
    """

    def __init__(self, parent: Path | None = None) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        self._lock = lock_folder(self.path)
        environment = {k: v for k, v in os.environ.items() if k != MARK}
        environment["PYTHONPATH"] = str(Path(__file__).parent.parent)
        self._watcher = subprocess.Popen(
            # -P: without it a folder called harness in the current folder would be imported instead.
            [sys.executable, "-P", "-m", "harness.reaper", str(self.path)],
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
        """The pids of the processes that belong to this folder now."""
        return processes_of(self.path)

    def close(self) -> None:
        """Kill the run folder's remaining processes and remove it; returns when both are done."""
        if self._watcher.stdin is not None and not self._watcher.stdin.closed:
            self._watcher.stdin.close()
        self._watcher.wait()
        clear(self.path)
        unlock(self._lock)
        self._lock = None


def start_time(pid: int) -> int:
    """The start time of process ``pid`` in clock ticks; it distinguishes processes that reuse a pid.

    0 if there is no such process (``man 5 proc``, field 22 of ``/proc/PID/stat``).
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    fields = text.rpartition(")")[2].split()
    return 0 if fields[0] == "Z" else int(fields[19])


def processes_of(folder: Path) -> list[int]:
    """The running processes whose environment names the run folder ``folder``."""
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


def clear(folder: Path, *, timeout_s: float = 10.0) -> None:
    """Send SIGKILL to every process of the run folder ``folder``, then remove it.

    The processes are looked up until two lookups in a row find none: a child between ``fork`` and ``exec``
    does not have the mark yet.

    :param timeout_s: seconds after which the folder is removed in any case.
    """
    empty_scans = 0

    def no_process_left() -> bool:
        nonlocal empty_scans
        pids = processes_of(folder)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        empty_scans = 0 if pids else empty_scans + 1
        return empty_scans == 2

    with contextlib.suppress(WaitTimeout):
        wait_until(no_process_left, what=f"the end of {folder}'s processes", timeout_s=timeout_s)
    shutil.rmtree(folder, ignore_errors=True)


def lock_folder(folder: Path) -> int | None:
    """Lock the run folder ``folder`` for this process, until the process ends or calls :func:`unlock`.

    The lock belongs to the open file (``man 2 flock``). Programs that this process starts do not inherit it,
    because ``exec`` closes Python's descriptors: neither a QEMU nor the watcher keeps the folder locked. The
    containers of one host see each other's locks, and so do NFS clients if their mount shares locks.

    :returns: the descriptor that holds the lock, or ``None`` on a file system without locks; such a folder
        never counts as abandoned.
    """
    # The file gets its final name when it is locked: an unlocked file of that name means that its owner
    # ended.
    making = folder / f"{_LOCK}.new"
    descriptor = os.open(making, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # ENOLCK, EOPNOTSUPP, ENOSYS: this file system has no locks.
        os.close(descriptor)
        return None
    making.rename(folder / _LOCK)
    return descriptor


def unlock(lock: int | None) -> None:
    """Release a run folder's lock that :func:`lock_folder` returned."""
    if lock is not None:
        os.close(lock)


@contextlib.contextmanager
def claim_if_abandoned(folder: Path) -> Iterator[bool]:
    """Whether the owner of the run folder has ended; if so, this process holds its lock during the block.

    False for a folder without a lock file: it may be in creation, or not belong to the harness.
    """
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        yield False
        return
    try:
        yield _try_lock(lock)
    finally:
        os.close(lock)


def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # EWOULDBLOCK: its owner is alive, or another process is cleaning it up.
        return False
    return os.fstat(lock).st_nlink > 0  # 0: another process has removed it before.


def sweep(parent: Path | None = None) -> list[Path]:
    """Clean up the run folders whose owner has ended, and return them.

    A folder of another PID namespace is removed as well; the processes there end with their namespace.
    """
    cleared = []
    for folder in Path(parent or tempfile.gettempdir()).glob(PREFIX + "*"):
        if not _is_own_folder(folder):
            continue
        with claim_if_abandoned(folder) as gone:
            if gone:
                clear(folder)
                cleared.append(folder)
    return cleared


def _is_own_folder(path: Path) -> bool:
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()


def _watch(folder: Path) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    clear(folder)


if __name__ == "__main__":
    _watch(Path(sys.argv[1]))
