"""Waiting with a deadline. No other module of the project sleeps.

Every wait has a deadline and a description of the awaited condition. It calls a *watch* on every turn: a
function that raises the root cause (QEMU died, the guest panicked) as soon as it is known, so that the wait
need not run until its deadline.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from harness.errors import WaitTimeout

T = TypeVar("T")

#: Called on each turn of a wait; raises the root cause when the condition can no longer become true.
Watch = Callable[[], None]


@dataclass(frozen=True)
class TimeoutScale:
    """A factor for timeouts. Timeouts in the code are for a guest under KVM; slower guests get longer ones.

    :param factor: 1.0 for hardware virtualisation; larger for TCG. It includes ``host_factor``.
    :param host_factor: for what does not depend on the guest's speed: more than 1.0 for a slow host.
    """

    factor: float = 1.0
    host_factor: float = 1.0

    def seconds(self, timeout_s: float) -> float:
        """``timeout_s`` (seconds) times the factor."""
        return timeout_s * self.factor

    def host_seconds(self, timeout_s: float) -> float:
        """``timeout_s`` (seconds) times the host's factor: for what QEMU does without the guest."""
        return timeout_s * self.host_factor


@dataclass(frozen=True)
class Deadline:
    """A point in time on the monotonic clock; made by :meth:`after`."""

    started_s: float
    timeout_s: float

    @classmethod
    def after(cls, timeout_s: float) -> Deadline:
        """Return a deadline ``timeout_s`` seconds from now."""
        return cls(time.monotonic(), timeout_s)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the deadline was created."""
        return time.monotonic() - self.started_s

    @property
    def remaining_s(self) -> float:
        """Seconds left of the deadline, never negative."""
        return max(0.0, self.timeout_s - self.elapsed_s)

    @property
    def expired(self) -> bool:
        """Whether no time is left of the deadline."""
        return self.remaining_s <= 0.0

    def turns(self) -> Iterator[float]:
        """The turns of a wait, one look at the condition in each: yields the seconds left before each look.

        The last turn begins at or after the deadline: this thread may not run for a while, so that a look
        which began earlier does not tell whether the condition was met in time.
        """
        last_turn = False
        while not last_turn:
            last_turn = self.expired  # Before the look.
            yield self.remaining_s


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
    """Call ``probe`` until it returns a true value, and return that value.

    :param what: a description of the condition, for the message of the timeout.
    :param timeout_s: seconds from now; the probe is called at least once, and once more at the deadline.
    :param watch: raises the root cause when the condition can no longer become true.
    :param interval_s: seconds between two probes.
    :param wake: an event that is set when the probed state changes; the next probe follows at once. It is
        cleared here.
    :raises WaitTimeout: with ``what``, the last value seen, the elapsed time and ``artifacts``.
    """
    deadline = Deadline.after(timeout_s)
    pause = time.sleep if wake is None else wake.wait
    value: T | None = None
    for _ in deadline.turns():
        if wake is not None:
            wake.clear()  # Before the probe, so that a change during the probe is not missed.
        value = probe()
        if value:
            return value
        if watch is not None:
            watch()
        pause(min(interval_s, deadline.remaining_s))
    raise WaitTimeout(what, last=value, elapsed_s=deadline.elapsed_s, artifacts=artifacts)


def check_during(
    window_s: float,
    check: Callable[[], object],
    *,
    until: Callable[[], bool] = lambda: False,
    interval_s: float = 0.1,
) -> float:
    """Call ``check`` repeatedly during a time window, to assert that something does *not* happen.

    :param window_s: the length of the window in seconds.
    :param check: raises when the assertion fails; called at least at the start and at the end.
    :param until: ends the window early when it returns true.
    :returns: the length of the observed window in seconds.
    """
    deadline = Deadline.after(window_s)
    while not deadline.expired and not until():
        check()
        time.sleep(min(interval_s, max(deadline.remaining_s, 0.001)))
    check()
    return deadline.elapsed_s
