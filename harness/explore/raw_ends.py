"""Raw steps that end a session: resets and ejects, which wait for a held request."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from harness.actions.drain import happens_while
from harness.background import Background
from harness.deadline import check_during
from harness.explore.disagreement import Disagreement
from harness.explore.program import Step
from harness.explore.raw_answers import EVENT_TIMEOUT_S, WINDOW_S, Perform, driver_of, share_of
from harness.explore.raw_machine import RawMachine
from harness.explore.raw_model import RawState
from harness.qemu.deletion import Deletion

#: Seconds, before scaling, in which an idle device that is ejected has to be gone: QEMU needs milliseconds.
_DELETED_TIMEOUT_S = 5.0


def _while_held(
    on: RawMachine,
    shares: list[int],
    begin: Callable[[], object],
    happened: Callable[[Background[object]], bool],
    what: str,
) -> None:
    """A raw step that ends sessions while requests of ``shares`` are held.

    It begins what has to wait for them, releases them, and waits for its end.

    :param begin: runs in the background: with a QEMU that waits it does not return before the release.
    :param happened: whether it has taken effect. :param what: its effect.
    :raises Disagreement: when it took effect while the requests were held.
    """
    held = [on.in_flight.pop(share) for share in shares]
    going = Background(begin)

    def witness() -> None:
        for one in held:
            one.held.waiting()

    early = happens_while(
        on.machine,
        lambda: happened(going),
        while_=witness,
        what=what,
        returned=lambda: going.done,
        window_s=WINDOW_S,
    )
    for one in held:
        one.stack.close()
    going.wait(timeout_s=on.machine.timeout_scale.seconds(EVENT_TIMEOUT_S))
    if early:
        # Where the requests come back to, QEMU may crash, which is the cause then.
        check_during(on.machine.timeout_scale.seconds(WINDOW_S), on.machine.watch, interval_s=0.01)
        on.execute("query-status")
        raise Disagreement("drain", f"{what} under a request in flight")


def _eject(on: RawMachine, step: Step, before: RawState) -> None:
    number = share_of(step)
    share = on.shares[number]
    if before.device(step).held:
        with Deletion(on.machine, share.id) as deletion:
            _while_held(
                on,
                [number],
                lambda: on.guest.request_eject(share),
                lambda _: deletion.reported,
                "the device was freed",
            )
            deletion.wait(timeout_s=EVENT_TIMEOUT_S)
    else:
        eject_idle(on, number)
    on.forget_driver(number)


def eject_idle(on: RawMachine, share: int) -> None:
    """The raw step ``eject`` of a device without a request in flight: wait until it is gone."""
    with Deletion(on.machine, on.shares[share].id) as deletion:
        on.guest.request_eject(on.shares[share])
        deletion.wait(timeout_s=_DELETED_TIMEOUT_S)


def _device_reset(on: RawMachine, step: Step, before: RawState) -> None:
    driver = driver_of(on, step)
    if before.device(step).held:
        _while_held(on, [share_of(step)], driver.reset, lambda going: going.done, "the device was reset")
    else:
        driver.reset()
    on.forget_driver(share_of(step))


def _system_reset(on: RawMachine, _step: Step, before: RawState) -> None:
    """The raw step ``system_reset``.

    It also does the removals that wait for the guest (QEMU: ``hw/acpi/pcihp.c``).
    """
    held = [share for share, device in enumerate(before.devices) if device.held]
    leaving = [on.shares[share].id for share, device in enumerate(before.devices) if device.leaving]
    with ExitStack() as stack:
        gone = [stack.enter_context(Deletion(on.machine, name)) for name in leaving]
        if held:
            resets = stack.enter_context(on.machine.qmp.listen("RESET"))
            _while_held(
                on, held, on.guest.system_reset, lambda _: bool(resets.events), "the machine was reset"
            )
        else:
            on.guest.system_reset()
        for deletion in gone:
            deletion.wait(timeout_s=EVENT_TIMEOUT_S)
    on.forget_drivers()


STEPS: dict[str, Perform] = {
    "eject": _eject,
    "device_reset": _device_reset,
    "system_reset": _system_reset,
}
