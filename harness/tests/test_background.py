from __future__ import annotations

import concurrent.futures
import threading

import pytest

from harness.background import Background
from harness.errors import WaitTimeout


def test_it_runs_while_the_caller_goes_on() -> None:
    may_end = threading.Event()
    call = Background(lambda: may_end.wait(60) and "result")
    assert not call.done
    with pytest.raises(WaitTimeout, match="a background call"):
        call.wait(timeout_s=0.05)
    may_end.set()
    assert call.wait() == "result"
    assert call.done


@pytest.mark.parametrize("error", [KeyError("x"), concurrent.futures.TimeoutError("its own")])
def test_what_it_raises_is_raised(error: Exception) -> None:
    def fail() -> None:
        raise error

    call = Background(fail)
    with pytest.raises(type(error)) as raised:
        call.wait()
    assert raised.value is error
