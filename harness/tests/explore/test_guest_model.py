"""The model of a Linux guest: preconditions, and what the steps change."""

from __future__ import annotations

import pytest

from harness.explore.guest_model import TABLE, GuestAlphabet, GuestState
from harness.explore.guest_steps import PERFORM
from harness.explore.program import ShareKind, Step
from harness.guarantees import GUARANTEES


def step(do: str, value: str | None = None, share: int | None = 0) -> Step:
    return Step(do=do, share=share, value=value)


PLUG, MOUNT, UMOUNT, OPEN, CLOSE = map(step, ("plug", "mount", "umount", "open", "close"))
DEL, EJECT, LAZY, HOLD = step("device_del"), step("eject"), step("umount_lazy"), step("hold", "read")
RESET, SAVE, LOAD, MIGRATE, STOP, CONT = (
    step(do, share=None) for do in ("system_reset", "savevm", "loadvm", "migrate", "stop", "cont")
)


UNBIND, BIND, ATTACH, RELEASE = step("unbind"), step("bind"), step("hold", "attach"), step("release")


def after(*steps: Step, shares: int = 1) -> GuestState:
    state = GuestAlphabet().start((ShareKind(),) * shares)
    for one in steps:
        state = state.after(one)
    return state


def test_every_step_can_be_performed_and_asserts_a_guarantee() -> None:
    assert set(TABLE.actions) == set(PERFORM)
    assert set(TABLE.guarantees.values()) <= set(GUARANTEES)


def test_what_is_possible_can_be_done() -> None:
    level = {after(shares=2)}
    for _ in range(4):
        for state in level:
            assert list(state.possible()) == list(state.possible())
        level = {state.after(one) for state in level for one in state.possible()}
    assert len(level) > 100


@pytest.mark.parametrize(
    ("state", "one"),
    [
        (after(PLUG), PLUG),
        (after(PLUG), UMOUNT),
        (after(PLUG, MOUNT, OPEN), UMOUNT),
        (after(PLUG, MOUNT), LAZY),
        (after(PLUG, MOUNT, OPEN, LAZY), MOUNT),
        (after(PLUG, STOP), MOUNT),
        (after(PLUG, MOUNT, HOLD), UMOUNT),
        (after(PLUG, EJECT), PLUG),
        (after(PLUG, UNBIND), MOUNT),
        (after(PLUG, UNBIND), UNBIND),
        (after(PLUG, MOUNT), UNBIND),
        (after(PLUG, ATTACH), MOUNT),
        (after(PLUG, ATTACH), DEL),
        (after(PLUG, STOP, DEL), MIGRATE),
        (after(PLUG, MOUNT, HOLD), step("reboot", share=None)),
        (after(PLUG), step("fly")),
    ],
)
def test_an_impossible_step(state: GuestState, one: Step) -> None:
    with pytest.raises(ValueError, match="is not possible here"):
        state.after(one)


def test_device_del_waits_for_the_last_user() -> None:
    leaving = after(PLUG, MOUNT, OPEN, DEL)
    assert leaving.shares[0].leaving
    detached = leaving.after(LAZY)
    assert detached.shares[0].plugged
    assert detached.blocked
    assert not detached.after(CLOSE).shares[0].plugged
    assert not after(PLUG, MOUNT, DEL, UMOUNT).shares[0].plugged
    assert not after(PLUG, DEL).shares[0].plugged


def test_a_detached_mount_blocks_until_its_file_is_closed() -> None:
    detached = after(PLUG, MOUNT, OPEN, LAZY)
    assert detached.blocked
    assert detached.after(MIGRATE) == detached.after(SAVE) == detached
    closed = detached.after(CLOSE)
    assert not closed.blocked
    assert closed.shares[0].plugged


def test_no_other_hotplug_while_a_device_waits_to_leave() -> None:
    possible = set(after(PLUG, MOUNT, DEL, shares=2).possible())
    assert step("plug", share=1) not in possible
    assert UMOUNT in possible


def test_a_reset_ends_what_uses_a_share_and_removes_what_was_to_leave() -> None:
    reset = after(PLUG, MOUNT, OPEN, RESET)
    assert reset == after(PLUG)
    assert after(PLUG, MOUNT, DEL, RESET) == after()


def test_after_a_forced_eject_only_a_reset_gives_the_share_back() -> None:
    ejected = after(PLUG, MOUNT, EJECT)
    assert not ejected.blocked
    assert MIGRATE not in set(ejected.possible())
    assert PLUG in set(ejected.after(RESET).possible())


def test_a_snapshot_is_loaded_over_the_same_devices_only() -> None:
    saved = after(PLUG, SAVE)
    assert saved.after(MOUNT).after(LOAD) == saved
    assert LOAD not in set(saved.after(DEL).possible())


def test_a_stopped_machine() -> None:
    assert list(after(PLUG, MOUNT, STOP).possible()) == [DEL, CONT, MIGRATE]


def test_a_device_del_on_a_stopped_guest_takes_effect_when_it_runs() -> None:
    state = after(PLUG, STOP, DEL, DEL)
    assert state.shares[0].leaving
    assert not state.after(CONT).shares[0].plugged
    used = after(PLUG, MOUNT, STOP, DEL, CONT)
    assert used.shares[0].leaving
    assert used.after(DEL).after(UMOUNT) == after()


def test_a_tattach_that_is_held_becomes_a_mount_or_ends_with_a_reset() -> None:
    state = after(PLUG, ATTACH)
    assert state.attaching
    assert not state.blocked
    assert state.after(MIGRATE) == state
    assert state.after(RELEASE) == after(PLUG, MOUNT)
    assert state.after(RESET) == after(PLUG)


def test_a_snapshot_has_the_binding_of_the_driver() -> None:
    saved = after(PLUG, UNBIND, SAVE, BIND)
    assert saved.after(LOAD) == after(PLUG, UNBIND, SAVE)


def test_a_stopped_guest_arrives_stopped() -> None:
    assert after(PLUG, STOP, MIGRATE) == after(PLUG, STOP)
