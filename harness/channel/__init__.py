"""Channels into QEMU and into the guest: bytes to typed replies.

SSH and the serial console satisfy one small protocol, so that whatever runs commands in a guest does not
care which of the two carries them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Completed:
    """A command that ended: its shell text, output, exit status (of a signal 128 or more, or negative)."""

    argv: str
    returncode: int
    stdout: str
    stderr: str


class Channel(Protocol):
    """A way to run commands in a guest."""

    name: str

    def run(self, command: str, *, timeout_s: float, stdin: bytes = b"") -> Completed:
        """Run a shell command as root; a non-zero exit status is no error here.

        What it leaves running must not write to its outputs: that may be taken for a later command's.

        :raises CommandTimeout: when it did not end within ``timeout_s`` seconds.
        :raises ChannelLost: when the channel broke.
        """
        ...

    def close(self) -> None:
        """Let go of it; idempotent, never raises."""
        ...
