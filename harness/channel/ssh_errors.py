"""Errors of an SSH connection: which are the connection's own, and which are the harness's behind them."""

from __future__ import annotations

import traceback
from collections.abc import Iterator

import paramiko

from harness.channel.guestfwd import GuestfwdSocket
from harness.errors import ChannelLost, HarnessError, WaitTimeout

#: The exceptions with which a connection can fail, over TCP or over the guestfwd socket.
CONNECTION_ERRORS = (OSError, EOFError, paramiko.SSHException)


def is_connection_error(exc: BaseException) -> bool:
    """Whether ``exc`` is a failure of the connection, and not an error from the watch or in the harness."""
    return isinstance(exc, (ChannelLost, WaitTimeout, *CONNECTION_ERRORS))


def raise_harness_error(
    exc: BaseException, transport: paramiko.Transport | None, guestfwd: GuestfwdSocket | None
) -> None:
    """Raise the error in the harness's own code (such as a ``TypeError``) behind ``exc`` or in ``transport``.

    paramiko calls the guestfwd socket and :mod:`harness.channel.handshake` in its own thread. An
    exception there ends the transport, or becomes the cause of one of paramiko's exceptions.
    """
    if guestfwd is not None and guestfwd.own_error is not None:
        raise guestfwd.own_error
    ended_by = transport.get_exception() if transport is not None else None
    for link in (*_chain(exc), *_chain(ended_by)):
        if not isinstance(link, (HarnessError, *CONNECTION_ERRORS)) and _is_raised_here(link):
            raise link


def _chain(exc: BaseException | None) -> Iterator[BaseException]:
    """An exception and the exceptions that caused it."""
    while exc is not None:
        yield exc
        exc = exc.__cause__ or (None if exc.__suppress_context__ else exc.__context__)


def _is_raised_here(exc: BaseException) -> bool:
    """Whether the code of the harness raised it, and not that of a library."""
    frames = [frame for frame, _ in traceback.walk_tb(exc.__traceback__)]
    return bool(frames) and str(frames[-1].f_globals.get("__name__", "")).startswith("harness.")
