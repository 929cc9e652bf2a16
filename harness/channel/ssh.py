"""SSH to the guest with paramiko: public key only, a pinned host key, one connection for all commands.

A session over a :class:`~harness.channel.guestfwd.GuestfwdSocket` can also be saved, resumed and moved.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import paramiko

from harness.background import Background
from harness.channel import Completed, user_terminal
from harness.channel.guestfwd import GuestfwdSocket, SavedSession
from harness.channel.remote_shell import COMMAND, Command, RemoteShell
from harness.channel.ssh_channel import decode, exchange, has_ended
from harness.channel.ssh_errors import CONNECTION_ERRORS, is_connection_error, raise_harness_error
from harness.deadline import Deadline, Watch, wait_until
from harness.errors import ChannelLost, CommandTimeout, SetupError, WaitTimeout

T = TypeVar("T")
Port = int | Callable[[], int]

#: The client software. Another one sends other bytes in the handshake of a session.
CLIENT = f"paramiko {paramiko.__version__}"
HOST = "127.0.0.1"
USER = "root"
#: Seconds in which the guest's sshd must send its banner at the first attempt; each time that it does not, it
#: gets twice as long. QEMU's user network accepts a connection long before the guest can, and repeats a lost
#: SYN only after seconds, so a new attempt is faster. But a slow guest has to get the time that sshd needs.
_BANNER_S = 2.0
#: Seconds by which a wait may end late.
_LATE_S = 5.0
#: Seconds in which QEMU must accept a TCP connection.
_ACCEPT_S = 2.0
#: Seconds in which a session over the guestfwd socket must answer; after that a TCP connection is faster. A
#: guest that gets more seconds than these for its log-in is slower, and gets longer here as well.
_GUESTFWD_OPEN_S, _LOG_IN_S = 15.0, 120.0

logging.getLogger("paramiko").setLevel(logging.CRITICAL + 1)


class Ssh:
    """A channel over SSH.

    :param port: the port on the loopback address that is forwarded to the guest, or a function that returns
        it. ``None`` if QEMU is not ready yet (:meth:`move` sets it): then only the guestfwd socket is used.
    :param client_key: the file of the OpenSSH private key to log in with.
    :param host_key: the only host key to accept, ``ssh-ed25519 AAAA…``.
    :param timeout_s: seconds in which the log-in must succeed; attempts are repeated.
    :param resume_s: seconds for the session over the guestfwd socket; by default ``timeout_s``.
    :param watch: raises the root cause when no answer can come any more.
    :param guestfwd: begin, or resume, the session over this socket. If that fails, the port is used, and
        :attr:`resumed` is the reason.
    :param first_command: a command that the first shell of a session over the guestfwd socket runs without a
        subshell (see :meth:`~harness.channel.remote_shell.RemoteShell.submit`). It must have the same length
        when the session is resumed. Its effects in the guest are saved with the session.
    :ivar guestfwd_lost: called with the reason when the session over the guestfwd socket does not answer any
        more.
    :raises ChannelLost: when the log-in fails, or the guest presents another host key; without a port, the
        reason why there is no session over the guestfwd socket.
    :raises SetupError: when the private key cannot be read.
    """

    name = "ssh"

    def __init__(
        self,
        port: Port | None,
        *,
        client_key: Path,
        host_key: str,
        timeout_s: float,
        resume_s: float | None = None,
        watch: Watch | None = None,
        guestfwd: GuestfwdSocket | None = None,
        first_command: str = "answer=0",
    ) -> None:
        self._port, self._connected_port = port, 0
        self._host_key = host_key.split()[1]
        try:
            self._key = paramiko.Ed25519Key.from_private_key_file(str(client_key))
        except (OSError, paramiko.SSHException) as exc:
            raise SetupError(f"cannot read the SSH key {client_key}: {exc}") from exc
        self._timeout_s, self._watch = timeout_s, watch
        #: Seconds that each stage of the last attempt to connect took.
        self.stages_s: dict[str, float] = {}
        #: A transport on which a command timed out; it is not used again: it may have late output, or be
        #: about to end.
        self._suspect: paramiko.Transport | None = None
        #: The ids of the threads that are running a command.
        self._running: set[int] = set()
        self._closed = False
        #: Held while the connection is replaced, so that only one of several threads does it.
        self._replacing = threading.RLock()
        #: The shells that are waiting for a command.
        self._idle: list[RemoteShell] = []
        self._guestfwd = guestfwd
        self.guestfwd_lost: Callable[[str], None] = lambda _: None
        #: Whether the session uses the guestfwd socket; if it should and does not, the reason.
        self.resumed: bool | str = False
        self._deadline = Deadline.after(timeout_s if resume_s is None else resume_s)
        self._transport = (guestfwd and self._resume(guestfwd, first_command)) or self._connect()

    def _resume(self, guestfwd: GuestfwdSocket, first_command: str) -> paramiko.Transport | None:
        """Begin or resume the session over the guestfwd socket; ``None`` when that fails.

        Errors of the connection and changes in paramiko are recorded in :attr:`resumed`. Errors in the
        harness's own code are raised, as a session that was not resumed would hide them.
        """
        from harness.channel.handshake import GuestfwdTransport  # Uses private parts of paramiko.

        transport = None
        try:
            transport = GuestfwdTransport(guestfwd)
            # The only attempt, so it has all of the time: the guest may be slow to start its sshd.
            self._log_in(transport, self._deadline.remaining_s, interval_s=0.001)
            left_s = self._deadline.remaining_s
            channel = self._watched(lambda: transport.open_session(timeout=left_s), self._deadline)
            self._exec(channel, COMMAND, self._deadline)
            shell = RemoteShell(channel, guestfwd.session.cookie.hex())
            self._run_first_command(shell, first_command)
            self._idle.append(shell)
            guestfwd.finish_replay()
        except BaseException as exc:
            _close(transport)
            guestfwd.close()
            raise_harness_error(exc, transport, guestfwd)
            if not is_connection_error(exc):
                raise
            self.resumed, self._guestfwd = str(exc) or type(exc).__name__, None
            self._idle.clear()
            return None
        self.resumed = True
        return transport

    def _run_first_command(self, shell: RemoteShell, command: str) -> None:
        submitted = shell.submit(command, subshell=False)
        self._exchange(shell.channel, submitted, lambda: shell.answered(submitted), self._deadline)
        if submitted.returncode != 0:
            how = "did not end" if submitted.returncode is None else f"ended with {submitted.returncode}"
            raise ChannelLost(f"the first command over the guestfwd socket {how}")

    def _connect(self) -> paramiko.Transport:
        if self._port is None:
            raise ChannelLost(str(self.resumed))
        self._connected_port = port = self._port if isinstance(self._port, int) else self._port()
        self._last_error = ""
        self._deadline = Deadline.after(self._timeout_s)
        self._banner_s = _BANNER_S
        try:
            return wait_until(
                lambda: self._attempt(port),
                what="SSH",
                timeout_s=self._timeout_s,
                watch=self._watch,
                interval_s=0.1,
            )
        except WaitTimeout as exc:
            raise ChannelLost(
                f"the guest did not answer on SSH ({HOST}:{port}) within {exc.elapsed_s:.0f} s: "
                f"{self._last_error or 'no attempt was made'}"
            ) from None

    def _attempt(self, port: int) -> paramiko.Transport | None:
        transport, banner_s = None, self._banner_s
        try:
            self._check_open()
            transport = paramiko.Transport(_open_tcp(port))
            banner_s = min(banner_s, self._deadline.remaining_s)
            self._log_in(transport, banner_s)
            self._check_open()  # If another thread has called close() meanwhile, this one is closed here.
        except paramiko.AuthenticationException as exc:
            _close(transport)
            raise ChannelLost(f"the guest's sshd refused the client key: {exc}") from None
        except (OSError, EOFError, paramiko.SSHException, WaitTimeout) as exc:
            # The last attempt, at the deadline, has no time. How long those before it had says more.
            if banner_s > 0 or not self._last_error:
                self._last_error = str(exc) or type(exc).__name__
            if isinstance(exc, WaitTimeout):
                self._banner_s *= 2
            _close(transport)
            return None
        except BaseException:
            _close(transport)
            raise
        return transport

    def _log_in(self, transport: paramiko.Transport, banner_s: float, interval_s: float = 0.005) -> None:
        # Longer than the waits below, which name what they waited for: on a busy host they may end late.
        transport.banner_timeout = transport.handshake_timeout = self._deadline.timeout_s + _LATE_S
        keys_exchanged, logged_in = threading.Event(), threading.Event()
        transport.start_client(event=keys_exchanged)

        def wait(condition: Callable[[], bool], what: str, timeout_s: float) -> None:
            self._await(transport, condition, what, timeout_s, interval_s)

        wait(lambda: bool(transport.remote_version), "its banner", banner_s)
        wait(keys_exchanged.is_set, "the key exchange", self._deadline.remaining_s)
        self._check_host_key(transport.get_remote_server_key())
        transport.auth_publickey(USER, self._key, event=logged_in)
        wait(logged_in.is_set, "the log-in", self._deadline.remaining_s)
        if not transport.is_authenticated():
            raise transport.get_exception() or paramiko.AuthenticationException("the guest does not know it")

    def _await(
        self,
        transport: paramiko.Transport,
        condition: Callable[[], bool],
        what: str,
        timeout_s: float,
        interval_s: float,
    ) -> None:
        """Wait for ``condition`` of the SSH connection, and record how long it took.

        :raises Exception: the transport's own error, when the transport has ended.
        """
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
                f"{HOST}:{self._connected_port} is not this guest: its host key is {presented.fingerprint}, "
                f"expected {expected.fingerprint}"
            )

    def run(self, command: str, *, timeout_s: float, stdin: bytes = b"", subshell: bool = True) -> Completed:
        """Run a command over SSH; see :meth:`harness.channel.Channel.run`.

        After a timeout the next command gets a new connection, and commands that are still running fail:
        dropbear 2022.83 ends the whole connection (``common-channel.c``, assertion ``!channel->sent_close``)
        when a channel is closed while output is pending. A connection that has ended is replaced, too.

        :param subshell: see :meth:`~harness.channel.remote_shell.RemoteShell.submit`; False allows no stdin.
        """
        with self._replacing:
            if self._suspect is self._transport or not self._transport.is_active():
                self._reconnect()
            began_on = self._transport
            self._running.add(threading.get_ident())
        deadline = Deadline.after(timeout_s)
        try:
            self._check_open()
            if stdin:
                return self._run_on_new_channel(self._open(deadline), command, stdin, deadline)
            return self._submit(self._waiting_shell(deadline), command, deadline, subshell=subshell)
        except (OSError, EOFError, paramiko.SSHException) as exc:
            raise_harness_error(exc, self._transport, self._guestfwd)
            # The channel may have been opened too late, so the connection is not used again.
            used = self._transport if self._is_only_command else began_on
            self._suspect = used if used.is_active() else self._suspect
            why = str(exc) or type(exc).__name__
            raise ChannelLost(f"the SSH connection to the guest broke during {command!r}: {why}") from exc
        finally:
            self._running.discard(threading.get_ident())

    @property
    def _is_only_command(self) -> bool:
        """Whether only one command runs over SSH, so that no other fails when the connection is replaced."""
        return len(self._running) == 1

    def _check_open(self) -> None:
        if self._closed:
            raise ChannelLost("the SSH connection to the guest was closed")

    def _reconnect(self) -> None:
        with self._replacing:
            _close(self._transport)
            self._idle, self._guestfwd = [], None
            self._transport = self._connect()
            if self._closed:  # By another thread, which has closed the connection before this one.
                _close(self._transport)
                self._check_open()

    def _waiting_shell(self, deadline: Deadline) -> RemoteShell:
        """An idle shell of the SSH session; a new one if there is none."""
        while self._idle:
            with contextlib.suppress(IndexError):  # Another thread has taken the last one.
                if (shell := self._idle.pop()).waits:
                    return shell
        return self._new_shell(deadline)

    def _new_shell(self, deadline: Deadline) -> RemoteShell:
        channel = self._open(deadline)
        self._exec(channel, COMMAND, deadline)
        return RemoteShell(channel)

    def _open(self, deadline: Deadline) -> paramiko.Channel:
        """Open an SSH channel for a command.

        If the guestfwd socket does not answer, a TCP connection is used: the command has not started yet.
        """
        try:
            channel = self._open_within(self._response_timeout_s(deadline))
        except (OSError, EOFError, paramiko.SSHException) as exc:
            raise_harness_error(exc, self._transport, self._guestfwd)
            if not self._abandon_guestfwd(str(exc) or type(exc).__name__):
                raise
            channel = self._open_within(deadline.remaining_s)
        channel.settimeout(deadline.timeout_s)
        return channel

    def _open_within(self, timeout_s: float) -> paramiko.Channel:
        transport = self._transport
        deadline = Deadline.after(timeout_s + 1)  # paramiko's own timeout comes first.
        return self._watched(lambda: transport.open_session(timeout=timeout_s), deadline)

    def _exec(self, channel: paramiko.Channel, command: str, deadline: Deadline) -> None:
        """Start a command on an SSH channel. paramiko alone would wait for the answer without a timeout."""
        try:
            self._watched(lambda: channel.exec_command(command), deadline)
        except BaseException:
            channel.close()  # Ends the background thread.
            raise

    def _watched(self, call: Callable[[], T], deadline: Deadline) -> T:
        """Run ``call`` of paramiko in a background thread, call the watch meanwhile, and return the result.

        :raises paramiko.SSHException: when ``call`` does not end before the deadline.
        """
        working = Background(call)
        for left_s in deadline.turns():
            try:
                return working.wait(timeout_s=min(0.05, left_s))
            except WaitTimeout:
                if self._watch is not None:
                    self._watch()
        raise paramiko.SSHException(f"its sshd did not answer within {deadline.timeout_s:g} s")

    def _response_timeout_s(self, deadline: Deadline) -> float:
        """Seconds in which the guest must react to an SSH command; fewer if it can be repeated over TCP."""
        replaceable = self._guestfwd is not None and self._is_only_command
        return min(deadline.remaining_s, self._guestfwd_s) if replaceable else deadline.remaining_s

    @property
    def _guestfwd_s(self) -> float:
        return _GUESTFWD_OPEN_S * max(1.0, self._timeout_s / _LOG_IN_S)

    def _submit(
        self, shell: RemoteShell, command: str, deadline: Deadline, *, subshell: bool = True
    ) -> Completed:
        """Run a command in a waiting shell of the SSH session."""
        shell.channel.settimeout(deadline.timeout_s)
        submitted = shell.submit(command, subshell=subshell)
        silent = self._guestfwd is not None and not self._has_started(shell, submitted, deadline)
        if (
            silent
            and not deadline.expired
            and self._abandon_guestfwd(f"no answer for {self._guestfwd_s:g} s")
        ):
            shell = self._shell_on_new_connection(shell, submitted, command, deadline)
            return self._submit(shell, command, deadline, subshell=subshell)
        self._exchange(shell.channel, submitted, lambda: shell.answered(submitted), deadline)
        out, err = decode(submitted.between(submitted.out)), decode(submitted.between(submitted.err))
        if submitted.returncode is None:
            self._suspect = shell.channel.get_transport()
            raise CommandTimeout(self.name, command, deadline.timeout_s, out, err)
        if shell.channel.get_transport() is self._transport:
            self._idle.append(shell)
        return Completed(command, submitted.returncode, out, err)

    def _has_started(self, shell: RemoteShell, submitted: Command, deadline: Deadline) -> bool:
        """Whether the guest reports in time (:meth:`_response_timeout_s`) that the command over SSH runs."""
        response = Deadline.after(self._response_timeout_s(deadline))

        def started() -> bool:
            return submitted.started or shell.answered(submitted)

        self._exchange(shell.channel, submitted, lambda: started() or response.expired, deadline)
        return started()

    def _abandon_guestfwd(self, why: str) -> bool:
        """Replace the guestfwd socket by a TCP connection; returns whether that was done.

        It is done only while a single command is running: others would fail.
        """
        with self._replacing:  # No other command can start meanwhile.
            if self._guestfwd is None or not self._is_only_command:
                return False
            self.guestfwd_lost(why)
            self._reconnect()
            return True

    def _shell_on_new_connection(
        self, shell: RemoteShell, submitted: Command, command: str, deadline: Deadline
    ) -> RemoteShell:
        """A shell over the new SSH connection, in which the command can be repeated.

        :raises EOFError: when the shell that did not answer may have run the command.
        """
        abandoning = Deadline.after(self._timeout_s)
        try:
            last = self._run_on_new_channel(self._open(abandoning), shell.abandon_command, b"", abandoning)
        except CommandTimeout:
            raise EOFError("the session stopped answering; it is unknown whether the command ran") from None
        if last.returncode != 0 or last.stdout.strip() != str(submitted.number - 1):
            raise EOFError("the session stopped answering, and the command may have run")
        if deadline.expired:
            raise CommandTimeout(self.name, command, deadline.timeout_s, "", "")
        return self._new_shell(deadline)

    def _exchange(
        self, channel: paramiko.Channel, submitted: Command, ended: Callable[[], bool], deadline: Deadline
    ) -> None:
        exchange(channel, submitted.out, submitted.err, ended, deadline=deadline, watch=self._watch)

    def _run_on_new_channel(
        self, channel: paramiko.Channel, command: str, stdin: bytes, deadline: Deadline
    ) -> Completed:
        """Run a command on an SSH channel that it has for itself."""
        self._exec(channel, command, deadline)
        if not stdin:
            channel.shutdown_write()
        out, err = bytearray(), bytearray()
        ended = exchange(
            channel, out, err, lambda: has_ended(channel), deadline=deadline, watch=self._watch, stdin=stdin
        )
        status = channel.recv_exit_status() if ended else None
        channel.close()
        if status is None:
            self._suspect = channel.get_transport()
            raise CommandTimeout(self.name, command, deadline.timeout_s, decode(out), decode(err))
        return Completed(command, status, decode(out), decode(err))

    def interact(self, command: str) -> int:
        """Run ``command`` on a new terminal in the guest, connected to the user's; returns its exit status.

        :raises ChannelLost: when the connection breaks.
        """
        try:
            channel = self._transport.open_session()
            columns, lines = user_terminal.window()
            channel.get_pty(os.environ.get("TERM", "vt100"), columns, lines)
            channel.exec_command(command)
            with user_terminal.raw(sys.stdin.fileno()):
                user_terminal.relay(channel)
            return channel.recv_exit_status()
        except (OSError, EOFError, paramiko.SSHException) as exc:
            raise ChannelLost(f"the SSH connection to the guest broke: {exc}") from None

    def save_session(self) -> SavedSession:
        """Return the SSH session as it is now, for a :class:`GuestfwdSocket` that resumes it later."""
        assert self._guestfwd is not None, "the session does not use a guestfwd socket"
        return self._guestfwd.save_session()

    def move(self, path: Path, *, port: Port, watch: Watch) -> bool:
        """Keep the session of a guest that now runs in another QEMU, or whose QEMU has only now become ready.

        :param path: the guestfwd socket of that QEMU. :param port: its port, as for the class.
        :param watch: its watch, as for the class.
        :returns: whether the session was kept. It is kept if it uses the guestfwd socket and no command is
            running. If it was lost now, :attr:`resumed` is the reason.
        """
        usable = self._transport.is_active() and self._suspect is not self._transport
        if self._guestfwd is None:
            return False
        if self._running or not usable:
            self.resumed = "a command was running" if self._running else "the session had ended"
            return False
        try:
            self._guestfwd.move(path)
        except ChannelLost as exc:
            self.resumed = exc.message
            return False
        self._port, self._watch = port, watch
        return True

    def close(self) -> None:
        """Close the SSH connection; a command that is running in another thread fails."""
        self._closed = True
        _close(self._transport)


def _open_tcp(port: int) -> socket.socket:
    """A TCP connection for SSH.

    It is without Nagle's algorithm, which would delay the last packet of a command by 40 ms.
    """
    connection = socket.create_connection((HOST, port), timeout=_ACCEPT_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _close(transport: paramiko.Transport | None) -> None:
    if transport is not None:
        with contextlib.suppress(*CONNECTION_ERRORS):
            transport.close()
