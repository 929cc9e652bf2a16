"""SSH into the guest with paramiko: public key only, the host key pinned, one connection reused.

A session can also go over a :class:`~harness.channel.line.Line`, and then be frozen, resumed and moved.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import os
import select
import socket
import sys
import termios
import threading
import tty
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import paramiko
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from paramiko.kex_curve25519 import KexCurve25519

from harness.channel import Completed
from harness.channel.line import Frozen, Line
from harness.channel.remote_shell import RemoteShell, Told
from harness.deadline import Deadline, Watch, wait_until
from harness.errors import ChannelLost, CommandTimeout, SetupError, WaitTimeout

HOST = "127.0.0.1"
USER = "root"
#: Seconds in which the guest's sshd must show its banner: QEMU's user network accepts a connection long
#: before the guest can, and repeats a lost SYN only after seconds, so a new attempt is the quicker way.
_BANNER_S = 2.0
#: Seconds in which a line's session must open a channel; else a new connection is the quicker way.
_LINE_OPEN_S = 15.0
_CHUNK = 65536

logging.getLogger("paramiko").setLevel(logging.CRITICAL + 1)


class Ssh:
    """A channel over SSH.

    :param port: the port on the loopback address that is forwarded to the guest.
    :param client_key: the OpenSSH private key to log in with.
    :param host_key: the only host key to accept, ``ssh-ed25519 AAAA…``.
    :param timeout_s: seconds in which the guest has to let us in; attempts are repeated.
    :param watch: raises the real cause when waiting on is pointless.
    :param line: begin, or resume, the session over it; where that fails, :attr:`resumed` says why, and the
        port is used.
    :param line_lost: told why, when the session over the line answers no more, and the port is used instead.
    :raises ChannelLost: when it did not, or presented another host key.
    :raises SetupError: when the private key cannot be read.
    """

    name = "ssh"

    def __init__(
        self,
        port: int,
        *,
        client_key: Path,
        host_key: str,
        timeout_s: float,
        watch: Watch | None = None,
        line: Line | None = None,
        line_lost: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._port = port
        self._host_key = host_key.split()[1]
        try:
            self._key = paramiko.Ed25519Key.from_private_key_file(str(client_key))
        except (OSError, paramiko.SSHException) as exc:
            raise SetupError(f"cannot read the SSH key {client_key}: {exc}") from exc
        self._timeout_s, self._watch = timeout_s, watch
        #: Seconds that each stage of the last attempt to connect took.
        self.stages_s: dict[str, float] = {}
        #: A command timed out: the connection may hold its late output, or be about to end.
        self._doubtful = False
        self._running = 0
        self._shell: RemoteShell | None = None
        self._shell_lock = threading.Lock()
        self._line, self._line_lost = line, line_lost
        #: Whether the session goes over the line, or why it does not.
        self.resumed: bool | str = False
        self._deadline = Deadline.after(timeout_s)
        self._transport = (line and self._resume(line)) or self._connect()

    def _resume(self, line: Line) -> paramiko.Transport | None:
        transport = _LineTransport(line)
        try:
            self._log_in(transport, interval_s=0.001)
            self._shell = RemoteShell(transport.open_session(timeout=self._deadline.timeout_s))
            line.go_on()
        except (OSError, EOFError, paramiko.SSHException, WaitTimeout, ChannelLost) as exc:
            self.resumed, self._line, self._shell = str(exc) or type(exc).__name__, None, None
            _close(transport)
            return None
        except BaseException:
            _close(transport)
            raise
        self.resumed = True
        return transport

    def _connect(self) -> paramiko.Transport:
        self._last_error = "no attempt was made"
        self._deadline = Deadline.after(self._timeout_s)
        try:
            return wait_until(
                self._attempt, what="SSH", timeout_s=self._timeout_s, watch=self._watch, interval_s=0.1
            )
        except WaitTimeout as exc:
            raise ChannelLost(
                f"the guest did not answer on SSH ({HOST}:{self._port}) within {exc.elapsed_s:.0f} s: "
                f"{self._last_error}"
            ) from None

    def _attempt(self) -> paramiko.Transport | None:
        transport = None
        try:
            transport = paramiko.Transport(_dial(self._port))
            self._log_in(transport)
        except paramiko.AuthenticationException as exc:
            _close(transport)
            raise ChannelLost(f"the guest's sshd refused our key: {exc}") from None
        except (OSError, EOFError, paramiko.SSHException, WaitTimeout) as exc:
            self._last_error = str(exc) or type(exc).__name__
            _close(transport)
            return None
        except BaseException:
            _close(transport)
            raise
        return transport

    def _log_in(self, transport: paramiko.Transport, interval_s: float = 0.005) -> None:
        transport.banner_timeout = transport.handshake_timeout = self._deadline.timeout_s
        shaken, let_in = threading.Event(), threading.Event()
        transport.start_client(event=shaken)

        def wait(condition: Callable[[], bool], what: str, timeout_s: float) -> None:
            self._await(transport, condition, what, timeout_s, interval_s)

        wait(lambda: bool(transport.remote_version), "its banner", _BANNER_S)
        wait(shaken.is_set, "the key exchange", self._deadline.remaining_s)
        self._check_host_key(transport.get_remote_server_key())
        transport.auth_publickey(USER, self._key, event=let_in)
        wait(let_in.is_set, "the log-in", self._deadline.remaining_s)
        if not transport.is_authenticated():
            raise transport.get_exception() or paramiko.AuthenticationException("it is not known there")

    def _await(
        self,
        transport: paramiko.Transport,
        condition: Callable[[], bool],
        what: str,
        timeout_s: float,
        interval_s: float,
    ) -> None:
        """Wait without losing sight of the watch; a transport that ended says why."""
        clock = Deadline.after(timeout_s)
        wait_until(
            lambda: condition() or not transport.is_active(),
            what=what,
            timeout_s=timeout_s,
            watch=self._watch,
            interval_s=interval_s,
        )
        if not transport.is_active():
            raise transport.get_exception() or EOFError(f"the connection ended before {what}")
        self.stages_s[what] = round(clock.elapsed_s, 6)

    def _check_host_key(self, presented: paramiko.PKey) -> None:
        if presented.get_base64() != self._host_key:
            expected = paramiko.Ed25519Key(data=base64.b64decode(self._host_key))
            raise ChannelLost(
                f"{HOST}:{self._port} is not our guest: its host key is {presented.fingerprint}, "
                f"expected {expected.fingerprint}"
            )

    def run(self, command: str, *, timeout_s: float, stdin: bytes = b"") -> Completed:
        """See :meth:`harness.channel.Channel.run`.

        After a timeout the next command gets a connection of its own: dropbear 2022.83 ends the whole
        connection (``common-channel.c``, assertion ``!channel->sent_close``) when a channel is closed
        while output is pending.
        """
        if self._doubtful:
            self._reconnect()
        deadline = Deadline.after(timeout_s)
        self._running += 1
        try:
            with self._shell_if_free(deadline, stdin) as shell:
                if shell is None:
                    return self._converse(self._open(deadline), command, stdin, deadline)
                return self._tell(shell, command, deadline)
        except (OSError, EOFError, paramiko.SSHException) as exc:
            # Too slow to open a channel, perhaps: it may come later, and be in the way.
            self._doubtful = self._transport.is_active()
            why = str(exc) or type(exc).__name__
            raise ChannelLost(f"the SSH connection to the guest broke during {command!r}: {why}") from exc
        finally:
            self._running -= 1

    def _reconnect(self) -> None:
        _close(self._transport)
        self._shell = self._line = None
        self._transport, self._doubtful = self._connect(), False

    @contextlib.contextmanager
    def _shell_if_free(self, deadline: Deadline, stdin: bytes) -> Iterator[RemoteShell | None]:
        """The shell that waits for commands, unless one is running there, or this one is to be fed."""
        if stdin or not self._shell_lock.acquire(blocking=False):
            yield None
            return
        try:
            if self._shell is None or not self._shell.waits:
                self._shell = RemoteShell(self._open(deadline))
            yield self._shell
        finally:
            self._shell_lock.release()

    def _open(self, deadline: Deadline) -> paramiko.Channel:
        """A channel for a command, which has not begun when there is none: so it may be tried elsewhere."""
        try:
            channel = self._transport.open_session(timeout=self._patience_s(deadline))
        except (OSError, EOFError, paramiko.SSHException) as exc:
            if self._line is None or self._running > 1:
                raise
            self._line_lost(str(exc) or type(exc).__name__)
            self._reconnect()
            channel = self._transport.open_session(timeout=deadline.timeout_s)
        channel.settimeout(deadline.timeout_s)
        return channel

    def _patience_s(self, deadline: Deadline) -> float:
        return min(deadline.timeout_s, _LINE_OPEN_S) if self._line else deadline.timeout_s

    def _tell(self, shell: RemoteShell, command: str, deadline: Deadline) -> Completed:
        told = shell.tell(command)
        if self._line is not None and self._running == 1:
            first = Deadline.after(self._patience_s(deadline))
            self._listen(
                shell.channel,
                told.out,
                told.err,
                lambda: told.begun or first.expired or _answered(shell, told),
                deadline,
            )
            if not told.begun and not deadline.expired:
                return self._tell(self._elsewhere(shell, told, deadline), command, deadline)
        self._listen(shell.channel, told.out, told.err, lambda: _answered(shell, told), deadline)
        out, err = _text(told.between(told.out)), _text(told.between(told.err))
        if told.returncode is None:
            self._doubtful = True
            raise CommandTimeout(self.name, command, deadline.timeout_s, out, err)
        return Completed(command, told.returncode, out, err)

    def _elsewhere(self, shell: RemoteShell, told: Told, deadline: Deadline) -> RemoteShell:
        """The line is silent: a shell over a connection, which may be told the same, as it has not begun."""
        self._line_lost(f"no answer for {_LINE_OPEN_S:g} s")
        self._reconnect()
        last = self._converse(self._open(deadline), shell.give_up_command, b"", deadline).stdout
        if last.strip() == str(told.number):
            raise EOFError("its session fell silent, and the command may have run")
        self._shell = RemoteShell(self._open(deadline))
        return self._shell

    def _converse(
        self, channel: paramiko.Channel, command: str, stdin: bytes, deadline: Deadline
    ) -> Completed:
        """Run a command on a channel of its own."""
        channel.exec_command(command)
        if not stdin:
            channel.shutdown_write()
        out, err = bytearray(), bytearray()
        ended = self._listen(channel, out, err, lambda: _ended(channel), deadline, stdin)
        status = channel.recv_exit_status() if ended else None
        channel.close()
        if status is None:
            self._doubtful = True
            raise CommandTimeout(self.name, command, deadline.timeout_s, _text(out), _text(err))
        return Completed(command, status, _text(out), _text(err))

    def _listen(
        self,
        channel: paramiko.Channel,
        out: bytearray,
        err: bytearray,
        ended: Callable[[], bool],
        deadline: Deadline,
        stdin: bytes = b"",
    ) -> bool:
        """Feed stdin and drain both outputs at once, so that neither side ever waits for the other.

        Returns whether it has ``ended``; else the deadline expired.
        """
        unsent = memoryview(stdin)
        while not self._said_all(channel, out, err, ended):
            if deadline.expired:
                return False
            if self._watch is not None:
                self._watch()
            if unsent and channel.send_ready():
                unsent = unsent[channel.send(bytes(unsent[:_CHUNK])) :]
                if not unsent:
                    channel.shutdown_write()
            turn_s = 0.01 if unsent else min(0.05, deadline.remaining_s)
            if channel.eof_received:
                channel.status_event.wait(turn_s)
            else:  # The channel's own descriptor becomes readable with data, EOF or its close.
                select.select([channel.fileno()], [], [], turn_s)
        return True

    @staticmethod
    def _said_all(
        channel: paramiko.Channel, out: bytearray, err: bytearray, ended: Callable[[], bool]
    ) -> bool:
        over = ended()
        _drain(channel, out, err)
        if over or not ended():
            return over
        _drain(channel, out, err)  # It ended just now: with this, too.
        return True

    def interact(self, command: str) -> int:
        """Run ``command`` on a terminal of its own in the guest, tied to ours; returns its exit status.

        :raises ChannelLost: when the connection breaks.
        """
        try:
            channel = self._transport.open_session()
            columns, lines = _window()
            channel.get_pty(os.environ.get("TERM", "vt100"), columns, lines)
            channel.exec_command(command)
            with _raw_terminal(sys.stdin.fileno()):
                _relay(channel)
            return channel.recv_exit_status()
        except (OSError, EOFError, paramiko.SSHException) as exc:
            raise ChannelLost(f"the SSH connection to the guest broke: {exc}") from None

    def freeze(self) -> Frozen:
        """The session as the guest remembers it now, for a :class:`Line` to it later."""
        assert self._line is not None, "the session does not go over a line"
        return self._line.freeze()

    def move(self, path: Path, *, port: int, watch: Watch) -> bool:
        """The guest goes on in another QEMU: keep the session, if it can be kept.

        :param path: the other QEMU's socket for the line. :param port: see above. :param watch: see above.
        :returns: whether it was kept: it goes over a line, and no command is running.
        """
        if self._line is None or self._running or self._doubtful or not self._transport.is_active():
            return False
        try:
            self._line.move(path)
        except ChannelLost:
            return False
        self._port, self._watch = port, watch
        return True

    def close(self) -> None:
        """See :meth:`harness.channel.Channel.close`."""
        _close(self._transport)


#: RFC 8731's name has no suffix; this one is in every paramiko and dropbear that knows the exchange.
_KEX = "curve25519-sha256@libssh.org"
_KEXINIT, _KEX_ECDH_INIT, _KEX_ECDH_REPLY = 20, 30, 31  # RFC 4253, RFC 5656
_COOKIE = slice(1, 17)


class _Curve25519(KexCurve25519):
    """The key exchange with the line's secret, instead of one made for the occasion."""

    def start_kex(self) -> None:
        transport: Any = self.transport
        self.key = X25519PrivateKey.from_private_bytes(transport.sock.secrets.key)
        message = paramiko.Message()
        message.add_byte(bytes([_KEX_ECDH_INIT]))
        message.add_string(self.key.public_key().public_bytes_raw())
        transport._send_message(message)
        transport._expect_packet(_KEX_ECDH_REPLY)


