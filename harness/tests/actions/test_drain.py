from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.actions import drain
from harness.actions.drain import happens_while
from harness.errors import GuestError, QemuDied, WaitTimeout
from harness.qemu.machine import Machine
from harness.tests.fakes import ScriptedPending, World


def _happens(world: World, *happened: bool, **options: Any) -> bool:
    answers: Iterator[bool] = iter(happened)
    last = happened[-1]
    machine = cast(Machine, world.machine)
    options.setdefault("while_", lambda: None)
    return happens_while(machine, lambda: next(answers, last), what="the reset", **options)


@pytest.fixture(autouse=True)
def soon(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drain, "TRIGGER_TIMEOUT_S", 5.0)
    world.qmp.on("query-status", {})


def test_a_qemu_that_drains_answers_nothing(world: World) -> None:
    world.qmp.stalled = True
    assert not _happens(world, False, window_s=0.01)
    assert world.qmp.commands == ["query-status"]


def test_a_qemu_that_does_not_wait(world: World) -> None:
    world.qmp.stalled = True
    assert _happens(world, False, False, True)


def test_the_window_restarts_with_each_answer(world: World) -> None:
    """A QEMU that answers has not been reached by the trigger yet, so the window cannot have begun."""

    def answer(_: Any) -> dict[str, Any]:
        world.qmp.stalled = len(world.qmp.commands) >= 3
        return {}

    world.qmp.on("query-status", answer)
    assert not _happens(world, False, window_s=0.01)
    assert world.qmp.commands == ["query-status"] * 3


@dataclass
class _Window:
    expired: bool = False


class _AnsweredLate:
    """An answer that comes, with the end of the window, right after the harness has looked for it."""

    def __init__(self, windows: list[_Window]) -> None:
        self._windows, self._answered = windows, False

    @property
    def done(self) -> bool:
        before, self._answered = self._answered, True
        self._windows[0].expired = True
        return before


def test_an_answer_that_comes_while_the_harness_does_not_run_restarts_the_window(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows: list[_Window] = []

    def after(_: float) -> _Window:
        windows.append(_Window(expired=len(windows) > 0))
        return windows[-1]

    pending = iter([_AnsweredLate(windows), ScriptedPending(None, done=False)])
    monkeypatch.setattr(world.qmp, "request", lambda _: next(pending))
    monkeypatch.setattr(drain, "Deadline", SimpleNamespace(after=after))
    assert not _happens(world, False)
    assert len(windows) == 2


def test_a_trigger_that_never_reaches_qemu(world: World) -> None:
    world.impatient()
    with pytest.raises(WaitTimeout, match="QEMU to act on the reset"):
        _happens(world, False)


def test_an_access_that_returned_has_reached_qemu(world: World) -> None:
    assert not _happens(world, False, returned=lambda: True, window_s=0.01)


def test_a_qemu_that_dies(world: World) -> None:
    world.qmp.stalled = True
    world.machine.death = QemuDied("QEMU 'source' was killed by SIGSEGV")
    with pytest.raises(QemuDied):
        _happens(world, False, window_s=1000)


@pytest.mark.parametrize("fails_at", [1, 2])
def test_the_witness_is_asked_at_both_ends(world: World, fails_at: int) -> None:
    world.qmp.stalled = True
    calls: list[None] = []

    def witness() -> None:
        calls.append(None)
        if len(calls) == fails_at:
            raise GuestError("no longer held")

    with pytest.raises(GuestError, match="no longer held"):
        _happens(world, False, while_=witness, window_s=0.01)
