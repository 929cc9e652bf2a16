"""The terminal of the user, connected to one in the guest (``harness shell``)."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import tty
from collections.abc import Iterator

import paramiko

_CHUNK = 65536


@contextlib.contextmanager
def raw(descriptor: int) -> Iterator[None]:
    """Put the user's terminal into raw mode during the block: it passes on every key, Ctrl-C included."""
    before = termios.tcgetattr(descriptor)
    try:
        tty.setraw(descriptor)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def relay(channel: paramiko.Channel) -> None:
    """Pass bytes and window changes of the user's terminal to the guest until the guest closes its side."""
    keyboard, screen = sys.stdin.fileno(), sys.stdout.fileno()
    size = window()
    while True:
        readable, _, _ = select.select([channel, keyboard], [], [], 0.25)
        if channel in readable:
            data = channel.recv(_CHUNK)
            if not data:
                return
            os.write(screen, data)
        if keyboard in readable:
            channel.sendall(os.read(keyboard, _CHUNK))
        if window() != size:
            size = window()
            channel.resize_pty(size.columns, size.lines)


def window() -> os.terminal_size:
    """The size of the user's terminal. (``shutil.get_terminal_size`` prefers COLUMNS and LINES.)"""
    try:
        return os.get_terminal_size(sys.stdin.fileno())
    except OSError:
        return os.terminal_size((80, 24))