class _LineTransport(paramiko.Transport):
    """Says the same in every handshake over a line's session: what is random comes from the line.

    It reaches into paramiko's own names; where they change, no session is resumed, and :attr:`Ssh.resumed`
    says why.
    """

    _kex_info: ClassVar[dict[str, Any]] = {_KEX: _Curve25519}

    def __init__(self, line: Line) -> None:
        self._line = line
        super().__init__(line)  # type: ignore[arg-type]  # all of a socket that it uses
        self.get_security_options().kex = (_KEX,)

    def _send_message(self, data: Any) -> None:
        content = data.asbytes()
        if content[0] == _KEXINIT:
            said = bytearray(content)
            said[_COOKIE] = self._line.secrets.cookie
            self.local_kex_init = self._latest_kex_init = bytes(said)
            data = paramiko.Message(bytes(said))
        super()._send_message(data)  # type: ignore[misc]


def _dial(port: int) -> socket.socket:
    """A connection that sends each packet at once: a command's last one else waits 40 ms for QEMU's ACK."""
    connection = socket.create_connection((HOST, port), timeout=_BANNER_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


@contextlib.contextmanager
def _raw_terminal(descriptor: int) -> Iterator[None]:
    """The terminal passes every key on, Ctrl-C included; afterwards it is what it was."""
    before = termios.tcgetattr(descriptor)
    try:
        tty.setraw(descriptor)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _relay(channel: paramiko.Channel) -> None:
    """Pass bytes between our terminal and the guest's, and our window's size, until the guest's side ends."""
    keyboard, screen = sys.stdin.fileno(), sys.stdout.fileno()
    size = _window()
    while not channel.closed:
        readable, _, _ = select.select([channel, keyboard], [], [], 0.25)
        if channel in readable:
            data = channel.recv(_CHUNK)
            if not data:
                return
            os.write(screen, data)
        if keyboard in readable:
            channel.sendall(os.read(keyboard, _CHUNK))
        if _window() != size:
            size = _window()
            channel.resize_pty(size.columns, size.lines)


def _window() -> os.terminal_size:
    """The terminal's own size: ``shutil.get_terminal_size`` would believe COLUMNS and LINES instead."""
    try:
        return os.get_terminal_size(sys.stdin.fileno())
    except OSError:
        return os.terminal_size((80, 24))


def _ended(channel: paramiko.Channel) -> bool:
    """Whether the command has ended, and everything that it said has arrived.

    :raises EOFError: when the connection ended first (``exit_status_ready`` is true of such a channel too).
    """
    if channel.eof_received:
        return bool(channel.exit_status_ready())
    if channel.closed and channel.exit_status < 0:
        raise EOFError("the connection ended")
    return bool(channel.closed)


def _answered(shell: RemoteShell, told: Told) -> bool:
    """Whether the command has ended, and everything that it said has arrived.

    :raises EOFError: when the shell has ended instead.
    """
    if told.returncode is not None:
        return True
    if not (shell.waits or shell.channel.recv_ready() or shell.channel.recv_stderr_ready()):
        raise EOFError("the connection ended")
    return False


def _drain(channel: paramiko.Channel, out: bytearray, err: bytearray) -> None:
    while channel.recv_ready():
        out += channel.recv(_CHUNK)
    while channel.recv_stderr_ready():
        err += channel.recv_stderr(_CHUNK)


def _text(data: bytearray) -> str:
    return data.decode("utf-8", "replace")


def _close(transport: paramiko.Transport | None) -> None:
    if transport is not None:
        with contextlib.suppress(Exception):
            transport.close()
