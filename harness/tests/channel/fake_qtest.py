"""A fake of QEMU's qtest socket: memory, ports, and a virtio-9p device whose answers the test chooses."""

from __future__ import annotations

import contextlib
import mmap
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path

#: What the device answers to (type, tag, body): (type, tag, body), or ``None`` for no answer at all. With
#: type 0 it gives the request back without an answer.
Answer = Callable[[int, int, bytes], tuple[int, int, bytes] | None]

_PFN, _SIZE, _NOTIFY = 8, 12, 16


def echo(kind: int, tag: int, body: bytes) -> tuple[int, int, bytes]:
    """An answer with the right type and tag, and the body of the request."""
    return kind + 1, tag, body


class FakeQtest:
    """Serves one client; ``lines`` are the commands it got.

    :param queue_size: the size that the device reports for its virtqueue; 0 means no device.
    """

    def __init__(self, path: Path, *, answer: Answer = echo, queue_size: int = 128) -> None:
        self.answer, self.queue_size = answer, queue_size
        self.lines: list[str] = []
        #: What the device counts wrongly when it says how many bytes of an answer it wrote.
        self.written_off = 0
        #: Sent before the next answer, or instead of it.
        self.before, self.instead = b"", b""
        self._memory = mmap.mmap(-1, 1 << 28)  # As much as a machine has; pages come as they are used.
        self._ring = 0
        self._taken = self._served = 0
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            client, _ = self._listener.accept()
            with client, client.makefile("rb") as lines:
                for line in lines:
                    self.lines.append(line.decode().strip())
                    words = self._do(self.lines[-1].split())
                    if self.instead == b"hang up":
                        return
                    client.sendall(self.before + (self.instead or f"OK {words}".strip().encode() + b"\n"))

    def _do(self, words: list[str]) -> str:
        command, numbers = words[0], [int(word, 16) for word in words[1:]]
        if command == "write":
            data = bytes.fromhex(words[3].removeprefix("0x"))
            self._memory[numbers[0] : numbers[0] + numbers[1]] = data
        elif command == "read":
            return "0x" + self._memory[numbers[0] : numbers[0] + numbers[1]].hex()
        elif command.startswith("in"):
            return hex(self.queue_size)
        elif command == "outl" and numbers[0] & 0x3F == _PFN and numbers[0] >= 0xC000:
            self._ring, self._taken, self._served = numbers[1] << 12, 0, 0
        elif command == "outw" and numbers[0] & 0x3F == _NOTIFY:
            self._notified()
        return ""

    def _notified(self) -> None:
        available = self._ring + 16 * self.queue_size
        (head,) = struct.unpack_from("<H", self._memory, available + 4 + 2 * (self._taken % self.queue_size))
        self._taken += 1
        (out,) = struct.unpack_from("<Q", self._memory, self._ring + 16 * head)
        (into,) = struct.unpack_from("<Q", self._memory, self._ring + 16 * (head + 1))
        size, kind, tag = struct.unpack_from("<IBH", self._memory, out)
        answer = self.answer(kind, tag, bytes(self._memory[out + 7 : out + size]))
        if answer is not None:
            kind, tag, body = answer
            message = struct.pack("<IBH", 7 + len(body), kind, tag) + body if kind else b""
            self._memory[into : into + len(message)] = message
            self._use(head, len(message) + self.written_off)

    def _use(self, head: int, written: int) -> None:
        used = self._ring + (18 * self.queue_size + 6 + 4095 & ~4095)
        entry = used + 4 + 8 * (self._served % self.queue_size)
        struct.pack_into("<II", self._memory, entry, head, written)
        self._served += 1
        struct.pack_into("<H", self._memory, used + 2, self._served & 0xFFFF)

    def serve_again(self) -> None:
        """Report the request at descriptor 0 as answered again."""
        self._use(0, 7)

    def written_at(self, address: int) -> bytes:
        """What the client wrote last at ``address``."""
        lines = [line.split() for line in self.lines if line.startswith(f"write {address:#x} ")]
        return bytes.fromhex(lines[-1][3].removeprefix("0x"))
