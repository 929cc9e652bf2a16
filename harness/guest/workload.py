"""A workload that keeps a journal of its acknowledged operations, which are checked on the host byte by byte.

Each worker has its own folder of the share and repeats a round of operations. It adds an operation to its
journal (in the guest's memory) only after the operation has returned. Whatever happens to the device, the
effect of every operation in the journal must be on the host. It is unknown whether the operation after the
last one has happened.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterable
from pathlib import Path

from harness.channel import Completed
from harness.errors import GuestError, Violation
from harness.guest.commands import quote
from harness.guest.job import Job
from harness.guest.mount import Mount

#: The Perl program of a worker.
WORKER = Path(__file__).with_name("worker.pl")
#: The number of lines that a worker writes to a file, minus one; the number of bytes with which it fills a
#: file.
_LINES = 1500
_SIZE = 65536
ATTRIBUTE = "user.workload"
#: Seconds, before scaling.
_PROGRESS_TIMEOUT_S = 20.0
_numbers = itertools.count(1)


class Workload:
    """Workers on one mount; made by :meth:`start`."""

    def __init__(self, mount: Mount, folder: str, workers: int) -> None:
        self.mount, self._folder, self._workers = mount, folder, workers
        self._optional = optional_operations(mount)
        self._jobs: list[Job] = []

    @classmethod
    def start(cls, mount: Mount, *, workers: int = 2) -> Workload:
        """Start ``workers`` workers of a workload, and wait until each has completed an operation.

        :raises Unsupported: see :meth:`.Commands.require_system_calls`.
        """
        mount.guest.require_system_calls()
        made = cls(mount, f"/tmp/workload{next(_numbers)}", workers)
        guest, program = mount.guest, f"{made._folder}/worker.pl"
        guest.succeed(f"mkdir {made._folder} && cat > {program}", stdin=WORKER.read_bytes())
        for worker in range(workers):
            inside = quote(f"{mount.mountpoint}/w{worker}")
            words = ["perl", program, "rounds", inside, made._journal(worker), f"{made._folder}/stop"]
            command = " ".join([*words, *made._optional])
            made._jobs.append(Job(guest, command, f"worker {worker} on {mount.share.id}"))
        made._wait_counts([1] * workers)
        return made

    def _journal(self, worker: int) -> str:
        return f"{self._folder}/journal{worker}"

    def _counts(self) -> list[int]:
        """The number of acknowledged operations of each worker."""
        counts = "; ".join(f"cat {self._journal(w)} 2>/dev/null | wc -l" for w in range(self._workers))
        return [int(line) for line in self.mount.guest.succeed(counts).split()]

    def wait_progress(self) -> None:
        """Witness of progress: wait until each worker has completed an operation that began after this call.

        :raises GuestError: when a worker has ended. :raises WaitTimeout: when one makes no progress.
        """
        self._wait_counts([count + 2 for count in self._counts()])

    def _wait_counts(self, wanted: list[int]) -> None:
        self.mount.guest.machine.wait_until(
            lambda: all(now >= count for now, count in zip(self._counts(), wanted, strict=True)),
            watch=self._watch,
            what=f"the workers on {self.mount.share.id} to get on",
            timeout_s=_PROGRESS_TIMEOUT_S,
            interval_s=0.1,
        )

    def _watch(self) -> None:
        self.mount.guest.machine.watch()
        for worker, job in enumerate(self._jobs):
            if not job.running:
                raise self._ended(worker, job.wait())

    def stop(self) -> None:
        """Stop each worker of the workload at the end of its round, and wait for that.

        :raises GuestError: when an operation failed.
        """
        self.mount.guest.succeed(f"touch {self._folder}/stop")
        for worker, job in enumerate(self._jobs):
            done = job.wait(timeout_s=_PROGRESS_TIMEOUT_S)
            if done.returncode != 0:
                raise self._ended(worker, done)

    def _ended(self, worker: int, done: Completed) -> GuestError:
        """An error with the exit status and the last operation of a worker of the workload."""
        last = self.mount.guest.run(f"tail -n 1 {self._journal(worker)}").stdout.strip()
        what = self._jobs[worker].what
        return GuestError(f"{what} ended with {done.returncode}: {last}", details=done.stderr.strip())

    def expect_acknowledged(self) -> None:
        """Check that the host has the effects of exactly the acknowledged operations.

        :raises Violation: when it does not; the message names the first wrong file.
        """
        for worker in range(self._workers):
            journal = self.mount.guest.succeed(f"cat {self._journal(worker)}").splitlines()
            expect_replayed(journal, self.mount.share.path / f"w{worker}")


def optional_operations(mount: Mount) -> list[str]:
    """The optional operations of a workload that a mount supports.

    A writable shared mapping needs a cache (kernel: ``fs/9p/vfs_file.c``, ``v9fs_file_mmap``). Extended
    attributes need a file system on the host that has them.
    """
    found = ["direct", "lock"]
    if "cache=mmap" in mount.options or "cache=loose" in mount.options:
        found.append("map")
    try:
        os.setxattr(mount.share.path, ATTRIBUTE, b"probe")
        os.removexattr(mount.share.path, ATTRIBUTE)
    except OSError as exc:
        mount.guest.machine.history.note("host", "workload:no-xattrs", {"why": exc.strerror})
    else:
        found.append("xattr")
    return found


def lines(first: int) -> bytes:
    """The content that a workload's worker writes: consecutive numbers, one in each line."""
    return "".join(f"{number}\n" for number in range(first, first + _LINES + 1)).encode()


