"""A call that runs on while its caller watches something else; and for whom each thread works.

Several tests' labs can be open at once (the next test's guest is started while this test runs), so whoever
looks for threads that stayed behind has to know whose they are. A thread that is made here, and each that is
given to :func:`inherit`, works for whom the thread that made it works for.
"""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

from harness.errors import WaitTimeout

T = TypeVar("T")
#: Whom a thread works for that is no test's: it lasts as long as the process.
PROCESS = "process"
_lock = threading.Lock()
_owners: WeakKeyDictionary[threading.Thread, object] = WeakKeyDictionary()


def owner_of(thread: threading.Thread) -> object | None:
    """Whom ``thread`` works for; ``None`` when nobody said so."""
    with _lock:
        return _owners.get(thread)


def own(thread: threading.Thread, owner: object | None) -> None:
    """Let ``thread`` work for ``owner``."""
    with _lock:
        if owner is None:
            _owners.pop(thread, None)
        else:
            _owners[thread] = owner


def inherit(thread: threading.Thread) -> None:
    """Let ``thread`` work for whom the calling thread works for."""
    own(thread, owner_of(threading.current_thread()))


@contextmanager
def working_for(owner: object) -> Iterator[None]:
    """In the block the calling thread, and all that it makes, works for ``owner``."""
    here = threading.current_thread()
    before = owner_of(here)
    own(here, owner)
    try:
        yield
    finally:
        own(here, before)


class Background(Generic[T]):
    """A call that runs in a thread of its own while the caller watches something else.

    The thread is a daemon: a call that never returns does not keep the process alive.
    """

    def __init__(self, call: Callable[[], T]) -> None:
        self._future: concurrent.futures.Future[T] = concurrent.futures.Future()
        name = f"background: {getattr(call, '__qualname__', repr(call))}"
        thread = threading.Thread(target=self._run, args=(call,), name=name, daemon=True)
        inherit(thread)
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
