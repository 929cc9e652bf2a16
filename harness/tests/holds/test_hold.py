"""The witnesses of a hold, against a scripted QEMU."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.errors import GuestError, WaitTimeout
from harness.guest.lab import Lab
from harness.holds.hold import DATA, Held
from harness.holds.supervisor import Call, Rule, Rules
from harness.tests.fakes import World, world


@pytest.fixture
def w(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return world(tmp_path, monkeypatch)


@pytest.fixture
def rule(w: World) -> Rule:
    return Rule(frozenset(DATA), w.share.path)


@pytest.fixture
def held(w: World, rule: Rule) -> Held:
    lab = SimpleNamespace(machines=[w.machine], history=w.machine.history)
    return Held(cast(Lab, lab), Rules(w.machine.history), rule, w.share)


def a_call() -> Call:
    """One that a living thread makes."""
    return cast(Call, SimpleNamespace(tid=threading.get_native_id()))


def test_requests_that_are_in_flight_before_one_is_held(w: World, held: Held, rule: Rule) -> None:
    """QEMU counts a request as soon as it has it; its call is made by another thread, a moment later."""
    asked: list[int] = []

    def status(_: object) -> dict[str, Any]:
        asked.append(1)
        if len(asked) == 3:
            rule.held.append(a_call())
        return {"inuse": 24}

    w.qmp.on("x-query-virtio-queue-status", status)
    held.wait_in_flight(24)
    assert [entry.value for entry in w.notes("hold:inuse")] == [{"inuse": 24, "id": "share0"}]


def test_requests_of_which_none_is_ever_held(w: World, held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.holds.hold.CAUGHT_TIMEOUT_S", 10.0)
    w.qmp.on("x-query-virtio-queue-status", {"inuse": 24})
    with pytest.raises(WaitTimeout, match=r"24 request\(s\) of share0 in flight, and held"):
        held.wait_in_flight(24)


def test_a_held_call_whose_thread_is_gone(w: World, held: Held, rule: Rule) -> None:
    w.qmp.on("x-query-virtio-queue-status", {"inuse": 1})
    rule.held.append(cast(Call, SimpleNamespace(tid=2**22)))
    with pytest.raises(GuestError, match=r"^no request of share0 is held \(any more\)"):
        held.in_flight()


def test_a_held_call_that_is_no_request(w: World, held: Held, rule: Rule) -> None:
    w.qmp.on("x-query-virtio-queue-status", {"inuse": 0})
    rule.held.append(a_call())
    with pytest.raises(GuestError, match=r"^no request of share0 is in flight: its virtqueue's inuse is 0"):
        held.in_flight()
