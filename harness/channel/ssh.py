"""SSH into the guest with paramiko: public key only, the host key pinned, one connection reused.

A session can also go over a :class:`~harness.channel.guestfwd.Line`, and then be frozen, resumed and moved.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import os
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import paramiko

from harness.background import Background
from harness.channel import Completed, terminal
from harness.channel.conversation import has_ended, listen, text
from harness.channel.guestfwd import GuestfwdSocket, SavedSession
from harness.channel.handshake import GuestfwdTransport
from harness.channel.remote_shell import COMMAND, Command, RemoteShell
from harness.deadline import Deadline, Watch, wait_until
from harness.errors import ChannelLost, CommandTimeout, HarnessError, SetupError, WaitTimeout

T = TypeVar("T")
Port = int | Callable[[], int]

HOST = "127.0.0.1"
USER = "root"
#: Seconds in which the guest's sshd must show its banner: QEMU's user network accepts a connection long
#: before the guest can, and repeats a lost SYN only after seconds, so a new attempt is the quicker way.
_BANNER_S = 2.0
#: Seconds in which a line's session must open a channel; else a new connection is the quicker way.
_GUESTFWD_OPEN_S = 15.0

logging.getLogger("paramiko").setLevel(logging.CRITICAL + 1)


class Ssh:
    """A channel over SSH.

    :param port: the port on the loopback address that is forwarded to the guest, or how to find it out when
        it is needed; ``None`` when its QEMU is still to come (:meth:`move`), and the line has to do.
    :param client_key: the OpenSSH private key to log in with.
    :param host_key: the only host key to accept, ``ssh-ed25519 AAAA…``.
    :param timeout_s: seconds in which the guest has to let us in; attempts are repeated.
    :param watch: raises the real cause when waiting on is pointless.
    :param line: begin, or resume, the session over it; where that fails, :attr:`resumed` says why, and the
        port is used.
    :param rehearsal: a command for inside the first shell of a session over the guestfwd socket (see
        :meth:`~harness.channel.remote_shell.RemoteShell.submit`). Its length is the same whenever that
        session is resumed. What it has made ready in the guest is saved with the session.
    :ivar guestfwd_lost: called with the reason when the session over the guestfwd socket answers no more.
    :raises ChannelLost: when it did not, or presented another host key; without a port, why there is no
        session over the line.
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
        watch: Watch | None = None,
        guestfwd: GuestfwdSocket | None = None,
        rehearsal: str = "answer=0",
    ) -> None:
        self._port, self._dialled = port, 0
        self._host_key = host_key.split()[1]
        try:
            self._key = paramiko.Ed25519Key.from_private_key_file(str(client_key))
        except (OSError, paramiko.SSHException) as exc:
            raise SetupError(f"cannot read the SSH key {client_key}: {exc}") from exc
        self._timeout_s, self._watch = timeout_s, watch
        #: Seconds that each stage of the last attempt to connect took.
        self.stages_s: dict[str, float] = {}
        #: A transport on which a command timed out: it may hold late output, or be about to end.
        self._doubtful: paramiko.Transport | None = None
        #: The threads in whose name a command is running.
        self._running: set[int] = set()
        self._closed = False
        #: Held while the connection is replaced: of two threads that find it doubtful, one does it.
        self._replacing = threading.RLock()
        #: Shells that wait for a command.
        self._idle: list[RemoteShell] = []
        self._guestfwd = guestfwd
        self.guestfwd_lost: Callable[[str], None] = lambda _: None
        #: Whether the session goes over the line, or why it does not.
        self.resumed: bool | str = False
        self._deadline = Deadline.after(timeout_s)
        self._transport = (guestfwd and self._resume(guestfwd, rehearsal)) or self._connect()

    def _resume(self, guestfwd: GuestfwdSocket, rehearsal: str) -> paramiko.Transport | None:
        """The line's session; whatever is wrong with it (also paramiko's own parts), the port is left.

        An error of our own is raised: nobody would look for it behind a session that was not resumed.
        """
        transport = None
        try:
            transport = GuestfwdTransport(guestfwd)
            # There is no second attempt: a guest that is frozen may take its time to start an sshd.
            self._log_in(transport, self._deadline.remaining_s, interval_s=0.001)
            left_s = self._deadline.remaining_s
            channel = self._watched(lambda: transport.open_session(timeout=left_s), self._deadline)
            self._exec(channel, COMMAND, self._deadline)
            shell = RemoteShell(channel, guestfwd.secrets.cookie.hex())
            self._rehearse(shell, rehearsal)
            self._idle.append(shell)
            guestfwd.go_on()
        except BaseException as exc:
            _close(transport)
            guestfwd.close()
            _raise_own(exc, transport, guestfwd)
            if not _is_of_the_guestfwd_socket(exc):
                raise
            self.resumed, self._guestfwd = str(exc) or type(exc).__name__, None
            self._idle.clear()
            return None
        self.resumed = True
        return transport

    def _rehearse(self, shell: RemoteShell, command: str) -> None:
        submitted = shell.submit(command, inside=True)
        self._listen(shell.channel, submitted, lambda: shell.answered(submitted), self._deadline)
        if submitted.returncode != 0:
            how = "did not end" if submitted.returncode is None else f"ended with {submitted.returncode}"
            raise ChannelLost(f"the first command over the line {how}")

    def _connect(self) -> paramiko.Transport:
        if self._port is None:
            raise ChannelLost(str(self.resumed))
        self._dialled = port = self._port if isinstance(self._port, int) else self._port()
        self._last_error = "no attempt was made"
        self._deadline = Deadline.after(self._timeout_s)
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
                f"{self._last_error}"
            ) from None

    def _attempt(self, port: int) -> paramiko.Transport | None:
        transport = None
        try:
            self._check_open()
            transport = paramiko.Transport(_dial(port))
            self._log_in(transport, _BANNER_S)
            self._check_open()  # Closed meanwhile, by another thread: nobody else would close this one.
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

    def _log_in(self, transport: paramiko.Transport, banner_s: float, interval_s: float = 0.005) -> None:
        transport.banner_timeout = transport.handshake_timeout = self._deadline.timeout_s
        shaken, let_in = threading.Event(), threading.Event()
        transport.start_client(event=shaken)

        def wait(condition: Callable[[], bool], what: str, timeout_s: float) -> None:
            self._await(transport, condition, what, timeout_s, interval_s)

        wait(lambda: bool(transport.remote_version), "its banner", banner_s)
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
                f"{HOST}:{self._dialled} is not our guest: its host key is {presented.fingerprint}, "
                f"expected {expected.fingerprint}"
            )

    def run(self, command: str, *, timeout_s: float, stdin: bytes = b"", inside: bool = False) -> Completed:
        """See :meth:`harness.channel.Channel.run`.

        :param inside: see :meth:`~harness.channel.remote_shell.RemoteShell.submit`; without stdin.

        After a timeout the next command gets a new connection, and those that are running end: dropbear
        2022.83 ends the whole connection (``common-channel.c``, assertion ``!channel->sent_close``) when a
        channel is closed while output is pending. A connection that has ended is replaced as well.
        """
        with self._replacing:
            if self._doubtful is self._transport or not self._transport.is_active():
                self._reconnect()
            began_on = self._transport
            self._running.add(threading.get_ident())
        deadline = Deadline.after(timeout_s)
        try:
            self._check_open()
            if stdin:
                return self._converse(self._open(deadline), command, stdin, deadline)
            return self._submit(self._waiting_shell(deadline), command, deadline, inside=inside)
        except (OSError, EOFError, paramiko.SSHException) as exc:
            _raise_own(exc, self._transport, self._guestfwd)
            # Too slow to open a channel, perhaps: it may come later, and be in the way.
            used = self._transport if self._is_alone else began_on
            self._doubtful = used if used.is_active() else self._doubtful
            why = str(exc) or type(exc).__name__
            raise ChannelLost(f"the SSH connection to the guest broke during {command!r}: {why}") from exc
        finally:
            self._running.discard(threading.get_ident())

    @property
    def _is_alone(self) -> bool:
        """Whether the command that asks is the only one: no other ends when the connection is given up."""
        return len(self._running) == 1

    def _check_open(self) -> None:
        if self._closed:
            raise ChannelLost("the SSH connection to the guest was closed")

    def _reconnect(self) -> None:
        with self._replacing:
            _close(self._transport)
            self._idle, self._guestfwd = [], None
            self._transport = self._connect()

    def _waiting_shell(self, deadline: Deadline) -> RemoteShell:
        """One that gets no other command meanwhile: there are as many as there were commands at once."""
        while self._idle:
            with contextlib.suppress(IndexError):  # Another thread was quicker.
                if (shell := self._idle.pop()).waits:
                    return shell
        return self._new_shell(deadline)

    def _new_shell(self, deadline: Deadline) -> RemoteShell:
        channel = self._open(deadline)
        self._exec(channel, COMMAND, deadline)
        return RemoteShell(channel)

    def _open(self, deadline: Deadline) -> paramiko.Channel:
        """A channel for a command, which has not begun when there is none: so it may be tried elsewhere."""
        try:
            channel = self._open_within(self._patience_s(deadline))
        except (OSError, EOFError, paramiko.SSHException) as exc:
            _raise_own(exc, self._transport, self._guestfwd)
            if not self._give_up_guestfwd(str(exc) or type(exc).__name__):
                raise
            channel = self._open_within(deadline.remaining_s)
        channel.settimeout(deadline.timeout_s)
        return channel

    def _open_within(self, timeout_s: float) -> paramiko.Channel:
        transport, patience = self._transport, Deadline.after(timeout_s + 1)
        return self._watched(lambda: transport.open_session(timeout=timeout_s), patience)

    def _exec(self, channel: paramiko.Channel, command: str, deadline: Deadline) -> None:
        """Begin a command. paramiko itself would wait for the guest's consent for ever."""
        try:
            self._watched(lambda: channel.exec_command(command), deadline)
        except BaseException:
            channel.close()  # Ends the thread that waits.
            raise

    def _watched(self, call: Callable[[], T], deadline: Deadline) -> T:
        """What ``call`` returns, in a thread of its own, so that the watch is not lost sight of.

        :raises paramiko.SSHException: when it does not end.
        """
        working = Background(call)
        while True:
            try:
                return working.wait(timeout_s=min(0.05, deadline.remaining_s))
            except WaitTimeout:
                if self._watch is not None:
                    self._watch()
                if deadline.expired:
                    why = f"its sshd did not answer within {deadline.timeout_s:g} s"
                    raise paramiko.SSHException(why) from None

    def _patience_s(self, deadline: Deadline) -> float:
        given_up = self._guestfwd is not None and self._is_alone
        return min(deadline.remaining_s, _GUESTFWD_OPEN_S) if given_up else deadline.remaining_s

    def _submit(
        self, shell: RemoteShell, command: str, deadline: Deadline, *, inside: bool = False
    ) -> Completed:
        """Run a command in the shell that waits."""
        shell.channel.settimeout(deadline.timeout_s)
        submitted = shell.submit(command, inside=inside)
        silent = self._guestfwd is not None and not self._begins(shell, submitted, deadline)
        if (
            silent
            and not deadline.expired
            and self._give_up_guestfwd(f"no answer for {_GUESTFWD_OPEN_S:g} s")
        ):
            shell = self._elsewhere(shell, submitted, command, deadline)
            return self._submit(shell, command, deadline, inside=inside)
        self._listen(shell.channel, submitted, lambda: shell.answered(submitted), deadline)
        out, err = text(submitted.between(submitted.out)), text(submitted.between(submitted.err))
        if submitted.returncode is None:
            self._doubtful = shell.channel.get_transport()
            raise CommandTimeout(self.name, command, deadline.timeout_s, out, err)
        if shell.channel.get_transport() is self._transport:
            self._idle.append(shell)
        return Completed(command, submitted.returncode, out, err)

    def _begins(self, shell: RemoteShell, submitted: Command, deadline: Deadline) -> bool:
        """Whether the guest says, in the time that a line has for it, that the command begins."""
        first = Deadline.after(self._patience_s(deadline))

        def begun() -> bool:
            return submitted.begun or shell.answered(submitted)

        self._listen(shell.channel, submitted, lambda: begun() or first.expired, deadline)
        return begun()

    def _give_up_guestfwd(self, why: str) -> bool:
        """Go on over a connection, if there is a line, and only one command: others would end with it."""
        with self._replacing:  # Nobody else begins one meanwhile.
            if self._guestfwd is None or not self._is_alone:
                return False
            self.guestfwd_lost(why)
            self._reconnect()
            return True

    def _elsewhere(
        self, shell: RemoteShell, submitted: Command, command: str, deadline: Deadline
    ) -> RemoteShell:
        """A shell over the new connection, for the same command, if the silent shell has not begun it."""
        giving_up = Deadline.after(self._timeout_s)
        try:
            last = self._converse(self._open(giving_up), shell.give_up_command, b"", giving_up)
        except CommandTimeout:
            raise EOFError("its session fell silent, and nobody knows whether the command ran") from None
        if last.returncode != 0 or last.stdout.strip() != str(submitted.number - 1):
            raise EOFError("its session fell silent, and the command may have run")
        if deadline.expired:
            raise CommandTimeout(self.name, command, deadline.timeout_s, "", "")
        return self._new_shell(deadline)

    def _listen(
        self, channel: paramiko.Channel, submitted: Command, ended: Callable[[], bool], deadline: Deadline
    ) -> None:
        listen(channel, submitted.out, submitted.err, ended, deadline=deadline, watch=self._watch)

    def _converse(
        self, channel: paramiko.Channel, command: str, stdin: bytes, deadline: Deadline
    ) -> Completed:
        """Run a command on a channel of its own."""
        self._exec(channel, command, deadline)
        if not stdin:
            channel.shutdown_write()
        out, err = bytearray(), bytearray()
        ended = listen(
            channel, out, err, lambda: has_ended(channel), deadline=deadline, watch=self._watch, stdin=stdin
        )
        status = channel.recv_exit_status() if ended else None
        channel.close()
        if status is None:
            self._doubtful = channel.get_transport()
            raise CommandTimeout(self.name, command, deadline.timeout_s, text(out), text(err))
        return Completed(command, status, text(out), text(err))

    def interact(self, command: str) -> int:
        """Run ``command`` on a terminal of its own in the guest, tied to ours; returns its exit status.

        :raises ChannelLost: when the connection breaks.
        """
        try:
            channel = self._transport.open_session()
            columns, lines = terminal.window()
            channel.get_pty(os.environ.get("TERM", "vt100"), columns, lines)
            channel.exec_command(command)
            with terminal.raw(sys.stdin.fileno()):
                terminal.relay(channel)
            return channel.recv_exit_status()
        except (OSError, EOFError, paramiko.SSHException) as exc:
            raise ChannelLost(f"the SSH connection to the guest broke: {exc}") from None

    def freeze(self) -> SavedSession:
        """The session as the guest remembers it now, for a :class:`GuestfwdSocket` to it later."""
        assert self._guestfwd is not None, "the session does not go over a line"
        return self._guestfwd.freeze()

    def move(self, path: Path, *, port: Port, watch: Watch) -> bool:
        """The guest goes on in another QEMU, or in its first: keep the session, if it can be kept.

        :param path: that QEMU's socket for the line. :param port: see above. :param watch: see above.
        :returns: whether it was kept: it goes over a line, and no command is running. If it was lost now,
            :attr:`resumed` says why.
        """
        sound = self._transport.is_active() and self._doubtful is not self._transport
        if self._guestfwd is None:
            return False
        if self._running or not sound:
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
        """See :meth:`harness.channel.Channel.close`; a command that is running elsewhere is lost."""
        self._closed = True
        _close(self._transport)


