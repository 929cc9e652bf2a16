"""What happens to a channel between two looks at it."""

from __future__ import annotations

import os
import threading
from typing import Any, cast

import paramiko
import pytest

from harness.channel.ssh_channel import exchange, has_ended
from harness.deadline import Deadline


class _Transport:
    active = True
    saved_exception: Exception | None = None

    def is_active(self) -> bool:
        return self.active


class _Channel:
    """A channel whose command has neither ended nor printed anything."""

    def __init__(self) -> None:
        self.closed = self.eof_received = False
        self.exit_status = -1
        self.transport = _Transport()
        self.status_event = threading.Event()
        self.received = b""

    def get_transport(self) -> _Transport:
        return self.transport

    def exit_status_ready(self) -> bool:
        return self.closed or self.exit_status >= 0

    def recv_ready(self) -> bool:
        return bool(self.received)

    def recv(self, _: int) -> bytes:
        received, self.received = self.received, b""
        return received

    def recv_stderr_ready(self) -> bool:
        return False

    def send_ready(self) -> bool:
        return True

    def fileno(self) -> int:
        return _READABLE


_READABLE = os.open(os.devnull, os.O_RDONLY)


def _exchange(channel: _Channel, out: bytearray, deadline: Deadline, **options: Any) -> bool:
    faked = cast(paramiko.Channel, channel)
    options.setdefault("ended", lambda: has_ended(faked))
    return exchange(faked, out, bytearray(), options.pop("ended"), deadline=deadline, watch=None, **options)


def test_a_command_that_ends_before_it_has_read_its_stdin() -> None:
    class Ends(_Channel):
        """Its command ends between the looks at its end and at its stdin."""

        def send(self, _: bytes) -> int:
            self.closed = self.eof_received = True
            self.exit_status = 0
            raise OSError("Socket is closed")

    assert _exchange(Ends(), bytearray(), Deadline.after(60), stdin=b"unread")


def test_a_stdin_that_cannot_be_sent() -> None:
    class Stuck(_Channel):
        def send(self, _: bytes) -> int:
            raise TimeoutError("not sent")

    with pytest.raises(TimeoutError, match="not sent"):
        _exchange(Stuck(), bytearray(), Deadline.after(60), stdin=b"x")


def test_a_connection_that_ends_between_two_looks_at_the_channel() -> None:
    class Breaks(_Channel):
        """Its outputs are complete, and its exit status has yet to come."""

        def exit_status_ready(self) -> bool:
            self.closed, self.transport.active = True, False
            return super().exit_status_ready()

    channel = Breaks()
    channel.eof_received = True
    with pytest.raises(EOFError):
        has_ended(cast(paramiko.Channel, channel))


def test_a_connection_whose_end_is_under_way() -> None:
    """paramiko (``Transport.run``) first closes the channels, which wakes this side up."""
    channel = _Channel()
    channel.closed = channel.eof_received = True
    channel.transport.saved_exception = EOFError()
    with pytest.raises(EOFError):
        has_ended(cast(paramiko.Channel, channel))


def test_a_command_that_a_signal_ended() -> None:
    """sshd closes its channel without an exit status; the connection lives."""
    channel = _Channel()
    channel.closed = channel.eof_received = True
    assert has_ended(cast(paramiko.Channel, channel))


def test_what_comes_before_the_deadline_is_not_missed_because_it_was_looked_for_earlier() -> None:
    class Expires(Deadline):
        """It expires when it is asked; the command has ended just before."""

        @property
        def expired(self) -> bool:
            channel.closed = channel.eof_received = True
            channel.exit_status, channel.received = 0, b"late"
            return True

    channel, out = _Channel(), bytearray()
    assert _exchange(channel, out, Expires.after(0))
    assert out == b"late"
