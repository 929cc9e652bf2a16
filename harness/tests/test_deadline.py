from __future__ import annotations

import itertools
import threading
import time
from pathlib import Path

import pytest

from harness.deadline import Deadline, TimeoutScale, check_during, wait_until
from harness.errors import QemuDied, WaitTimeout


def test_the_value_that_was_awaited_is_returned() -> None:
    values = iter([None, 0, "", "there"])
    assert wait_until(lambda: next(values), what="it", timeout_s=60, interval_s=0) == "there"


def test_a_timeout_says_what_was_awaited_and_seen(tmp_path: Path) -> None:
    seen = itertools.count()
    with pytest.raises(WaitTimeout) as caught:
        wait_until(lambda: next(seen) < 0, what="the impossible", timeout_s=0.05, artifacts=tmp_path)
    assert caught.value.last is False
    assert caught.value.elapsed_s >= 0.05
    expected = WaitTimeout("the impossible", last=False, elapsed_s=caught.value.elapsed_s, artifacts=tmp_path)
    assert str(caught.value) == str(expected)


def test_the_message_of_a_timeout(tmp_path: Path) -> None:
    error = WaitTimeout("the impossible", last=False, elapsed_s=0.052, artifacts=tmp_path)
    assert str(error).startswith("waited 0.1 s for the impossible; last seen: False; artefacts: ")


def test_a_deadline_of_zero_still_probes_once() -> None:
    assert wait_until(lambda: "now", what="it", timeout_s=0) == "now"


def test_the_watch_is_called_on_each_turn_and_after_the_probe() -> None:
    calls: list[str] = []

    def watch() -> None:
        calls.append("watch")
        if len(calls) > 4:
            raise QemuDied("it died")

    def probe() -> None:
        calls.append("probe")

    with pytest.raises(QemuDied):
        wait_until(probe, what="it", timeout_s=60, watch=watch, interval_s=0)
    assert calls == ["probe", "watch"] * 3


def test_a_wait_is_woken() -> None:
    """Long before the end of the interval, also by an event during the probe."""
    woken: list[bool] = []

    class Wake(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            woken.append(super().wait(timeout))
            return woken[-1]

    wake, looks = Wake(), itertools.count()

    def probe() -> bool:
        wake.set()
        return next(looks) == 3

    assert wait_until(probe, what="it", timeout_s=1000, interval_s=50, wake=wake)
    assert woken == [True] * 3


def test_a_wait_probes_again_without_being_woken() -> None:
    looks, wake = itertools.count(), threading.Event()
    assert wait_until(lambda: next(looks) == 3, what="it", timeout_s=60, interval_s=0.01, wake=wake)


def test_a_window_is_checked_at_both_ends() -> None:
    looks = itertools.count()
    assert check_during(0.5, lambda: next(looks) and None, interval_s=1) >= 0.5
    assert next(looks) == 2


def test_a_failing_check_ends_the_window() -> None:
    looks = itertools.count(1)

    def still() -> None:
        if next(looks) == 3:
            raise AssertionError("broken")

    with pytest.raises(AssertionError, match="broken"):
        check_during(60, still, interval_s=0)


def test_a_window_that_ends_early() -> None:
    looks = itertools.count()
    assert check_during(60, lambda: next(looks) and None, until=lambda: next(looks) > 4, interval_s=0) < 60


def test_a_timeout_scale_scales_and_a_deadline_runs_out() -> None:
    assert TimeoutScale(6).seconds(2.0) == 12.0
    assert TimeoutScale(6).host_seconds(2.0) == 2.0
    assert TimeoutScale(12, 2).host_seconds(2.0) == 4.0
    assert 60 < Deadline.after(1000).remaining_s <= 1000
    assert Deadline.after(0).expired
    assert Deadline.after(-1).remaining_s == 0.0


def test_a_wait_looks_once_more_after_a_deadline_that_passed_between_two_looks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = itertools.chain([0.0], itertools.repeat(0.5, 2), itertools.repeat(100.0))
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    assert list(Deadline.after(1).turns()) == [0.5, 0.0]


def test_the_turns_of_a_deadline_that_has_passed() -> None:
    assert list(Deadline.after(0).turns()) == [0.0]