def _dial(port: int) -> socket.socket:
    """A connection that sends each packet at once: a command's last one else waits 40 ms for QEMU's ACK."""
    connection = socket.create_connection((HOST, port), timeout=_BANNER_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


#: What a connection may fail with, be it a line's or one of its own.
_CONNECTION_ERRORS = (OSError, EOFError, paramiko.SSHException)


def _is_of_the_guestfwd_socket(exc: BaseException) -> bool:
    """Whether it tells of the line alone; the watch raises what is worse, and so does an error of ours."""
    return isinstance(exc, (ChannelLost, WaitTimeout, *_CONNECTION_ERRORS))


def _raise_own(
    exc: BaseException, transport: paramiko.Transport | None, guestfwd: GuestfwdSocket | None
) -> None:
    """Raise an error of our own (a ``TypeError``, say) that ``exc`` came of, or that ended ``transport``.

    paramiko calls a line, and what is in :mod:`harness.channel.handshake`, in a thread of its own: what that
    raises ends the transport, or comes back inside an error of paramiko's.
    """
    if guestfwd is not None and guestfwd.own_error is not None:
        raise guestfwd.own_error
    ended_by = transport.get_exception() if transport is not None else None
    for link in (*_chain(exc), *_chain(ended_by)):
        if not isinstance(link, (HarnessError, *_CONNECTION_ERRORS)) and _is_raised_here(link):
            raise link


def _chain(exc: BaseException | None) -> Iterator[BaseException]:
    """An exception, and those that it came of."""
    while exc is not None:
        yield exc
        exc = exc.__cause__ or (None if exc.__suppress_context__ else exc.__context__)


def _is_raised_here(exc: BaseException) -> bool:
    """Whether the harness's own code raised it, and not a library's."""
    frames = [frame for frame, _ in traceback.walk_tb(exc.__traceback__)]
    return bool(frames) and str(frames[-1].f_globals.get("__name__", "")).startswith("harness.")


def _close(transport: paramiko.Transport | None) -> None:
    if transport is not None:
        with contextlib.suppress(*_CONNECTION_ERRORS):
            transport.close()