def replay(journal: Iterable[str]) -> dict[str, bytes]:
    """The files that result from the operations of a journal, by path; attributes as ``path#name``.

    Links have the content of their target; no operation writes through a link.

    :raises GuestError: for an invalid line.
    """
    files: dict[str, bytes] = {}
    for line in journal:
        match line.split():
            case ["write", name, first]:
                files[name] = lines(int(first))
            case ["append", name, first]:
                files[name] += lines(int(first))
            case ["rename", name, to]:
                files[to] = files.pop(name)
            case ["link" | "symlink", name, to]:
                files[to] = files[name]
            case ["unlink", name]:
                del files[name]
            case ["deep", name, first]:
                files[f"{name}/a/b/c/leaf"] = lines(int(first))
            case ["fill", name, byte]:
                files[name] = bytes([int(byte)]) * _SIZE
            case ["xattr", name, value]:
                files[f"{name}#{ATTRIBUTE}"] = value.encode()
            case ["read" | "lock" | "error", *_]:
                pass
            case _:
                raise GuestError(f"invalid line in a worker's journal: {line!r}")
    return files


def expect_replayed(journal: list[str], folder: Path) -> None:
    """Check that ``folder`` has the files that result from ``journal``.

    It is unknown whether an operation that failed has happened, so both results are allowed.

    :raises Violation: when a file differs.
    """
    uncertain = [line.removeprefix("error ") for line in journal[-1:] if line.startswith("error ")]
    without, with_it = replay(journal), replay([*journal, *uncertain])
    found = _found(folder)
    for name in sorted(without.keys() | with_it.keys() | found.keys()):
        allowed = (without.get(name), with_it.get(name))
        content = found.get(name)
        if content not in allowed:
            raise Violation(f"{folder}/{name} {_complaint(content, allowed)}")


def _found(folder: Path) -> dict[str, bytes]:
    """The files of a workload in ``folder`` on the host, as :func:`replay` returns them."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            name = str(path.relative_to(folder))
            found[name] = path.read_bytes()
            with contextlib.suppress(OSError):  # The file has none.
                found[f"{name}#{ATTRIBUTE}"] = os.getxattr(path, ATTRIBUTE)
    return found


def _complaint(content: bytes | None, allowed: tuple[bytes | None, ...]) -> str:
    if content is None:
        return "was acknowledged, but is not on the host"
    if allowed == (None, None):
        return "is on the host, but should not exist"
    sizes = " or ".join(str(len(one)) for one in allowed if one is not None)
    return f"has other content than was acknowledged ({len(content)} bytes, expected {sizes})"
