"""Operations on the files of a share, checked byte by byte on both sides.

A :class:`Program` is a list of operations that one process in the guest performs (``fileops.pl``), so that
hundreds of reads and writes take no longer than a few commands. The process keeps the expected content of
each file and compares everything that it reads with it. The program keeps the expected content independently,
and compares it with the files on the host.

Content is taken from a *pool* of random bytes, repeated. The size of the pool is a prime number, so that
bytes which are written to a wrong offset (off by a page, a block or a request) differ from those that belong
there.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field
from pathlib import Path

from harness.errors import GuestError, UsageError, Violation
from harness.guest.commands import Commands, quote
from harness.guest.job import Job

#: The Perl program in the guest that performs the operations.
PERFORMER = Path(__file__).with_name("fileops.pl")
_POOL = random.Random(22).randbytes(65521)
#: ``fileops.pl`` repeats the pool 40 times; content may start anywhere in the first one.
MAX_LENGTH = 39 * len(_POOL)
#: The guest's folder for ``fileops.pl`` and its files.
_FOLDER = "/tmp"
#: How many failed operations are listed in an error.
_LISTED = 20
_TIMEOUT_S = 60.0
_numbers = itertools.count(1)


def content(seed: int, length: int) -> bytes:
    """The content of a file that ``fileops.pl`` writes: ``length`` bytes of the repeated pool.

    It begins at an offset that ``seed`` selects.

    :raises UsageError: for more than :data:`MAX_LENGTH` (2.5 MB).
    """
    if length > MAX_LENGTH:
        raise UsageError(f"{length} bytes of content requested; the maximum is {MAX_LENGTH}")
    start = seed % len(_POOL)
    return (_POOL * ((start + length) // len(_POOL) + 1))[start : start + length]


@dataclass
class File:
    """The expected content of a file; several names, open files and links may share one object."""

    name: str
    content: bytearray = field(default_factory=bytearray)

    def put(self, offset: int, new: bytes) -> None:
        """As ``pwrite`` in a program's file: a gap between the end and ``offset`` is filled with zeros."""
        self.content.extend(bytes(max(0, offset - len(self.content))))
        self.content[offset : offset + len(new)] = new

    def truncate(self, size: int) -> None:
        """As ``ftruncate`` in a file of ``fileops.pl``."""
        del self.content[size:]
        self.content.extend(bytes(size - len(self.content)))

    def expect_on_host(self, path: Path) -> None:
        """:raises Violation: when the host's file at ``path`` has another content than the program's."""
        seen, expected = path.read_bytes(), bytes(self.content)
        if seen == expected:
            return
        if len(seen) != len(expected):
            raise Violation(f"the host has {len(seen)} bytes in {path.name}, expected {len(expected)}")
        offset = next(at for at in range(len(seen)) if seen[at] != expected[at])
        raise Violation(f"the host has a wrong byte in {path.name} at offset {offset} of {len(seen)}")


