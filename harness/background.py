"""Calls that run in a background thread, and a register of the threads that live as long as the process."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable
from typing import Generic, TypeVar
from weakref import WeakSet

from harness.errors import WaitTimeout

T = TypeVar("T")
_process_wide: WeakSet[threading.Thread] = WeakSet()


def mark_process_wide(thread: threading.Thread) -> None:
    """Declare that ``thread`` serves all tests of this process, so that no test reports it as a leftover."""
    _process_wide.add(thread)


def process_wide_threads() -> set[threading.Thread]:
    """The threads that were registered with :func:`mark_process_wide`."""
    return set(_process_wide)


class Background(Generic[T]):
    """A call that runs in its own thread.

    The thread is a daemon: a call that never returns does not keep the process alive.
    """

    def __init__(self, call: Callable[[], T]) -> None:
        self._future: concurrent.futures.Future[T] = concurrent.futures.Future()
        name = f"background: {getattr(call, '__qualname__', repr(call))}"
        thread = threading.Thread(target=self._run, args=(call,), name=name, daemon=True)
        thread.start()

    def _run(self, call: Callable[[], T]) -> None:
        try:
            self._future.set_result(call())
        except BaseException as exc:
            self._future.set_exception(exc)

    @property
    def done(self) -> bool:
        """Whether the call in the background thread has ended."""
        return self._future.done()

    def wait(self, *, timeout_s: float = 60.0) -> T:
        """Wait for the background call, and return its result; an exception of the call is raised again.

        :raises WaitTimeout: when the call does not end within ``timeout_s`` seconds.
        """
        try:
            return self._future.result(timeout_s)
        except concurrent.futures.TimeoutError:
            if self._future.done():  # It ended just now, or it raised a TimeoutError itself.
                return self._future.result()
            raise WaitTimeout("a background call", last=None, elapsed_s=timeout_s) from None
