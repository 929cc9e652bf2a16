"""Operations on the files of a share, checked byte by byte on both sides.

A :class:`Program` is a list of operations, which one process of the guest performs (``fileops.pl``): hundreds
of reads and writes cost no more than a few commands. The guest knows what each file has to contain and
compares whatever it reads with that; the program knows it as well, independently, and compares it with the
host's files.

Content comes from a *pool* of random bytes whose size is a prime number, repeated: bytes that end up at a
wrong place, by a page or a block or a request, differ from those that belong there.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field
from pathlib import Path

from harness.errors import GuestError, UsageError, Violation
from harness.guest.commands import Commands, quote
from harness.guest.job import Job

#: What performs the operations: a program for the guest's Perl.
PERFORMER = Path(__file__).with_name("fileops.pl")
_POOL = random.Random(22).randbytes(65521)
#: ``fileops.pl`` has the pool this often, less one for where in it the content begins.
MAX_LENGTH = 39 * len(_POOL)
#: Of the guest: for the performer, and what it is told by.
_PLACE = "/tmp"
#: How many of the operations that went wrong are told.
_TOLD = 20
_TIMEOUT_S = 60.0
_numbers = itertools.count(1)


def content(seed: int, length: int) -> bytes:
    """``length`` bytes of the pool from the place that ``seed`` says; 2.5 MB at most.

    :raises UsageError: for more.
    """
    if length > MAX_LENGTH:
        raise UsageError(f"{length} bytes at once: {MAX_LENGTH} are possible")
    start = seed % len(_POOL)
    return (_POOL * ((start + length) // len(_POOL) + 1))[start : start + length]


@dataclass
class File:
    """What a file has to contain; several names, open files and links may stand for the same one."""

    name: str
    content: bytearray = field(default_factory=bytearray)

    def put(self, offset: int, new: bytes) -> None:
        """As ``pwrite``: what lies between the end and ``offset`` becomes zeros."""
        self.content.extend(bytes(max(0, offset - len(self.content))))
        self.content[offset : offset + len(new)] = new

    def truncate(self, size: int) -> None:
        """As ``ftruncate``."""
        del self.content[size:]
        self.content.extend(bytes(size - len(self.content)))

    def expect_on_host(self, path: Path) -> None:
        """:raises Violation: when the host's file at ``path`` has other bytes."""
        seen, expected = path.read_bytes(), bytes(self.content)
        if seen == expected:
            return
        if len(seen) != len(expected):
            raise Violation(f"the host has {len(seen)} bytes in {path.name}, and not {len(expected)}")
        place = next(at for at in range(len(seen)) if seen[at] != expected[at])
        raise Violation(f"the host has another byte in {path.name} at {place} of {len(seen)}")


