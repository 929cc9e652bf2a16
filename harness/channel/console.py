"""The serial ports of a guest: a shell on the second one, through pexpect, and the kernel's console log."""

from __future__ import annotations

import base64
import binascii
import codecs
import contextlib
import re
import socket
import threading
import uuid
from pathlib import Path

import pexpect
from pexpect import socket_pexpect

from harness.channel import Completed
from harness.deadline import Deadline, Watch, wait_until
from harness.errors import ChannelLost, CommandTimeout, GuestPanicked, HarnessError, WaitTimeout

#: Bytes that are sent at once. A tty in canonical mode takes at most 4095 bytes a line (kernel:
#: ``drivers/tty/n_tty.c``, ``N_TTY_BUF_SIZE``), so longer input is sent in pieces.
_PIECE = 1024
#: Seconds in which the shell must answer the first probe. It may not have read that one; a slow guest gets
#: twice as long each time.
_PROBE_S = 2.0
_TURN_S = 0.25


class Console:
    """A channel over the guest's shell on ttyS1.

    Commands and their outputs are sent as base64, between markers that are unique to each command. So the
    tty's echo, prompts and the output of earlier commands are never taken for an answer.

    :param socket_path: the unix socket of QEMU's character device.
    :param watch: raises the root cause when no answer can come any more.
    :raises ChannelLost: when the socket cannot be opened.
    """

    name = "console"

    def __init__(self, socket_path: Path, *, watch: Watch | None = None) -> None:
        self._watch = watch
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.connect(str(socket_path))
        except OSError as exc:
            self._socket.close()
            raise ChannelLost(f"cannot open the console {socket_path}: {exc.strerror}") from exc
        self._shell = socket_pexpect.SocketSpawn(self._socket, timeout=10, maxread=65536)

    def wait_ready(self, *, timeout_s: float) -> None:
        """Wait until the shell on the serial console answers a command.

        :raises ChannelLost: when it does not within ``timeout_s`` seconds.
        """

        probe_s = _PROBE_S

        def answers() -> bool:
            nonlocal probe_s
            try:
                return self.run("true", timeout_s=probe_s).returncode == 0
            except CommandTimeout:
                probe_s *= 2
                return False

        try:
            wait_until(answers, what="the console's shell", timeout_s=timeout_s)
        except WaitTimeout as exc:
            raise ChannelLost(f"the guest's console did not answer within {exc.elapsed_s:.0f} s") from None

    def run(self, command: str, *, timeout_s: float, stdin: bytes = b"") -> Completed:
        """Run a command in the shell on the serial console. A timeout interrupts the command (Ctrl-C)."""
        mark = uuid.uuid4().hex
        deadline = Deadline.after(timeout_s)
        try:
            self._send_file(f"/tmp/.{mark}.c", command.encode(), mark, deadline)
            self._send_file(f"/tmp/.{mark}.i", stdin, mark, deadline)
            self._send(
                f"m={mark}; f=/tmp/.$m; sh $f.c <$f.i >$f.o 2>$f.e; r=$?; "
                'echo; echo "<$m:$r"; base64 $f.o; echo "=$m"; base64 $f.e; echo ">$m"; rm -f $f.?'
            )
            self._expect(rf"<{mark}:\d+\r?\n", deadline)
            status = int(self._matched().rpartition(b":")[2])
            out = self._until(f"={mark}", deadline)
            err = self._until(f">{mark}", deadline)
        except pexpect.TIMEOUT:
            seen = self._shell.before
            self._interrupt()
            printed = seen.decode("utf-8", "replace") if isinstance(seen, bytes) else ""
            raise CommandTimeout(self.name, command, timeout_s, printed, "") from None
        except (pexpect.EOF, OSError) as exc:
            raise ChannelLost(f"the console broke during {command!r}") from exc
        except HarnessError:
            # The watch raised; the command still occupies the shell.
            self._interrupt()
            raise
        return Completed(command, status, out, err)

    def _send_file(self, path: str, content: bytes, mark: str, deadline: Deadline) -> None:
        encoded = base64.b64encode(content).decode()
        pieces = [encoded[i : i + _PIECE] for i in range(0, len(encoded), _PIECE)]
        self._send(f": >{path}.b")
        for number, piece in enumerate(pieces):
            # Wait for each piece, so that the guest's tty buffer of 4 KiB does not overflow.
            self._send(f'echo {piece} >>{path}.b; echo "+"{mark}:{number}:')
            self._expect(rf"\+{mark}:{number}:", deadline)
        self._send(f"base64 -d <{path}.b >{path}; rm {path}.b")

    def _send(self, line: str) -> None:
        self._shell.send(line.encode() + b"\n")

    def _expect(self, pattern: str, deadline: Deadline) -> None:
        """As pexpect's ``expect`` on the serial console, in short turns: the watch is called on each turn.

        :raises pexpect.TIMEOUT: when the deadline has passed.
        """
        for left_s in deadline.turns():
            turn_s = min(_TURN_S, max(0.01, left_s))
            if self._shell.expect([pattern.encode(), pexpect.TIMEOUT], timeout=turn_s) == 0:
                return
            if self._watch is not None:
                self._watch()
        raise pexpect.TIMEOUT(pattern)

    def _until(self, marker: str, deadline: Deadline) -> str:
        self._expect(re.escape(marker), deadline)
        before = self._shell.before
        assert isinstance(before, bytes)
        try:
            return base64.b64decode(b"".join(before.split()), validate=True).decode("utf-8", "replace")
        except binascii.Error:
            received = before.decode("utf-8", "replace").strip()
            raise ChannelLost(f"expected base64 from the guest's console, got {received[:120]!r}") from None

    def _matched(self) -> bytes:
        after = self._shell.after
        assert isinstance(after, bytes)
        return after

    def _interrupt(self) -> None:
        with contextlib.suppress(OSError):
            self._shell.send(b"\x03\n")

    def close(self) -> None:
        """Close the socket of the serial console; see :meth:`harness.channel.Channel.close`."""
        with contextlib.suppress(OSError):
            self._socket.close()


