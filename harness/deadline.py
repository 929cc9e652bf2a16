"""Waiting, in one place: the only sleep of the project is in :func:`wait_until`.

A wait always has a deadline, says what it awaits, and looks at a *watch* on every turn: a function
that raises the real cause (QEMU died, the guest panicked) long before the deadline would.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from harness.errors import WaitTimeout

T = TypeVar("T")

#: Called on each turn of a wait; raises when waiting on is pointless.
Watch = Callable[[], None]


@dataclass(frozen=True)
class TimeoutScale:
    """How patient to be with a guest: seconds written for KVM, scaled for what really runs.

    :param factor: 1.0 for hardware virtualisation; larger for TCG, whose guests are slower.
    """

    factor: float = 1.0

    def seconds(self, timeout_s: float) -> float:
        """Scale ``timeout_s`` (seconds) by the factor."""
        return timeout_s * self.factor


@dataclass(frozen=True)
class Deadline:
    """A moment on the monotonic clock, made by :meth:`after`."""

    started_s: float
    timeout_s: float

    @classmethod
    def after(cls, timeout_s: float) -> Deadline:
        """A deadline ``timeout_s`` seconds from now."""
        return cls(time.monotonic(), timeout_s)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the deadline was made."""
        return time.monotonic() - self.started_s

    @property
    def remaining_s(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self.timeout_s - self.elapsed_s)

    @property
    def expired(self) -> bool:
        """Whether no time is left."""
        return self.remaining_s <= 0.0


def wait_until(
    probe: Callable[[], T | None],
    *,
    what: str,
    timeout_s: float,
    watch: Watch | None = None,
    interval_s: float = 0.02,
    wake: threading.Event | None = None,
    artifacts: Path | None = None,
) -> T:
    """Call ``probe`` until it returns something true, and return that.

    :param what: the condition in words, for the timeout's message.
    :param timeout_s: seconds from now; the probe is called at least once, and once more at the end.
    :param watch: raises the real cause when waiting on is pointless.
    :param interval_s: seconds between two probes.
    :param wake: set by whoever changes what is probed: the next probe is at once then. It is cleared here.
    :raises WaitTimeout: with ``what``, the last value seen, the elapsed time and ``artifacts``.
    """
    deadline = Deadline.after(timeout_s)
    pause = time.sleep if wake is None else wake.wait
    while True:
        last_turn = deadline.expired
        if wake is not None:
            wake.clear()  # First: what is set while the probe looks is not missed.
        value = probe()
        if value:
            return value
        if watch is not None:
            watch()
        if last_turn:
            raise WaitTimeout(what, last=value, elapsed_s=deadline.elapsed_s, artifacts=artifacts)
        pause(min(interval_s, max(deadline.remaining_s, 0.001)))


def hold_for(
    window_s: float,
    still: Callable[[], object],
    *,
    until: Callable[[], bool] = lambda: False,
    interval_s: float = 0.1,
) -> float:
    """Call ``still`` all through a window, for the claim that something does *not* happen.

    :param window_s: the window's length in seconds.
    :param still: raises when the claim is broken; called at least at the start and at the end.
    :param until: ends the window early: there is nothing left to watch for.
    :returns: the seconds that were really watched.
    """
    deadline = Deadline.after(window_s)
    while not deadline.expired and not until():
        still()
        time.sleep(min(interval_s, max(deadline.remaining_s, 0.001)))
    still()
    return deadline.elapsed_s