class Program:
    """Operations, to be performed in this order; each method adds one.

    Each is checked in the guest: what it returns, what it reads, the size and the links of what it looks at.
    A file that is open has a name of the program's own. Offsets, lengths and sizes are in bytes.
    """

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._files: dict[str, File] = {}

    @property
    def files(self) -> list[File]:
        """The files that it has opened, each once."""
        return list({id(file): file for file in self._files.values()}.values())

    def __len__(self) -> int:
        return len(self._lines)

    def add(self, *words: object) -> None:
        """An operation of ``fileops.pl`` in its own words, that changes no content."""
        self._lines.append(" ".join(map(str, words)))

    def expect(self, error: int, *words: object) -> None:
        """An operation, as for :meth:`add`, that has to fail with the errno ``error``."""
        self.add("expect", error, *words)

    def given(self, file: File, seed: int, length: int) -> None:
        """The host has made the file, of :func:`content`."""
        file.content[:] = content(seed, length)
        self.add("given", file.name, seed, length)

    def open(self, name: str, file: File, flags: int, path: str, *, mode: int = 0o644) -> None:
        """``open(2)``; the file is called ``name`` from then on.

        :param flags: those of the guest's kernel (x86-64), as in :mod:`os`.
        :param path: from the folder in which the program runs.
        """
        self._files[name] = file
        if flags & 0o1000:
            file.content.clear()
        self.add("open", name, file.name, flags, mode, path)

    def close(self, *names: str) -> None:
        """``close(2)``."""
        for name in names:
            self.add("close", name)

    def pwrite(self, name: str, offset: int, length: int, seed: int) -> None:
        """One ``pwrite(2)``, of :func:`content`."""
        self._files[name].put(offset, content(seed, length))
        self.add("pwrite", name, offset, length, seed)

    def append(self, name: str, length: int, seed: int) -> None:
        """One ``write(2)`` to a file that is open with ``O_APPEND``."""
        file = self._files[name]
        file.put(len(file.content), content(seed, length))
        self.add("append", name, length, seed)

    def pread(self, name: str, offset: int, length: int) -> None:
        """One ``pread(2)``."""
        self.add("pread", name, offset, length)

    def whole(self, name: str, step: int = 1 << 20) -> None:
        """The whole file, by reads of ``step`` bytes each."""
        self.add("whole", name, step)

    def truncate(self, name: str, size: int) -> None:
        """``ftruncate(2)``."""
        self._files[name].truncate(size)
        self.add("truncate", name, size)

    def map_shared(self, name: str, offset: int, length: int, seed: int) -> None:
        """Write through a shared mapping, and ``msync(2)``; inside the file."""
        self._files[name].put(offset, content(seed, length))
        self.add("map_shared", name, offset, length, seed)

    def map_private(self, name: str, offset: int, length: int, seed: int) -> None:
        """Read, then write, through a private mapping: the file stays as it is."""
        self.add("map_private", name, offset, length, seed)

    def processes(self, name: str, count: int, length: int, rounds: int, seed: int) -> None:
        """``count`` processes write and read through the same open file at the same time.

        Each has a part, of ``length`` bytes, of each of ``rounds`` stripes, one stripe after the other.
        """
        self._files[name].put(0, content(seed, count * length * rounds))
        self.add("processes", name, count, length, rounds, seed)

    def pause(self, name: str) -> None:
        """Wait here, with everything open, for :meth:`Running.resume`."""
        self.add("pause", name)

    @property
    def stdin(self) -> bytes:
        """What the performer reads."""
        return _POOL + "".join(f"{line}\n" for line in self._lines).encode()

    def run(self, guest: Commands, folder: str) -> None:
        """Perform it in ``folder`` of the guest.

        :raises Violation: when something went otherwise than it has to: what, and which operation it was.
        :raises GuestError: when the performer did not come to its end.
        """
        self.judge(guest.succeed(_command(guest, folder), stdin=self.stdin, timeout_s=_TIMEOUT_S))

    def start(self, guest: Commands, folder: str) -> Running:
        """Begin to perform it in ``folder`` of the guest, in the background; for one that pauses."""
        return Running(self, guest, folder)

    def judge(self, said: str) -> None:
        """As :meth:`run`, of what the performer has said."""
        *failed, last = said.splitlines() or [""]
        if last != f"done {len(self)}":
            raise GuestError(f"fileops.pl did not come to its end: {last or 'it said nothing'}", details=said)
        if failed:
            more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
            raise Violation(f"operation {failed[0]}{more}", details="\n".join(failed[:_TOLD]))


class Running:
    """A program that is being performed; made by :meth:`Program.start`."""

    def __init__(self, program: Program, guest: Commands, folder: str) -> None:
        self._program, self._guest = program, guest
        number = next(_numbers)
        fresh = f"rm -f {_PLACE}/fileops.*.reached {_PLACE}/fileops.*.go"
        guest.succeed(f"{fresh}; cat > {_PLACE}/fileops{number}", stdin=program.stdin)
        command = f"{_command(guest, folder)} < {_PLACE}/fileops{number}"
        self._job = Job(guest, command, "a program of file operations")

    def wait_paused(self, name: str) -> None:
        """Wait until the performer has come to the pause ``name``, and waits there.

        :raises GuestError: when it does not come there in time.
        """
        reached = f"until [ -e {_PLACE}/fileops.{name}.reached ]"
        self._guest.succeed(f"{reached}; do usleep 20000; done", timeout_s=_TIMEOUT_S)

    def resume(self, name: str) -> None:
        """Let it go on."""
        self._guest.succeed(f"touch {_PLACE}/fileops.{name}.go")

    def signal(self, name: str) -> None:
        """Send the performer a signal, such as ``USR1``, which it handles."""
        self._guest.succeed(f"kill -{name} $(cat {_PLACE}/fileops.pid)")

    def wait_ended(self) -> int:
        """Wait for its end, however it ends; its exit status."""
        return self._job.wait(timeout_s=_TIMEOUT_S).returncode

    def wait_finished(self) -> None:
        """Wait for its end.

        :raises Violation: as :meth:`Program.run` does. :raises GuestError: when it did not come to its end.
        """
        self._program.judge(self._job.wait_succeeded(timeout_s=_TIMEOUT_S))


def _command(guest: Commands, folder: str) -> str:
    """What performs a program in the guest; puts the performer there, once."""
    path = f"{_PLACE}/fileops.pl"
    if guest.run(f"test -e {path}").returncode != 0:
        guest.succeed(f"cat > {path}", stdin=PERFORMER.read_bytes())
    return f"cd {quote(folder)} && perl {path} {len(_POOL)} {_PLACE}"
