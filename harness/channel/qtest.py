"""QEMU's qtest protocol: port and memory accesses from outside, as a guest's CPU makes them.

A command is one line, and so is its answer (QEMU: ``softmmu/qtest.c``, later ``system/qtest.c``). The
protocol works with any accelerator. The machine is never started (``-S``), so that nothing else accesses its
devices.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.deadline import Watch, wait_until
from harness.errors import ChannelLost, HarnessError, WaitTimeout

#: Seconds in which QEMU must open the socket, and answer a command.
TIMEOUT_S = 60.0


class Qtest:
    """A client of one QEMU's qtest socket.

    :param watch: raises the root cause when no answer can come any more.
    :raises ChannelLost: when the socket cannot be opened within ``timeout_s`` seconds.
    """

    name = "qtest"

    def __init__(self, path: Path, *, timeout_s: float = TIMEOUT_S, watch: Watch | None = None) -> None:
        self._path, self._timeout_s, self._watch = path, timeout_s, watch
        #: Where every command is noted when it is sent, if that is wanted.
        self.transcript: list[str] | None = None
        self._buffer = b""
        #: The command that was not answered. A late answer to it would be taken for that of the next one.
        self._broke_in: str | None = None
        #: The commands that were not sent yet; ``None`` when each is sent at once.
        self._queued: list[str] | None = None
        try:
            self._socket = wait_until(
                self._connect, what=f"the qtest socket {path}", timeout_s=timeout_s, watch=watch
            )
        except WaitTimeout as exc:
            raise ChannelLost(exc.message) from None

    def _connect(self) -> socket.socket | None:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            made.connect(str(self._path))
        except OSError:
            made.close()
            return None
        made.settimeout(self._timeout_s)
        return made

    def command(self, line: str) -> list[str]:
        """Send one qtest command and return the words after ``OK`` in its answer.

        :raises HarnessError: when QEMU answers anything but ``OK``. :raises ChannelLost: when it does not
            answer.
        """
        return self._exchange([line])[0]

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Send the qtest writes of the block in one piece when it ends, and then read their answers.

        QEMU processes them in order. This costs one round trip instead of one for each. Reads inside the
        block are an error.

        :raises HarnessError: (at the end of the block) when QEMU refuses one. :raises ChannelLost: when it
            does not answer.
        """
        assert self._queued is None, "together() inside together()"
        queued: list[str] = []
        self._queued = queued
        try:
            yield
        finally:
            self._queued = None
        self._exchange(queued)

    def _do(self, line: str) -> None:
        if self._queued is None:
            self.command(line)
        else:
            self._queued.append(line)

    def _exchange(self, lines: Sequence[str]) -> list[list[str]]:
        """Send qtest commands in one piece, and return the words of each answer."""
        assert self._queued is None, "a read inside together()"
        if self._broke_in is not None:
            raise ChannelLost(f"the qtest connection broke earlier, during {self._broke_in!r}")
        answers = []
        if self.transcript is not None:
            self.transcript += lines
        line = next(iter(lines), "")
        try:
            self._socket.sendall("".join(f"{line}\n" for line in lines).encode())
            for line in lines:  # noqa: B007 (named by the error)
                answer = self._line()
                while answer.startswith("IRQ"):
                    answer = self._line()
                answers.append(answer)
        except OSError as exc:
            self._broke_in = line[:80]
            raise ChannelLost(f"the qtest connection broke during {self._broke_in!r}: {exc}") from exc
        return [_words(line, answer) for line, answer in zip(lines, answers, strict=True)]

    def _line(self) -> str:
        while b"\n" not in self._buffer:
            data = self._socket.recv(1 << 20)
            if not data:
                raise ConnectionResetError("QEMU closed the connection")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode("ascii", "replace").strip()

    def outb(self, port: int, value: int) -> None:
        """Write 8 bits to an I/O port."""
        self._do(f"outb {port:#x} {value:#x}")

    def outw(self, port: int, value: int) -> None:
        """Write 16 bits to an I/O port."""
        self._do(f"outw {port:#x} {value:#x}")

    def outl(self, port: int, value: int) -> None:
        """Write 32 bits to an I/O port."""
        self._do(f"outl {port:#x} {value:#x}")

    def inb(self, port: int) -> int:
        """Read 8 bits from an I/O port."""
        return int(self.command(f"inb {port:#x}")[0], 16)

    def inw(self, port: int) -> int:
        """Read 16 bits from an I/O port."""
        return int(self.command(f"inw {port:#x}")[0], 16)

    def inl(self, port: int) -> int:
        """Read 32 bits from an I/O port."""
        return int(self.command(f"inl {port:#x}")[0], 16)

    def write(self, address: int, data: bytes) -> None:
        """Write guest memory over qtest."""
        self._do(f"write {address:#x} {len(data):#x} 0x{data.hex()}")

    def read(self, address: int, size: int) -> bytes:
        """Read guest memory over qtest."""
        return self.read_each((address, size))[0]

    def read_each(self, *ranges: tuple[int, int]) -> list[bytes]:
        """Read several ranges of guest memory, each an address and a size, in order and in one round trip."""
        answers = self._exchange([f"read {address:#x} {size:#x}" for address, size in ranges])
        return [bytes.fromhex(word.removeprefix("0x")) for word, *_ in answers]

    def close(self) -> None:
        """Close the qtest connection."""
        with contextlib.suppress(OSError):
            self._socket.close()


def _words(line: str, answer: str) -> list[str]:
    """The words after ``OK`` in an answer of qtest.

    :raises HarnessError: when the answer does not begin with ``OK``.
    """
    verdict, *words = answer.split()
    if verdict != "OK":
        raise HarnessError(f"qtest: {line[:80]!r} was answered with {answer!r}")
    return words
