"""Input and output of one SSH channel: a command's stdin, its two outputs, and its end."""

from __future__ import annotations

import select
from collections.abc import Callable

import paramiko

from harness.deadline import Deadline, Watch

_CHUNK = 65536


def exchange(
    channel: paramiko.Channel,
    out: bytearray,
    err: bytearray,
    ended: Callable[[], bool],
    *,
    deadline: Deadline,
    watch: Watch | None,
    stdin: bytes = b"",
) -> bool:
    """Send stdin and read both outputs of an SSH channel at the same time, until the command has ended.

    So neither side blocks because the other does not read.

    :param out: stdout is appended to it. :param err: stderr is appended to it.
    :param ended: whether the command has ended.
    :returns: True when ``ended`` returned true, False when the deadline expired.
    :raises EOFError: when the connection ended; also raises what ``ended`` and ``watch`` raise.
    """
    unsent = memoryview(stdin)
    for left_s in deadline.turns():
        if _all_received(channel, out, err, ended):
            return True
        if watch is not None:
            watch()
        if unsent and channel.send_ready():
            unsent = _send(channel, unsent)
        turn_s = min(0.01 if unsent else 0.05, left_s)
        if channel.eof_received:
            channel.status_event.wait(turn_s)
        else:  # The descriptor of the channel becomes readable on data, EOF and close.
            select.select([channel.fileno()], [], [], turn_s)
    return False


def has_ended(channel: paramiko.Channel) -> bool:
    """Whether the SSH channel's command has ended and all of its output has arrived.

    :raises EOFError: when the connection ended first (``exit_status_ready`` is then true as well).
    """
    over = channel.exit_status_ready() if channel.eof_received else channel.closed
    # Looked at afterwards, because the connection may end at any time.
    ended_early = channel.closed and channel.exit_status < 0
    if ended_early and not (channel.eof_received and _lives(channel.get_transport())):
        raise EOFError("the connection ended")
    return bool(over)


def _lives(transport: paramiko.Transport) -> bool:
    """Whether the connection has not ended. When it ends, its channels are closed before it is inactive."""
    return transport.is_active() and transport.saved_exception is None


def decode(data: bytearray) -> str:
    """Decode the output of an SSH channel as UTF-8; invalid bytes are replaced."""
    return data.decode("utf-8", "replace")


def _send(channel: paramiko.Channel, unsent: memoryview) -> memoryview:
    """Send a piece of stdin; returns what is left: nothing if the command has ended meanwhile."""
    try:
        unsent = unsent[channel.send(bytes(unsent[:_CHUNK])) :]
        if not unsent:
            channel.shutdown_write()
    except OSError:
        if not channel.closed:
            raise
        return unsent[:0]
    return unsent


def _all_received(
    channel: paramiko.Channel, out: bytearray, err: bytearray, ended: Callable[[], bool]
) -> bool:
    over = ended()
    _drain(channel, out, err)
    if over or not ended():
        return over
    _drain(channel, out, err)  # It ended meanwhile: read the rest.
    return True


def _drain(channel: paramiko.Channel, out: bytearray, err: bytearray) -> None:
    while channel.recv_ready():
        out += channel.recv(_CHUNK)
    while channel.recv_stderr_ready():
        err += channel.recv_stderr(_CHUNK)
