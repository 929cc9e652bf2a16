"""The witnesses of a hold, against a scripted QEMU."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.errors import GuestError, SetupError, WaitTimeout
from harness.holds.hold import DATA, Held, Hold
from harness.holds.supervisor import Call, Rule, Rules, Supervisor
from harness.qemu.accel import Accel
from harness.qemu.machine import Machine
from harness.testbed import Cell, Testbed
from harness.tests.fakes import FakeMachine, World, machine, world


@pytest.fixture
def w(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return world(tmp_path, monkeypatch)


@pytest.fixture
def rule(w: World) -> Rule:
    return Rule(frozenset(DATA), w.share.path)


@pytest.fixture
def testbed(w: World) -> Testbed:
    return cast(
        Testbed, SimpleNamespace(machines=[w.machine], history=w.machine.history, attach=lambda _: None)
    )


@pytest.fixture
def rules(w: World) -> Rules:
    return Rules(w.machine.history)


@pytest.fixture
def held(w: World, testbed: Testbed, rules: Rules, rule: Rule) -> Held:
    return Held(testbed, rules, rule, w.share)


def a_call() -> Call:
    """One that a living thread makes."""
    return cast(Call, SimpleNamespace(tid=threading.get_native_id()))


def test_requests_that_are_in_flight_before_one_is_held(
    w: World, held: Held, rule: Rule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU counts a request as soon as it has it; its call is made by another thread, a moment later."""
    monkeypatch.setattr("harness.holds.hold.CAUGHT_TIMEOUT_S", 6000.0)  # The world is in a hurry.
    asked: list[int] = []

    def status(_: object) -> dict[str, Any]:
        asked.append(1)
        if len(asked) == 3:
            rule.held.append(a_call())
        return {"inuse": 24}

    w.qmp.on("x-query-virtio-queue-status", status)
    held.wait_in_flight(24)
    assert [entry.value for entry in w.notes("hold:inuse")] == [{"inuse": 24, "id": "share0"}]


def test_requests_of_which_none_is_ever_held(w: World, held: Held) -> None:
    w.qmp.on("x-query-virtio-queue-status", {"inuse": 24})
    w.impatient()
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


def test_a_hold_stays_with_the_machine_of_its_request_when_that_is_migrated(
    w: World, tmp_path: Path, testbed: Testbed, rules: Rules, held: Held, rule: Rule
) -> None:
    """The destination is the testbed's newest machine, and has no request in flight."""
    w.qmp.on("x-query-virtio-queue-status", {"inuse": 1})
    rules.add(rule)
    tid = threading.get_native_id()
    rules.decide(Call(w.machine.name, "preadv", tid, str(w.share.path), [], lambda answer: None))
    held.wait_caught()
    destination = machine(tmp_path, replace(w.machine.spec, name="destination-1"), w.machine.history)
    destination.qmp.on("x-query-virtio-queue-status", {"inuse": 0})
    testbed.machines.append(cast(Machine, destination))
    held.in_flight()
    assert destination.qmp.sent == []
    assert [entry.actor for entry in w.notes("hold:inuse")] == [w.machine.name] * 2


def test_a_hold_of_a_machine_that_is_given(w: World, tmp_path: Path, testbed: Testbed) -> None:
    """Of two that run, the older one; the other's calls continue."""
    destination = machine(tmp_path, replace(w.machine.spec, name="destination-1"), w.machine.history)
    testbed.machines.append(cast(Machine, destination))
    w.qmp.on("x-query-virtio-queue-status", {"inuse": 1})
    hold, went_on = Hold(testbed), []

    def call(by: FakeMachine) -> Call:
        tid = threading.get_native_id()
        return Call(by.name, "preadv", tid, str(w.share.path), [], lambda answer: went_on.append(by.name))

    with hold.requests(w.share, machine=cast(Machine, w.machine)) as held:
        hold._rules.decide(call(destination))
        assert (held.count, went_on) == (0, ["destination-1"])
        hold._rules.decide(call(w.machine))
        held.wait_caught()
    assert went_on == ["destination-1", w.machine.name]


def test_a_supervisor_that_failed_is_the_cause_of_a_request_that_is_never_held(
    w: World, held: Held, rules: Rules
) -> None:
    rules.report("source", "while it handled preadv", PermissionError("no"))
    with pytest.raises(SetupError, match=r"^the supervisor of 'source' failed while it handled preadv"):
        held.wait_caught()


@pytest.mark.parametrize("passing", [True, False])
def test_a_supervisor_that_failed_fails_the_block(w: World, testbed: Testbed, passing: bool) -> None:
    """Whatever the block itself came to."""
    hold = Hold(testbed)

    def use() -> None:
        with hold.requests(w.share):
            hold._rules.report("source", "while it handled preadv", PermissionError("no"))
            assert passing, "a symptom"

    with pytest.raises(SetupError, match=r"^the supervisor of 'source' failed"):
        use()


def test_a_slow_host_has_longer_to_end_a_supervisor(
    testbed: Testbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.holds.probe.require_holds", lambda: None)
    testbed.cell = cast(Cell, SimpleNamespace(accel=Accel("tcg", "", host_factor=3.0)))
    allowed_s: list[float] = []
    hold = Hold(testbed)
    hold._supervisors = [cast(Supervisor, SimpleNamespace(join=allowed_s.append))]
    hold.close()
    assert allowed_s == [15.0]
