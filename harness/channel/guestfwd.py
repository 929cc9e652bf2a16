"""A socket for an SSH session that outlives its connection: frozen with its guest, or moved with it.

The guest's end is a connection that the guest made itself, through ``guestfwd`` of QEMU's user network. QEMU
migrates such a connection (libslirp: ``src/state.c``, ``slirp_state_save``); one that was forwarded into
the guest it does not. Ours is the socket of a QEMU's character device. So when a guest goes on in another
QEMU, the session goes on as soon as this end is taken over to the other QEMU's socket; and when a guest is
restored from a template, its session is, too: our end runs through the handshake once more, with the same
secrets and with the server's answers of that time, and is then in the state that the guest remembers.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import sys
import termios
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.deadline import wait_until
from harness.errors import ChannelLost, WaitTimeout

_QUIET_S = 1.0


@dataclass(frozen=True)
class SavedSession:
    """What it takes to be a session's client once more.

    :param cookie: the 16 random bytes of our SSH_MSG_KEXINIT. :param key: our ephemeral X25519 private key.
    :param received: what the server said, in order, each with how many bytes we had sent before.
    """

    cookie: bytes
    key: bytes
    received: tuple[tuple[int, bytes], ...] = ()

    def write(self, path: Path) -> None:
        """Keep it in a file."""
        received = [[sent, data.hex()] for sent, data in self.received]
        content = {"cookie": self.cookie.hex(), "key": self.key.hex(), "received": received}
        path.write_text(json.dumps(content))

    @classmethod
    def read(cls, path: Path) -> SavedSession:
        """Read it back.

        :raises OSError: when there is none. :raises ValueError: :raises KeyError: when it is something else.
        """
        content = json.loads(path.read_text())
        received = tuple((int(sent), bytes.fromhex(data)) for sent, data in content["received"])
        return cls(bytes.fromhex(content["cookie"]), bytes.fromhex(content["key"]), received)


class GuestfwdSocket:
    """What paramiko takes for a socket.

    :param path: the unix socket of QEMU's character device; ``None`` when it is still to come (:meth:`move`),
        which only a session that is gone on with can wait for.
    :param frozen: the session to go on with; without one, a new one can begin, and be frozen.
    :raises ChannelLost: when there is no such socket.
    """

    def __init__(self, path: Path | None, frozen: SavedSession | None = None) -> None:
        assert path is not None or frozen is not None
        self._connection = None if path is None else _connect(path)
        self._retired: socket.socket | None = None
        self.secrets = frozen or SavedSession(os.urandom(16), os.urandom(32))
        self._script = deque(self.secrets.received)
        #: We have said, and been answered, all that the script has.
        self._went_on = frozen is None
        self._received: list[tuple[int, bytes]] = []
        self._sent = 0
        self._timeout_s: float | None = None
        self._changed = threading.Condition()
        self._closed = False
        #: An error of this class's own, not of its connection.
        self.own_error: Exception | None = None

    @property
    def _replaying(self) -> bool:
        """Whether the server's answers come from the script, and what we send goes nowhere."""
        return self._connection is None or not self._went_on

    def settimeout(self, timeout_s: float | None) -> None:
        """As a socket's."""
        with self._changed:
            self._timeout_s = timeout_s
            if self._connection is not None:
                self._connection.settimeout(timeout_s)

    def send(self, data: bytes) -> int:
        """As a socket's."""
        with self._noticed():
            return self._send(data)

    def recv(self, size: int) -> bytes:
        """As a socket's."""
        with self._noticed():
            return self._recv(size)

    @contextlib.contextmanager
    def _noticed(self) -> Iterator[None]:
        """Keep an error that no socket raises: paramiko takes any for a broken connection, and drops it
        (``packet.py``, ``Packetizer.write_all``)."""
        try:
            yield
        except OSError:
            raise
        except Exception as exc:
            self.own_error = exc
            raise

    def _send(self, data: bytes) -> int:
        with self._changed:
            # Counted first: an answer may be here before the call returns.
            self._sent += len(data)
            self._changed.notify_all()
            if self._connection is None or not self._went_on:
                return len(data)
            connection = self._connection
        count = connection.send(data)
        self._sent -= len(data) - count
        return count

    def _recv(self, size: int) -> bytes:
        with self._changed:
            if self._replaying:
                self._changed.wait_for(lambda: self._closed or self._next_is_due(), self._timeout_s)
                if self._closed:
                    return b""
                if self._replaying:
                    return self._replay(size)
        return self._receive(size)

    def _next_is_due(self) -> bool:
        return not self._replaying or (bool(self._script) and self._script[0][0] <= self._sent)

    def _replay(self, size: int) -> bytes:
        if not self._next_is_due():
            raise TimeoutError
        sent, data = self._script.popleft()
        if len(data) > size:
            self._script.appendleft((sent, data[size:]))
        return data[:size]

    def _receive(self, size: int) -> bytes:
        while True:
            connection = self._connection
            assert connection is not None
            try:
                data = connection.recv(size)
            except TimeoutError:
                raise
            except OSError:
                if connection is self._connection:
                    raise
                continue
            if data or connection is self._connection:
                if not self.secrets.received:  # A resumed session is not frozen again.
                    self._received.append((self._sent, data))
                return data

    def go_on(self) -> None:
        """The script is through: from now on the guest itself answers, once it can be reached.

        :raises ChannelLost: when it is not, or we have not said what we said then.
        """
        with self._changed:
            if self._script:
                raise ChannelLost(f"{len(self._script)} of the server's answers were not asked for")
            self._went_on = True
            self._changed.notify_all()

    def freeze(self) -> SavedSession:
        """The session as it is now; nothing may be under way."""
        self._wait_quiet()
        return SavedSession(self.secrets.cookie, self.secrets.key, tuple(self._received))

    def move(self, path: Path) -> None:
        """Go on over another QEMU's socket. :raises ChannelLost: when there is none."""
        self._wait_quiet()
        connection = _connect(path)
        with self._changed:
            connection.settimeout(self._timeout_s)
            before, self._connection = self._connection, connection
            self._changed.notify_all()
        if before is None:
            return
        # Not closed yet: the reading thread may still be about to wait for it.
        if self._retired is not None:
            self._retired.close()
        self._retired = before
        with contextlib.suppress(OSError):
            before.shutdown(socket.SHUT_RDWR)

    def _wait_quiet(self) -> None:
        """Until everything that has come was read."""
        connection = self._connection
        if connection is not None:
            with contextlib.suppress(WaitTimeout, OSError):
                wait_until(lambda: unread(connection) == 0, what="the line to be quiet", timeout_s=_QUIET_S)

    def close(self) -> None:
        """As a socket's."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for connection in (self._connection, self._retired):
            if connection is not None:
                connection.close()


def _connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(str(path))
    except OSError as exc:
        connection.close()
        raise ChannelLost(f"cannot open the line {path}: {exc.strerror}") from exc
    return connection


def unread(connection: socket.socket) -> int:
    """``FIONREAD``: how many bytes wait to be read (``man 7 unix``)."""
    return int.from_bytes(fcntl.ioctl(connection, termios.FIONREAD, bytes(4)), sys.byteorder)
