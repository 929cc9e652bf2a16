"""Performs the steps of :mod:`.raw_model` on a QEMU. Each checks what QEMU answers to it.

The steps are in modules of their own, by what they are about. What has to be true between any two steps is in
:mod:`.raw_invariants`.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from harness.errors import HarnessError
from harness.explore import raw_ends, raw_holds, raw_host, raw_misuse, raw_own_session, raw_requests
from harness.explore.invariants import check_footprint, measured
from harness.explore.program import Program, Step
from harness.explore.raw_answers import Perform
from harness.explore.raw_ends import eject_idle
from harness.explore.raw_holds import release
from harness.explore.raw_host import run_state
from harness.explore.raw_invariants import check, check_open_files
from harness.explore.raw_machine import RawMachine
from harness.explore.raw_model import Device, RawState
from harness.testbed import Testbed

#: Steps that hold system calls, or make them fail.
_HOLDING = ("hold", "fail", "short_write", "statfs_of_nothing")


class RawPerformer:
    """Performs the steps of one program; the machine is started here.

    :raises Unsupported: when requests cannot be held here, or this QEMU cannot throttle an fsdev.
    """

    def __init__(self, testbed: Testbed, program: Program) -> None:
        holding = any(step.do in _HOLDING for step in program.steps)
        self._on = RawMachine(testbed, program.shares, holding=holding)
        self._footprint = measured(self._on.machine, with_guest=False)

    def perform(self, step: Step, before: RawState, after: RawState) -> None:
        """Perform one step of a raw program: see :func:`perform`."""
        perform(self._on, step, before, after)

    def finish(self, state: RawState) -> None:
        """End a raw program: release and unplug everything, and compare the footprint with the beginning's.

        :raises Violation: when something is left.
        """
        finish(self._on, state)
        # Before the descriptors are counted, so that one bug has one signature wherever it is noticed.
        check_open_files(self._on, replace(state, devices=tuple(Device() for _ in state.devices)))
        check_footprint(self._on.machine, self._footprint)

    def close(self) -> None:
        """Release what raw steps hold, and cancel a migration; errors of a QEMU that is dead are ignored."""
        for one in self._on.in_flight.values():
            with suppress(HarnessError):
                one.stack.close()
        with suppress(HarnessError):
            self._on.migration.close()


def perform(on: RawMachine, step: Step, before: RawState, after: RawState) -> None:
    """Perform one step of a raw program, and compare QEMU with the model.

    :raises Violation: when QEMU disagrees. :raises NineError: when it answers a request with an error.
    :raises QemuError: when it refuses a command.
    """
    on.testbed.history.note("host", "explore:step", {"step": str(step)})
    PERFORM[step.do](on, step, before)
    if step.do != "migrate":  # The events of a destination are counted from its start.
        pairs = zip(before.devices, after.devices, strict=True)
        on.expected_deletions += sum(was.plugged and not now.plugged for was, now in pairs)
    check(on, after)


def finish(on: RawMachine, state: RawState) -> None:
    """After the raw steps: release everything, end every session and eject every device.

    The machine is stopped then.
    """
    for share, device in enumerate(state.devices):
        if device.held:
            release(on, Step(do="release", share=share), state)
    on.migration.close()
    for share, device in enumerate(state.devices):
        if device.plugged:
            on.driver(share).reset()
            eject_idle(on, share)
    if state.running:
        run_state(on, "stop", "STOP")


#: All steps of the raw client, by name.
PERFORM: dict[str, Perform] = {
    **raw_host.STEPS,
    **raw_ends.STEPS,
    **raw_requests.STEPS,
    **raw_misuse.STEPS,
    **raw_own_session.STEPS,
    **raw_holds.STEPS,
}
