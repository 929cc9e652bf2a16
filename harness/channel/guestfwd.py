"""A guestfwd socket: it carries an SSH session that survives the migration and the restoring of its guest.

The guest opens the connection itself, through ``guestfwd`` of QEMU's user network. QEMU migrates such a
connection (libslirp: ``src/state.c``, ``slirp_state_save``), but not one that is forwarded into the guest.
The host's end is the unix socket of QEMU's character device.

When a guest continues in another QEMU, the session continues after :meth:`GuestfwdSocket.move` to the other
QEMU's socket. When a guest is restored from a template, its session is restored as well: the recorded
handshake is replayed. The client sends the same bytes as then, with the same secrets, and gets the recorded
answers of the server, so that it ends in the state that the guest's server is in.
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

_DRAIN_S = 1.0


@dataclass(frozen=True)
class SavedSession:
    """The data with which a client can resume an SSH session.

    :param cookie: the 16 random bytes of the client's SSH_MSG_KEXINIT.
    :param key: the client's ephemeral X25519 private key.
    :param received: the data that the server sent, in order, each with the number of bytes that the client
        had sent before.
    """

    cookie: bytes
    key: bytes
    received: tuple[tuple[int, bytes], ...] = ()

    def write(self, path: Path) -> None:
        """Write the session over a guestfwd socket to a file."""
        received = [[sent, data.hex()] for sent, data in self.received]
        content = {"cookie": self.cookie.hex(), "key": self.key.hex(), "received": received}
        path.write_text(json.dumps(content))

    @classmethod
    def read(cls, path: Path) -> SavedSession:
        """Read the session over a guestfwd socket from a file.

        :raises OSError: when the file cannot be read.
        :raises ValueError: when it is not a saved session. :raises KeyError: likewise.
        """
        content = json.loads(path.read_text())
        received = tuple((int(sent), bytes.fromhex(data)) for sent, data in content["received"])
        return cls(bytes.fromhex(content["cookie"]), bytes.fromhex(content["key"]), received)


class GuestfwdSocket:
    """The socket of an SSH session over guestfwd, with the methods that paramiko uses of a socket.

    :param path: the unix socket of QEMU's character device. ``None`` if QEMU is not ready yet: only for a
        saved session, and :meth:`move` sets it later.
    :param saved: the session to resume; ``None`` begins a new one, which can be saved.
    :raises ChannelLost: when the socket cannot be opened.
    """

    def __init__(self, path: Path | None, saved: SavedSession | None = None) -> None:
        assert path is not None or saved is not None
        self._connection = None if path is None else _connect(path)
        self._previous: socket.socket | None = None
        self.session = saved or SavedSession(os.urandom(16), os.urandom(32))
        #: The recorded answers that are still to be replayed.
        self._recorded = deque(self.session.received)
        #: Whether the replay of the handshake is complete.
        self._replayed = saved is None
        self._received: list[tuple[int, bytes]] = []
        self._sent = 0
        self._timeout_s: float | None = None
        self._changed = threading.Condition()
        self._closed = False
        #: An error in this class itself, as opposed to one of its connection.
        self.own_error: Exception | None = None

    @property
    def _replaying(self) -> bool:
        """Whether the guestfwd socket's answers come from the record, and sent data is dropped."""
        return self._connection is None or not self._replayed

    def settimeout(self, timeout_s: float | None) -> None:
        """As ``socket.settimeout``, for paramiko on a guestfwd socket."""
        with self._changed:
            self._timeout_s = timeout_s
            if self._connection is not None:
                self._connection.settimeout(timeout_s)

    def send(self, data: bytes) -> int:
        """As ``socket.send``, for paramiko on a guestfwd socket."""
        with self._keep_own_error():
            return self._send(data)

    def recv(self, size: int) -> bytes:
        """As ``socket.recv``, for paramiko on a guestfwd socket."""
        with self._keep_own_error():
            return self._recv(size)

    @contextlib.contextmanager
    def _keep_own_error(self) -> Iterator[None]:
        """Record an error of the guestfwd socket other than OSError.

        paramiko drops it, and reports a broken connection instead (``packet.py``, ``Packetizer.write_all``).
        """
        try:
            yield
        except OSError:
            raise
        except Exception as exc:
            self.own_error = exc
            raise

    def _send(self, data: bytes) -> int:
        with self._changed:
            # Counted before the call: the answer may arrive before it returns.
            self._sent += len(data)
            self._changed.notify_all()
            if self._connection is None or not self._replayed:
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
        return not self._replaying or (bool(self._recorded) and self._recorded[0][0] <= self._sent)

    def _replay(self, size: int) -> bytes:
        if not self._next_is_due():
            raise TimeoutError
        sent, data = self._recorded.popleft()
        if len(data) > size:
            self._recorded.appendleft((sent, data[size:]))
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
                if not self.session.received:  # A resumed session is not saved again.
                    self._received.append((self._sent, data))
                return data

    def finish_replay(self) -> None:
        """End the replay on the guestfwd socket.

        From now on the guest itself answers, as soon as there is a connection to it.

        :raises ChannelLost: when recorded answers are left: the client did not send what it sent then.
        """
        with self._changed:
            if self._recorded:
                raise ChannelLost(
                    f"the replayed SSH handshake did not read {len(self._recorded)} of the recorded answers"
                )
            self._replayed = True
            self._changed.notify_all()

    def save_session(self) -> SavedSession:
        """Return the session of the guestfwd socket as it is now. No command may be running."""
        self._wait_drained()
        return SavedSession(self.session.cookie, self.session.key, tuple(self._received))

    def move(self, path: Path) -> None:
        """Continue the session over another QEMU's guestfwd socket.

        :raises ChannelLost: when the socket cannot be opened, or this one was closed, or has data that nobody
            reads.
        """
        self._wait_drained()
        connection = _connect(path)
        with self._changed:
            if self._closed:
                connection.close()
                raise ChannelLost("the session has ended")
            connection.settimeout(self._timeout_s)
            before, self._connection = self._connection, connection
            self._changed.notify_all()
        if before is None:
            return
        # Closed later: the reading thread may be about to wait for it.
        if self._previous is not None:
            self._previous.close()
        self._previous = before
        with contextlib.suppress(OSError):
            before.shutdown(socket.SHUT_RDWR)

    def _wait_drained(self) -> None:
        """Wait until all data that the guestfwd socket received was read.

        :raises ChannelLost: when it is not, within a second, or the connection was closed.
        """
        connection = self._connection
        if connection is None:
            return
        try:
            wait_until(lambda: unread(connection) == 0, what="received data to be read", timeout_s=_DRAIN_S)
        except (WaitTimeout, OSError, ValueError) as exc:  # ValueError: there is no descriptor any more.
            raise ChannelLost(f"the session has ended: {exc}") from None

    def close(self) -> None:
        """As ``socket.close``, for paramiko on a guestfwd socket."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for connection in (self._connection, self._previous):
            if connection is not None:
                connection.close()


def _connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(str(path))
    except OSError as exc:
        connection.close()
        raise ChannelLost(f"cannot open the guestfwd socket {path}: {exc.strerror}") from exc
    return connection


def unread(connection: socket.socket) -> int:
    """The number of bytes that can be read from a guestfwd socket (``FIONREAD``, ``man 7 unix``)."""
    return int.from_bytes(fcntl.ioctl(connection, termios.FIONREAD, bytes(4)), sys.byteorder)
