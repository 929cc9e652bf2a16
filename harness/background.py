"""A call that runs while its caller watches something else; and threads that last as long as the process."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable
from typing import Generic, TypeVar
from weakref import WeakSet

from harness.errors import WaitTimeout

T = TypeVar("T")
_lasting: WeakSet[threading.Thread] = WeakSet()


def lasts(thread: threading.Thread) -> None:
    """Declare that ``thread`` serves all tests of this process: none of them leaves it behind."""
    _lasting.add(thread)


def lasting() -> set[threading.Thread]:
    """The threads that :func:`lasts` was told of."""
    return set(_lasting)


class Background(Generic[T]):
    """A call that runs in a thread of its own while the caller watches something else.

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
        """Whether the call has ended."""
        return self._future.done()

    def wait(self, *, timeout_s: float = 60.0) -> T:
        """What the call returned; what it raised is raised.

        :raises WaitTimeout: when it does not end.
        """
        try:
            return self._future.result(timeout_s)
        except concurrent.futures.TimeoutError:
            if self._future.done():  # It ended just now; or it raised such an error itself.
                return self._future.result()
            raise WaitTimeout("a background call", last=None, elapsed_s=timeout_s) from None