class KernelLog:
    """The output of the guest kernel's console, read from the file that QEMU writes.

    Reading is incremental; a file that does not exist yet counts as empty. Thread-safe: waits in background
    threads watch for panics, too.
    """

    #: The line that begins the report of a panic (kernel: ``kernel/panic.c``), not the "end" line after it.
    #: Only complete lines match: otherwise the rest of a line that :meth:`forgive_panic` skipped would match
    #: again.
    _PANIC = re.compile(r"(?<!end )(Kernel panic - not syncing.*)\n")

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        #: Keeps a character of which only the first bytes are written yet.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text = ""
        self._panic: str | None = None
        self._searched = 0
        self._lock = threading.RLock()

    def text(self) -> str:
        """The whole log of the kernel's console so far."""
        with self._lock, contextlib.suppress(FileNotFoundError):
            if self.path.stat().st_size > self._offset:  # Usually there is nothing new.
                self._read_on()
        return self._text

    def _read_on(self) -> None:
        with self.path.open("rb") as file:
            file.seek(self._offset)
            new = file.read()
        self._offset += len(new)
        self._text += self._decoder.decode(new).replace("\r", "")

    def contains(self, words: str) -> bool:
        """Whether the log of the kernel's console contains ``words``."""
        return words in self.text()

    def tail(self, lines: int) -> list[str]:
        """The last ``lines`` lines of the kernel's console log that are not empty."""
        return [line for line in self.text().splitlines() if line.strip()][-lines:]

    def panic(self) -> str | None:
        """The first line of a panic in the kernel's console log, or ``None`` if the kernel did not panic."""
        with self._lock:
            text = self.text()
            if self._panic is None and len(text) > self._searched:
                # From the start of the last line of the previous search, which may have been incomplete.
                found = self._PANIC.search(text, text.rfind("\n", 0, self._searched) + 1)
                self._panic = found[1] if found else None
                self._searched = len(text)
            return self._panic

    def forgive_panic(self) -> None:
        """Ignore panics in the kernel's console log so far: :meth:`panic` finds only later ones."""
        with self._lock:
            self._panic, self._searched = None, len(self.text())

    def watch(self, machine: str = "") -> None:
        """:raises GuestPanicked: when the log of the kernel's console has a panic."""
        panic = self.panic()
        if panic is not None:
            where = f"the guest of {machine!r}" if machine else "the guest"
            raise GuestPanicked(f"{where}: {panic}", details="\n".join(self.tail(30)))
