"""Raw steps of the host: QMP and HMP commands, and what QEMU answers to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from harness.actions.bad_plugs import LATE_REFUSALS, BadPlug, unrealizable
from harness.actions.hotplug import plug_refusals
from harness.actions.migration import under_way
from harness.actions.raw_migration import cancel, migrate_raw, migrate_to_the_pause, require_pause
from harness.actions.stream import stalled
from harness.errors import QemuError
from harness.explore.disagreement import Disagreement
from harness.explore.invariants import (
    expect_migrate_refused,
    expect_no_migration,
    expect_not_found,
    expect_refused,
    migration_status,
    plugged,
)
from harness.explore.modern_registers import select_features
from harness.explore.program import Step
from harness.explore.raw_answers import BLOCKED, EVENT_TIMEOUT_S, Perform, refused, share_of
from harness.explore.raw_machine import RawMachine
from harness.explore.raw_model import RawState
from harness.leaks.footprint import private_kib
from harness.ninep.client import RawDriver
from harness.qemu.binary import properties
from harness.qemu.spec import Share, Value

_TAG = "explored"
_UNDER_WAY = ("is already in the process of unplug", "guest is busy")
#: What makes a plug with an ``acpi-index`` fail, in the backend's realize and in the PCI bus.
_WITH_INDEX: dict[str, dict[str, Value]] = {
    "index": {"fsdev": "nowhere"},
    "index_late": {"romfile": "/nowhere/rom"},
}
_INDEX = 5
#: Refused ``device_add`` commands before memory is measured, of one window, and windows. A device that was
#: not realized has some 20 KiB; without a leak 7.2.22's memory grows by up to 50 KiB in 50 of them.
_WARM_UP, _REPEATS, _WINDOWS, _DEVICE_KIB = 3, 12, 2, 10
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
    if what in LATE_REFUSALS:
        options, refusal = LATE_REFUSALS[what]
        bad = replace(share, device_options={**share.device_options, **options})
        BadPlug(bad, refusal).expect_refused(on.machine)
    elif what in _WITH_INDEX:
        _refused_with_index(on, what, share)
    elif what == "duplicate":
        _duplicate(on, step)
    elif what == "duplicates":
        _expect_no_growth(on, step, lambda: _duplicate(on, step))
    else:
        bad = unrealizable(share)[what]
        refused(step, lambda: on.machine.device_add(bad), *plug_refusals(what, bad))


def _refused_with_index(on: RawMachine, what: str, share: Share) -> None:
    """A refused QMP plug leaves its ``acpi-index`` free: the second try is refused for the same reason."""
    if "acpi-index" not in properties(on.testbed.cell.qemu, share.driver):
        return  # It came with QEMU 6.0.
    options = {**share.device_options, **_WITH_INDEX[what], "acpi-index": _INDEX}
    for _ in range(2):
        try:
            on.machine.device_add(replace(share, device_options=options))
        except QemuError as exc:
            if "nowhere" not in exc.desc:
                message = f"a plug that failed keeps its acpi-index: {exc.desc}"
                raise Disagreement("plug_refused", message) from exc
        else:
            raise Disagreement("plug_refused", f"plug_refused {what} was accepted")


def _duplicate(on: RawMachine, step: Step) -> None:
    share = on.shares[share_of(step)]
    refused(step, lambda: on.machine.device_add(share), *plug_refusals("busy_id", share))


def _expect_no_growth(on: RawMachine, step: Step, call: Callable[[], object]) -> None:
    """Repeat a QMP command that has to be refused: QEMU keeps nothing of it.

    An object that QEMU forgets to free is in no list, so its memory is all that shows it. One window in which
    memory grows may be chance (a thread that begins gets its own arena), so there are two.
    """
    for _ in range(_WARM_UP):
        call()
    for _ in range(_WINDOWS):
        before = _private_kib(on)
        for _ in range(_REPEATS):
            call()
        grown = _private_kib(on) - before
        if grown < _REPEATS * _DEVICE_KIB:
            return
    what = f"QEMU keeps memory of each {step.do}: {step.value}"
    raise Disagreement("memory", what, details=f"{grown} KiB in {_REPEATS}", guarantee="no leak")


def _private_kib(on: RawMachine) -> int:
    return private_kib(Path(f"/proc/{on.machine.pid}/smaps").read_text(), on.machine.spec)


def _device_del(on: RawMachine, step: Step, before: RawState) -> None:
    """The raw step ``device_del`` over QMP.

    No guest acts on it; a second one may be refused because the first is under way.
    """

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
    """The raw steps ``stop`` and ``cont``: a QMP command that changes the run state, and its event."""
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


def _savevm_again(on: RawMachine, _step: Step, _before: RawState) -> None:
    """The raw step ``savevm_again``: one that is refused leaves the earlier snapshot of that name."""
    on.machine.qmp.hmp(f"savevm {_TAG}", watch=on.machine.watch)
    if _TAG not in on.machine.qmp.hmp("info snapshots", watch=on.machine.watch):
        raise Disagreement("savevm", "the refused savevm has deleted the snapshot")


def _loadvm(on: RawMachine, step: Step, _before: RawState) -> None:
    printed = on.machine.qmp.hmp(f"loadvm {_TAG}", watch=on.machine.watch).strip()
    if printed:
        raise Disagreement(step.do, f"loadvm failed: {printed}")
    on.load_drivers()


def _migrate(on: RawMachine, step: Step, before: RawState) -> None:
    if before.blocked:
        expect_migrate_refused(on.machine, step.do, _mounted(on, before))
    elif before.attaching:
        expect_no_migration(on.machine, step.do)
    else:
        drivers = on.drivers
        for driver in drivers.values():
            select_features(driver)
        registers = [driver.registers() for driver in drivers.values()]
        arrived, moved = migrate_raw(on.guest, *drivers.values())
        on.moved_to(arrived, dict(zip(drivers, moved, strict=True)))
        for driver in moved:
            if driver.tag() != driver.share.mount_tag:
                raise Disagreement(step.do, "the device arrived with another mount tag")
        for driver, left in zip(moved, registers, strict=True):
            _expect_registers(step, driver, left)


def _expect_registers(step: Step, driver: RawDriver, before: dict[str, int | str]) -> None:
    now = driver.registers()
    other = [name for name in before if before[name] != now[name]]
    if other:
        details = ", ".join(f"{name}: {before[name]} before, {now[name]} now" for name in other)
        raise Disagreement(step.do, f"the device arrived with other registers: {other[0]}", details=details)


def _migrate_stall(on: RawMachine, step: Step, _before: RawState) -> None:
    """The raw step ``migrate_stall``: a stream that nobody reads.

    The migration is cancelled: it is then cancelled, and has not failed.
    """
    with stalled(on.machine, read_first=False):
        pass
    on.machine.wait_until(
        lambda: migration_status(on.machine) not in ("active", "cancelling"),
        what="the end of a migration that was cancelled",
        timeout_s=EVENT_TIMEOUT_S,
        interval_s=0.01,
    )
    if (status := migration_status(on.machine)) != "cancelled":
        raise Disagreement(step.do, f"a migration that was cancelled is {status}")


def _migrate_pause(on: RawMachine, _step: Step, _before: RawState) -> None:
    """The raw step ``migrate_pause``: a migration that waits before the switch-over is cancelled."""
    require_pause(on.guest)
    cancel(on.guest, migrate_to_the_pause(on.guest))


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
    "savevm_again": _savevm_again,
    "loadvm": _loadvm,
    "migrate": _migrate,
    "migrate_begin": _migrate_begin,
    "migrate_stall": _migrate_stall,
    "migrate_pause": _migrate_pause,
    "migrate_cancel": lambda on, _step, _before: on.migration.close(),
}
