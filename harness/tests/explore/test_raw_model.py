"""The model of the raw client: preconditions, and what the steps change."""

from __future__ import annotations

import pytest

from harness.explore.program import ShareKind, Step
from harness.explore.raw_model import FILE, ROOT, TABLE, RawAlphabet, RawState
from harness.explore.raw_steps import PERFORM
from harness.guarantees import GUARANTEES


def step(do: str, value: str | None = None, share: int | None = 0) -> Step:
    return Step(do=do, share=share, value=value)


PLUG, VERSION, ATTACH, OPEN, EJECT = map(step, ("plug", "version", "attach", "open", "eject"))
HOLD, RELEASE = step("hold", "read"), step("release")
RESET, SAVE, LOAD = (step(do, share=None) for do in ("system_reset", "savevm", "loadvm"))
MIGRATE, BEGIN, CANCEL = (step(do, share=None) for do in ("migrate", "migrate_begin", "migrate_cancel"))


def after(*steps: Step, kinds: tuple[ShareKind, ...] = (ShareKind(),)) -> RawState:
    state = RawAlphabet().start(kinds)
    for one in steps:
        state = state.after(one)
    return state


MOUNTED = (PLUG, VERSION, ATTACH)


def test_every_step_can_be_performed_and_asserts_a_guarantee() -> None:
    assert set(TABLE.actions) == set(PERFORM)
    assert set(TABLE.guarantees.values()) <= set(GUARANTEES)


def test_what_is_possible_can_be_done_and_nothing_else() -> None:
    """Of all states within three steps; the steps come in the same order each time."""
    kinds = (ShareKind(), ShareKind(fsdev_of=0))
    every = {s for state in [after(*MOUNTED, OPEN, kinds=kinds)] for s in state.possible()}
    level = {RawAlphabet().start(kinds)}
    for _ in range(3):
        every |= {one for state in level for one in state.possible()}
        level = {state.after(one) for state in level for one in state.possible()}
    for state in level:
        possible = list(state.possible())
        assert possible == list(state.possible())
        for one in every - set(possible):
            with pytest.raises(ValueError, match="not possible here"):
                state.after(one)


@pytest.mark.parametrize(
    "one", [step("plug"), step("fly"), step("plug", share=1), step("clunk", "nothing"), step("release")]
)
def test_an_impossible_step(one: Step) -> None:
    with pytest.raises(ValueError, match="is not possible here"):
        after(PLUG).after(one)


def test_an_attached_export_blocks_until_its_last_root_is_clunked() -> None:
    twice = after(*MOUNTED, step("attach", "second"))
    assert twice.blocked
    assert twice.after(step("clunk", "root")).blocked
    assert not twice.after(step("clunk", "root")).after(step("clunk", "second_root")).blocked


@pytest.mark.parametrize("end", [VERSION, EJECT, RESET, step("device_reset")])
def test_what_ends_a_session(end: Step) -> None:
    state = after(*MOUNTED, OPEN, end)
    assert not state.blocked
    assert state.devices[0].fids == frozenset()


def test_while_a_request_is_held_its_device_answers_no_other() -> None:
    """Nor does another device of the same folder, because a hold is of a folder."""
    kinds = (ShareKind(), ShareKind(fsdev_of=0), ShareKind())
    state = after(*MOUNTED, OPEN, HOLD, *(step("plug", share=n) for n in (1, 2)), kinds=kinds)
    possible = set(state.possible())
    assert {RELEASE, EJECT, step("clunk", FILE), step("version", share=2)} <= possible
    assert not {step("read"), step("version"), step("version", share=1)} & possible


def test_a_reset_removes_what_was_asked_to_leave() -> None:
    state = after(PLUG, step("device_del"), RESET)
    assert not state.devices[0].plugged


def test_refusals_change_nothing() -> None:
    mounted = after(*MOUNTED)
    assert mounted.after(MIGRATE) == mounted.after(SAVE) == mounted
    begun = after(PLUG, VERSION, BEGIN)
    assert begun.after(ATTACH) == begun
    assert begun.after(step("device_del")) == begun
    assert begun.after(CANCEL) == after(PLUG, VERSION)


def test_what_fails_changes_nothing() -> None:
    """A Tattach that fails is no session, a migration that stalls ends, a refused plug adds nothing."""
    ready = after(PLUG, VERSION)
    assert ready.after(step("fail", "attach")) == ready
    assert ready.after(step("migrate_stall", share=None)) == ready
    assert ready.after(step("plug_refused", "duplicates")) == ready
    assert after().after(step("plug_refused", "iommu")) == after()
    assert step("fail", "attach") not in set(after(*MOUNTED).possible())


def test_a_snapshot_is_loaded_over_the_same_devices_only() -> None:
    saved = after(PLUG, SAVE)
    assert LOAD in set(saved.after(VERSION).after(ATTACH).possible())
    assert LOAD not in set(saved.after(EJECT).possible())
    assert not saved.after(VERSION).after(ATTACH).after(LOAD).blocked


def test_what_arrives_has_no_session_and_waits_for_cont() -> None:
    arrived = after(PLUG, VERSION, step("cont", share=None), MIGRATE)
    assert not arrived.devices[0].session
    assert not arrived.running
    assert SAVE not in set(arrived.possible())
    assert SAVE in set(arrived.after(step("cont", share=None)).possible())


def test_a_write_is_seen_through_every_device_of_the_folder() -> None:
    state = after(*MOUNTED, OPEN, step("write"), kinds=(ShareKind(), ShareKind(fsdev_of=0)))
    assert state.folder(step("read", share=1)).written
    assert ROOT in state.devices[0].fids