class Program:
    """A list of operations, performed in this order; each method adds one.

    The guest checks each operation: its return value, the data that it reads, sizes and link counts. Open
    files are identified by names that the program chooses. Offsets, lengths and sizes are in bytes.
    """

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._files: dict[str, File] = {}

    @property
    def files(self) -> list[File]:
        """The files that the ``fileops.pl`` program has opened, each once."""
        return list({id(file): file for file in self._files.values()}.values())

    def __len__(self) -> int:
        return len(self._lines)

    def add(self, *words: object) -> None:
        """Add an operation in the syntax of ``fileops.pl``; it must not change the content of a file."""
        self._lines.append(" ".join(map(str, words)))

    def expect(self, error: int, *words: object) -> None:
        """Add an operation to the ``fileops.pl`` program that must fail with the errno ``error``."""
        self.add("expect", error, *words)

    def given(self, file: File, seed: int, length: int) -> None:
        """Declare that the host has created the program's file, with :func:`content`."""
        file.content[:] = content(seed, length)
        self.add("given", file.name, seed, length)

    def open(self, name: str, file: File, flags: int, path: str, *, mode: int = 0o644) -> None:
        """Add ``open(2)`` to the program; further operations refer to the open file as ``name``.

        :param flags: flags of the guest's kernel (x86-64), as in :mod:`os`.
        :param path: relative to the folder in which the program runs.
        """
        self._files[name] = file
        if flags & 0o1000:
            file.content.clear()
        self.add("open", name, file.name, flags, mode, path)

    def close(self, *names: str) -> None:
        """Add ``close(2)`` to the ``fileops.pl`` program."""
        for name in names:
            self.add("close", name)

    def pwrite(self, name: str, offset: int, length: int, seed: int) -> None:
        """Add one ``pwrite(2)`` of :func:`content` to the program."""
        self._files[name].put(offset, content(seed, length))
        self.add("pwrite", name, offset, length, seed)

    def append(self, name: str, length: int, seed: int) -> None:
        """Add one ``write(2)`` to a file that the program has open with ``O_APPEND``."""
        file = self._files[name]
        file.put(len(file.content), content(seed, length))
        self.add("append", name, length, seed)

    def pread(self, name: str, offset: int, length: int) -> None:
        """Add one ``pread(2)`` to the ``fileops.pl`` program."""
        self.add("pread", name, offset, length)

    def whole(self, name: str, step: int = 1 << 20) -> None:
        """Let the ``fileops.pl`` program read the whole file, ``step`` bytes at a time."""
        self.add("whole", name, step)

    def truncate(self, name: str, size: int) -> None:
        """Add ``ftruncate(2)`` to the ``fileops.pl`` program."""
        self._files[name].truncate(size)
        self.add("truncate", name, size)

    def map_shared(self, name: str, offset: int, length: int, seed: int) -> None:
        """Let the program write through a shared mapping within the file, and ``msync(2)``."""
        self._files[name].put(offset, content(seed, length))
        self.add("map_shared", name, offset, length, seed)

    def map_private(self, name: str, offset: int, length: int, seed: int) -> None:
        """Let the program read, then write, through a private mapping; the file does not change."""
        self.add("map_private", name, offset, length, seed)

    def processes(self, name: str, count: int, length: int, rounds: int, seed: int) -> None:
        """``count`` processes write and read through the same open file at the same time.

        The file has ``rounds`` stripes, processed in order. Each process has ``length`` bytes of each stripe.
        """
        self._files[name].put(0, content(seed, count * length * rounds))
        self.add("processes", name, count, length, rounds, seed)

    def pause(self, name: str) -> None:
        """Pause the ``fileops.pl`` program, with all files open, until :meth:`Running.resume`."""
        self.add("pause", name)

    @property
    def stdin(self) -> bytes:
        """The input of ``fileops.pl``."""
        return _POOL + "".join(f"{line}\n" for line in self._lines).encode()

    def run(self, guest: Commands, folder: str) -> None:
        """Perform the ``fileops.pl`` program in ``folder`` of the guest.

        :raises Violation: when an operation had a wrong result; the message names the first one.
        :raises GuestError: when ``fileops.pl`` did not complete.
        """
        self.judge(guest.succeed(_command(guest, folder), stdin=self.stdin, timeout_s=_TIMEOUT_S))

    def start(self, guest: Commands, folder: str) -> Running:
        """Start a ``fileops.pl`` program with pauses in ``folder`` of the guest, in the background."""
        return Running(self, guest, folder)

    def judge(self, output: str) -> None:
        """Check the output of ``fileops.pl``; raises as :meth:`run` does."""
        *failed, last = output.splitlines() or [""]
        if last != f"done {len(self)}":
            raise GuestError(f"fileops.pl did not complete: {last or 'it printed nothing'}", details=output)
        if failed:
            more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
            raise Violation(f"operation {failed[0]}{more}", details="\n".join(failed[:_LISTED]))


class Running:
    """A program that is being performed in the background; made by :meth:`Program.start`."""

    def __init__(self, program: Program, guest: Commands, folder: str) -> None:
        self._program, self._guest = program, guest
        number = next(_numbers)
        fresh = f"rm -f {_FOLDER}/fileops.*.reached {_FOLDER}/fileops.*.go"
        guest.succeed(f"{fresh}; cat > {_FOLDER}/fileops{number}", stdin=program.stdin)
        command = f"{_command(guest, folder)} < {_FOLDER}/fileops{number}"
        self._job = Job(guest, command, "a program of file operations")

    def wait_paused(self, name: str) -> None:
        """Wait until the ``fileops.pl`` program has reached the pause ``name``.

        :raises GuestError: when it does not reach it in time.
        """
        reached = f"until [ -e {_FOLDER}/fileops.{name}.reached ]"
        self._guest.succeed(f"{reached}; do usleep 20000; done", timeout_s=_TIMEOUT_S)

    def resume(self, name: str) -> None:
        """Continue the ``fileops.pl`` program after the pause ``name``."""
        self._guest.succeed(f"touch {_FOLDER}/fileops.{name}.go")

    def signal(self, name: str) -> None:
        """Send the process of ``fileops.pl`` a signal that it handles, such as ``USR1``."""
        self._guest.succeed(f"kill -{name} $(cat {_FOLDER}/fileops.pid)")

    def wait_ended(self) -> int:
        """Wait for the end of the process of ``fileops.pl``; returns its exit status."""
        return self._job.wait(timeout_s=_TIMEOUT_S).returncode

    def wait_finished(self) -> None:
        """Wait for the end of the ``fileops.pl`` program; raises as :meth:`Program.run` does."""
        self._program.judge(self._job.wait_succeeded(timeout_s=_TIMEOUT_S))


def _command(guest: Commands, folder: str) -> str:
    """The command that performs a ``fileops.pl`` program in the guest; installs it there first if necessary.

    :raises Unsupported: see :meth:`.Commands.require_system_calls`.
    """
    guest.require_system_calls()
    path = f"{_FOLDER}/fileops.pl"
    if guest.run(f"test -e {path}").returncode != 0:
        guest.succeed(f"cat > {path}", stdin=PERFORMER.read_bytes())
    return f"cd {quote(folder)} && perl {path} {len(_POOL)} {_FOLDER}"
