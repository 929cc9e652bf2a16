"""What a run owes the host, paid even when the run is killed.

A *run folder* holds the sockets and scratch files of one pytest worker or one command. Every process
started for it carries :data:`MARK` in its environment, so "who belongs to this folder" is a question
for ``/proc`` and not for anybody's memory. A small watching process holds the end of a pipe; when its
owner ends, in whatever way, the pipe closes, and the watcher ends those processes and removes the
folder. Should the watcher be killed as well, the next run's :func:`sweep` does the same.

Whether an owner lives is told by a lock that dies with it (:func:`own`), and not by its process id:
containers that share a temporary folder do not see each other's processes, and count them from 1 alike.
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

    :param parent: where to make it; the default is the system's temporary folder. The path is kept
        short, because a unix socket's path has at most 107 bytes (``man 7 unix``).
    """

    def __init__(self, parent: Path | None = None) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        self._lock = own(self.path)
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
        """The pids that belong to this folder now."""
        return processes_of(self.path)

    def close(self) -> None:
        """End what still runs and remove the folder; returns when both are done."""
        if self._watcher.stdin is not None and not self._watcher.stdin.closed:
            self._watcher.stdin.close()
        self._watcher.wait()
        clear(self.path)
        disown(self._lock)
        self._lock = None


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


def own(folder: Path) -> int | None:
    """Lock ``folder`` as this process's, for as long as this process lives or until :func:`disown`.

    The lock is of the open file (``man 2 flock``). Programs that this process starts do not inherit it,
    because Python's descriptors are closed by ``exec``: a QEMU, or the watcher, does not keep the folder.
    Containers of one host share it with the file, and NFS clients where their mount shares locks.

    :returns: the descriptor that holds it, or ``None`` on a file system without locks: such a folder is never
        taken for abandoned.
    """
    # The lock comes with the name: a file that is there and not locked is that of an owner who is gone.
    making = folder / f"{_LOCK}.new"
    descriptor = os.open(making, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # ENOLCK, EOPNOTSUPP, ENOSYS: no locks here.
        os.close(descriptor)
        return None
    making.rename(folder / _LOCK)
    return descriptor


def disown(lock: int | None) -> None:
    """Give up what :func:`own` returned."""
    if lock is not None:
        os.close(lock)


@contextlib.contextmanager
def abandoned(folder: Path) -> Iterator[bool]:
    """Whether the owner of ``folder`` is gone; if so, it is this process's own until the block is left.

    A folder without a lock is not: it may be just being made, or somebody else's.
    """
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        yield False
        return
    try:
        yield _take(lock)
    finally:
        os.close(lock)


def _take(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # EWOULDBLOCK: its owner lives, or another process clears it up at this moment.
        return False
    return os.fstat(lock).st_nlink > 0  # Another one has cleared it up before.


def sweep(parent: Path | None = None) -> list[Path]:
    """Clear the run folders whose owner is gone; returns those that were cleared.

    One of another PID namespace is removed as well; what its owner started there ends with the namespace.
    """
    cleared = []
    for folder in Path(parent or tempfile.gettempdir()).glob(PREFIX + "*"):
        if not _is_own_folder(folder):
            continue
        with abandoned(folder) as gone:
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
