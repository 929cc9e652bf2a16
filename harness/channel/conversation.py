"""What is said on one SSH channel: a command's stdin, both its outputs, and when it has ended."""

from __future__ import annotations

import select
from collections.abc import Callable

import paramiko

from harness.deadline import Deadline, Watch

_CHUNK = 65536


def listen(
    channel: paramiko.Channel,
    out: bytearray,
    err: bytearray,
    ended: Callable[[], bool],
    *,
    deadline: Deadline,
    watch: Watch | None,
    stdin: bytes = b"",
) -> bool:
    """Feed stdin and drain both outputs at once, so that neither side ever waits for the other.

    :returns: whether it has ``ended``; else the deadline expired.
    :raises EOFError: when the connection did, and what ``ended`` and ``watch`` raise.
    """
    unsent = memoryview(stdin)
    while not _said_all(channel, out, err, ended):
        if deadline.expired:
            return False
        if watch is not None:
            watch()
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


def has_ended(channel: paramiko.Channel) -> bool:
    """Whether the channel's command has ended, and everything that it said has arrived.

    :raises EOFError: when the connection ended first (``exit_status_ready`` is true of such a channel too).
    """
    ended_early = channel.closed and channel.exit_status < 0
    if ended_early and not (channel.eof_received and channel.get_transport().is_active()):
        raise EOFError("the connection ended")
    if channel.eof_received:
        return bool(channel.exit_status_ready())
    return bool(channel.closed)


def text(data: bytearray) -> str:
    """Output as text, whatever bytes it has."""
    return data.decode("utf-8", "replace")


def _said_all(channel: paramiko.Channel, out: bytearray, err: bytearray, ended: Callable[[], bool]) -> bool:
    over = ended()
    _drain(channel, out, err)
    if over or not ended():
        return over
    _drain(channel, out, err)  # It ended just now: with this, too.
    return True


def _drain(channel: paramiko.Channel, out: bytearray, err: bytearray) -> None:
    while channel.recv_ready():
        out += channel.recv(_CHUNK)
    while channel.recv_stderr_ready():
        err += channel.recv_stderr(_CHUNK)
