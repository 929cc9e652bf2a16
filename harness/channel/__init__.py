"""Channels to QEMU and to the guest: they turn bytes into typed replies.

SSH and the serial console implement one protocol, :class:`Channel`, so that callers that run commands in a
guest do not depend on which of the two is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Completed:
    """A command that ended: shell text, outputs, exit status (128 or more, or negative, for a signal)."""

    argv: str
    returncode: int
    stdout: str
    stderr: str


class Channel(Protocol):
    """A way to run commands in a guest."""

    name: str

    def run(self, command: str, *, timeout_s: float, stdin: bytes = b"") -> Completed:
        """Run a shell command as root over this channel, and return its result, whatever its exit status is.

        Background processes of the command must not write to its outputs: such output may be attributed to a
        later command.

        :raises CommandTimeout: when it did not end within ``timeout_s`` seconds.
        :raises ChannelLost: when the channel broke.
        """
        ...

    def close(self) -> None:
        """Close the channel; idempotent, never raises."""
        ...
