"""Raw steps of the host: QMP and HMP commands, and what QEMU answers to them."""

from __future__ import annotations

from dataclasses import replace

from harness.actions.bad_plugs import BadPlug, unrealizable
from harness.actions.hotplug import plug_refusals
from harness.actions.migration import under_way
from harness.actions.raw_migration import migrate_raw
from harness.deadline import check_during
from harness.errors import QemuError
from harness.explore.disagreement import Disagreement
from harness.explore.invariants import expect_migrate_refused, expect_not_found, expect_refused, plugged
from harness.explore.program import Step
from harness.explore.raw_answers import BLOCKED, EVENT_TIMEOUT_S, WINDOW_S, Perform, refused, share_of
from harness.explore.raw_machine import RawMachine
from harness.explore.raw_model import RawState
from harness.qemu.migration_socket import discarded_stream
from harness.qemu.spec import Share

_TAG = "explored"
_UNDER_WAY = ("is already in the process of unplug", "guest is busy")
#: The answers to what an active migration forbids.
_MIGRATING = "not allowed while migrating"


def _plug(on: RawMachine, step: Step, before: RawState) -> None:
    share = on.shares[share_of(step)]
    if before.migrating:
        refused(step, lambda: on.machine.device_add(share), _MIGRATING)
        return
    on.machine.device_add(share)
    on.driver(share_of(step))


def _plug_refused(on: RawMachine, step: Step, _before: RawState) -> None:
    share, what = on.shares[share_of(step)], str(step.value)
    if what == "rom":
        bad = replace(share, device_options={**share.device_options, "romfile": "/nowhere/rom"})
        BadPlug(bad, 'failed to find romfile "/nowhere/rom"').expect_refused(on.machine)
    elif what == "duplicate":
        refused(step, lambda: on.machine.device_add(share), *plug_refusals("busy_id", share))
    else:
        bad = unrealizable(share)[what]
        refused(step, lambda: on.machine.device_add(bad), *plug_refusals(what, bad))


def _device_del(on: RawMachine, step: Step, before: RawState) -> None:
    """No guest acts on it; a second one may be refused because the first is under way."""

    def ask() -> None:
        on.execute("device_del", {"id": on.shares[share_of(step)].id})

    if before.migrating:
        refused(step, ask, _MIGRATING)
        return
    try:
        ask()
    except QemuError as exc:
        if not before.device(step).leaving or not any(text in exc.desc for text in _UNDER_WAY):
            raise


def _device_del_absent(on: RawMachine, step: Step, _before: RawState) -> None:
    expect_not_found(on.machine, step.do, on.shares[share_of(step)])


def run_state(on: RawMachine, command: str, event: str) -> None:
    """A command that changes the run state, and its event."""
    with on.machine.qmp.listen(event) as events:
        on.execute(command)
        events.wait(
            what=f"{event} after {command}",
            timeout_s=on.machine.timeout_scale.seconds(EVENT_TIMEOUT_S),
            watch=on.machine.watch,
        )


def _savevm(on: RawMachine, step: Step, before: RawState) -> None:
    # A savevm that is refused during a migration has deleted the snapshot of that name before: R63.
    tag = "refused" if before.migrating else _TAG
    printed = on.machine.qmp.hmp(f"savevm {tag}", watch=on.machine.watch).strip()
    if before.migrating:
        if not printed:
            raise Disagreement(step.do, "savevm was accepted during a migration", guarantee="refusal")
    elif before.blocked:
        expect_refused(step.do, _mounted(on, before), printed)
    elif before.attaching:
        if not printed:
            raise Disagreement(step.do, "savevm completed with a Tattach in flight", guarantee=BLOCKED)
    elif printed:
        raise Disagreement(step.do, f"savevm was refused: {printed}")
    else:
        on.save_drivers()


def _mounted(on: RawMachine, state: RawState) -> list[Share]:
    return plugged(on.shares, (device.blocks for device in state.devices))


def _loadvm(on: RawMachine, step: Step, _before: RawState) -> None:
    printed = on.machine.qmp.hmp(f"loadvm {_TAG}", watch=on.machine.watch).strip()
    if printed:
        raise Disagreement(step.do, f"loadvm failed: {printed}")
    on.load_drivers()


def _migrate(on: RawMachine, step: Step, before: RawState) -> None:
    if before.blocked:
        expect_migrate_refused(on.machine, step.do, _mounted(on, before))
    elif before.attaching:
        _migrate_while_attaching(on, step)
    else:
        drivers = on.drivers
        arrived, moved = migrate_raw(on.guest, *drivers.values())
        on.moved_to(arrived, dict(zip(drivers, moved, strict=True)))
        for driver in moved:
            if driver.tag() != driver.share.mount_tag:
                raise Disagreement(step.do, "the device arrived with another mount tag")


def _migrate_while_attaching(on: RawMachine, step: Step) -> None:
    """It is refused, or does not complete while the Tattach is in flight."""
    with discarded_stream(on.machine) as uri:
        try:
            on.execute("migrate", {"uri": uri})
        except QemuError:
            return
        _expect_incomplete(on, step)


def _expect_incomplete(on: RawMachine, step: Step) -> None:
    def completed() -> bool:
        return bool(on.execute("query-migrate").get("status") == "completed")

    window_s = on.machine.timeout_scale.seconds(10 * WINDOW_S)
    check_during(window_s, on.machine.watch, until=completed, interval_s=0.01)
    if completed():
        raise Disagreement(step.do, "migrate completed with a Tattach in flight", guarantee=BLOCKED)
    on.execute("migrate_cancel")


def _migrate_begin(on: RawMachine, _step: Step, _before: RawState) -> None:
    on.migration.enter_context(under_way(on.machine))


STEPS: dict[str, Perform] = {
    "plug": _plug,
    "plug_refused": _plug_refused,
    "device_del": _device_del,
    "device_del_absent": _device_del_absent,
    "cont": lambda on, _step, _before: run_state(on, "cont", "RESUME"),
    "stop": lambda on, _step, _before: run_state(on, "stop", "STOP"),
    "savevm": _savevm,
    "loadvm": _loadvm,
    "migrate": _migrate,
    "migrate_begin": _migrate_begin,
    "migrate_cancel": lambda on, _step, _before: on.migration.close(),
}
