"""Performs the steps of :mod:`.guest_model` in a Linux guest, and compares QEMU with the model after each."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from harness.actions.drain import happens_while
from harness.actions.hostile import HostileGuest
from harness.actions.hotplug import UNPLUG_TIMEOUT_S, Hotplug, Unplug, UnplugState
from harness.actions.migration import Migration
from harness.actions.run_state import EVENT_TIMEOUT_S, RunState
from harness.actions.snapshot import Snapshot
from harness.background import Background
from harness.deadline import check_during
from harness.errors import HarnessError, QemuError, WaitTimeout
from harness.explore.disagreement import Disagreement
from harness.explore.guest_model import ATTACH, GuestShare, GuestState
from harness.explore.invariants import (
    SETTLE_S,
    check_blockers,
    check_devices,
    check_footprint,
    check_run_state,
    expect_migrate_refused,
    expect_no_migration,
    expect_not_found,
    expect_refused,
    measured,
    plugged,
)
from harness.explore.program import Program, Step
from harness.explore.shares import declared
from harness.guest.job import Job
from harness.guest.mount import Mount
from harness.guest.mount_user import MountUser, mount_in_use
from harness.guest.transfer import Transfer, reader, writer
from harness.holds.hold import DATA, STAT, Held, Hold
from harness.qemu.blockers import blocked_reasons
from harness.qemu.deletion import Deletion
from harness.qemu.machine import Machine
from harness.qemu.spec import Share
from harness.testbed import Testbed

_TAG = "explored"
_SIZE_KIB = 64
#: Seconds, before scaling, in which QEMU may crash where a held request comes back to.
_CRASH_WINDOW_S = 0.1

#: Seconds, before scaling, in which QEMU has to raise an interrupt: it does so before it answers.
_NOTIFIED_S = 0.5

#: Steps that do not need the guest.
_WITHOUT_GUEST = ("stop", "cont", "system_reset")

Perform = Callable[["GuestPerformer", Step, GuestState], None]


@dataclass
class _InFlight:
    """A transfer or a mount whose system call is held. :ivar stack: releases it when it is closed."""

    held: Held
    work: Transfer | Job
    stack: ExitStack


class GuestPerformer:
    """Performs the steps of one program; the guest is restored here.

    :raises Unsupported: when requests cannot be held here, or this QEMU cannot throttle an fsdev.
    """

    def __init__(self, testbed: Testbed, program: Program) -> None:
        self._testbed = testbed
        self.shares = declared(testbed, program.shares)
        # The whole pool is declared, so that programs with fewer shares use the same template.
        testbed.declare(*self.shares, *testbed.shares[len(self.shares) :])
        self.hold = Hold(testbed) if any(step.do == "hold" for step in program.steps) else None
        self.guest = testbed.boot()
        self.hotplug, self.run_state = Hotplug(self.guest), RunState(self.guest)
        self.migration, self.snapshot = Migration(self.guest, testbed), Snapshot(self.guest)
        self.hostile = HostileGuest(self.guest)
        self.mounts: dict[int, Mount] = {}
        self.users: dict[int, tuple[MountUser, ExitStack]] = {}
        self.unplugs: dict[int, Unplug] = {}
        self.in_flight: dict[int, _InFlight] = {}
        #: The SHA-256 of the file that the guest has written.
        self.written: dict[int, str] = {}
        #: The guest's ``boot_id`` before a reset, while its boot was not waited for.
        self.boots_after: str | None = None
        self._footprint = self._stopped_footprint()

    @property
    def machine(self) -> Machine:
        """The machine that the guest whose steps are performed is in."""
        return self.guest.machine

    def _stopped_footprint(self) -> dict[str, int]:
        """The footprint with a guest, taken while its machine is stopped.

        Only then vmstate sections can be counted.
        """
        self.run_state.stop()
        found = measured(self.machine, with_guest=True)
        self.run_state.cont()
        return found

    def perform(self, step: Step, before: GuestState, after: GuestState) -> None:
        """Perform one step of a Linux guest, and compare QEMU with the guest's model.

        :raises Violation: when QEMU disagrees. :raises GuestError: when the guest cannot do it.
        :raises QemuError: when QEMU refuses a command.
        """
        self._testbed.history.note("host", "explore:step", {"step": str(step)})
        if step.do not in _WITHOUT_GUEST:
            self.wait_booted()
        PERFORM[step.do](self, step, before)
        self._check(after)

    def wait_booted(self) -> None:
        """Wait for the guest's boot after the step that resets, if there was one."""
        if self.boots_after is not None:
            before, self.boots_after = self.boots_after, None
            self.run_state.wait_booted_again(before)

    def begin_system_reset(self, boot_id: str | None = None) -> str:
        """Reset the guest's machine, also while it boots; for :meth:`RunState.wait_booted_again`.

        :param boot_id: the guest's before the reset, when it is known.
        """
        return self.run_state.begin_system_reset(boot_id=boot_id or self.boots_after)

    def mounted(self, state: GuestState) -> list[Share]:
        """The shares that the guest has mounted by steps, which have to block migration."""
        return plugged(self.shares, (share.in_use for share in state.shares))

    def _check(self, state: GuestState) -> None:
        check_devices(self.machine, plugged(self.shares, (share.plugged for share in state.shares)))
        self._check_blockers(self.mounted(state), attaching=state.attaching)
        check_run_state(self.machine, running=state.running)
        if state.running and self.boots_after is None:
            self.guest.succeed("true")

    def _check_blockers(self, mounted: list[Share], *, attaching: bool) -> None:
        """Compare blockers with the guest's model, after a moment.

        The guest's kernel ends a session a moment after the last process that used it has ended.
        """
        if attaching:
            check_blockers(self.machine, mounted, attaching=True)
            return
        with suppress(WaitTimeout):  # The check below says what is wrong.
            self.machine.wait_until(
                lambda: len(blocked_reasons(self.machine)) == len(mounted),
                what="its blockers",
                timeout_s=SETTLE_S,
            )
        check_blockers(self.machine, mounted)

    def finish(self, state: GuestState) -> None:
        """End the guest's uses of a share, unplug every device, and compare the footprint with the first.

        A device that was ejected by force cannot be cleaned up in the guest, and is gone from QEMU. A guest
        that boots is not waited for: it uses no share.

        :raises Violation: when something is left.
        """
        if self.boots_after is not None:
            return
        if not state.running:
            self.run_state.cont()
        for number, share in enumerate(state.shares):
            if share.held:
                self.end_held(number)
            if share.open:
                self.end_user(number)
            if number in self.mounts:
                self.mounts.pop(number).unmount()
        for number, share in enumerate(state.shares):
            if share.leaving:
                self.unplugs.pop(number).wait_completed()
            elif share.plugged:
                _unplug(self, number)
        self.run_state.stop()
        check_footprint(self.machine, self._footprint)

    def close(self) -> None:
        """Release the requests that steps of the guest hold."""
        for one in self.in_flight.values():
            with suppress(HarnessError):
                one.stack.close()

    def end_user(self, share: int) -> None:
        """A step of the guest: end the process that has a file open."""
        user, stack = self.users.pop(share)
        user.end()
        stack.close()

    def end_held(self, share: int) -> None:
        """A step of the guest: release the held request.

        Its transfer ends with the right bytes, or its mount succeeds.
        """
        one = self.in_flight.pop(share)
        one.stack.close()
        if isinstance(one.work, Transfer):
            one.work.wait_finished().expect_intact()
        else:
            one.work.wait_succeeded()
            self.mounts[share] = Mount.of_request(self.guest, self.shares[share])

    def release_all(self) -> None:
        """Release the held requests of a guest that will not see their answers."""
        for one in self.in_flight.values():
            one.stack.close()
        self.in_flight.clear()

    def forget_guest(self) -> None:
        """After a step in which the guest boots anew, or gets the state of a snapshot: it uses nothing."""
        self.mounts.clear()
        for _, stack in self.users.values():
            stack.pop_all()
        self.users.clear()


def _number(step: Step) -> int:
    assert step.share is not None
    return step.share


def _share(on: GuestPerformer, step: Step) -> Share:
    return on.shares[_number(step)]


def _plug(on: GuestPerformer, step: Step, _before: GuestState) -> None:
    on.hotplug.plug(_share(on, step))


def _mount(on: GuestPerformer, step: Step, _before: GuestState) -> None:
    on.mounts[_number(step)] = on.guest.mount(_share(on, step))


def _umount(on: GuestPerformer, step: Step, before: GuestState) -> None:
    on.mounts.pop(_number(step)).unmount()
    _leaves(on, step, before)


def _leaves(on: GuestPerformer, step: Step, before: GuestState) -> None:
    """After a step of the guest: a device that waited for this user leaves now."""
    if before.share(step).leaving:
        on.unplugs.pop(_number(step)).wait_completed()


def _umount_lazy(on: GuestPerformer, step: Step, _before: GuestState) -> None:
    on.mounts.pop(_number(step)).detach()


def _open(on: GuestPerformer, step: Step, _before: GuestState) -> None:
    stack = ExitStack()
    user = stack.enter_context(mount_in_use(on.mounts[_number(step)], "open_file"))
    on.users[_number(step)] = user, stack


def _close(on: GuestPerformer, step: Step, before: GuestState) -> None:
    on.end_user(_number(step))
    if not before.share(step).mounted:
        _leaves(on, step, before)


def _unlink(on: GuestPerformer, step: Step, _before: GuestState) -> None:
    mount = on.mounts[_number(step)]
    on.guest.succeed(f"rm {mount.mountpoint}/.occupied")
    if (mount.share.path / ".occupied").exists():
        raise Disagreement("content", "a file that was unlinked exists")


def _name(step: Step) -> str:
    return f"written-{step.share}"


def _write(on: GuestPerformer, step: Step, _before: GuestState) -> None:
    mount = on.mounts[_number(step)]
    on.written[_number(step)] = mount.write(_name(step), size_kib=_SIZE_KIB)
    mount.expect_intact(_name(step), on.written[_number(step)])


def _read(on: GuestPerformer, step: Step, _before: GuestState) -> None:
    on.mounts[_number(step)].expect_intact(_name(step), on.written[_number(step)])


def _device_del(on: GuestPerformer, step: Step, before: GuestState) -> None:
    """The guest's step ``device_del``.

    It completes at once, or when the share is no longer used, or when the guest runs again.
    """
    share = before.share(step)
    if share.leaving:
        on.hotplug.request_unplug(_share(on, step)).expect_granted_or_under_way()
        return
    if before.running and not share.in_use:
        _unplug(on, _number(step))
        return
    interrupts = _hotplug_interrupts(on) if before.running else ""
    with Deletion(on.machine, _share(on, step).id) as deletion:
        unplug = on.hotplug.request_unplug(_share(on, step))
        on.unplugs[_number(step)] = unplug
        if not deletion.present():  # Otherwise the guest would be waited for in vain.
            raise Disagreement("devices", f"device_del removed the device of a share that {_keeps(share)}")
    if before.running:
        _expect_heard(on, unplug, interrupts)
        unplug.wait_seen_by_guest()


def _unplug(on: GuestPerformer, share: int) -> None:
    """A step of the guest: ``device_del`` of a share that it does not use, until it is gone."""
    interrupts = _hotplug_interrupts(on)
    unplug = on.hotplug.request_unplug(on.shares[share])
    _expect_heard(on, unplug, interrupts)
    unplug.wait_completed()


def _hotplug_interrupts(on: GuestPerformer) -> str:
    """How many interrupts of its hotplug controllers the guest has had."""
    return on.guest.succeed("grep -E 'acpi|pciehp' /proc/interrupts; true")


def _expect_heard(on: GuestPerformer, unplug: Unplug, before: str) -> None:
    """After the guest's step ``device_del``: QEMU has notified the guest of the request, with an interrupt.

    A guest that answers a command has had the interrupts that were raised before. So a request that was lost
    shows at once, and a slow removal is not taken for one.

    :param before: the interrupts before the request.
    :raises Disagreement: when there is none.
    """
    if unplug.refusal is not None:
        raise unplug.refusal
    with suppress(WaitTimeout):
        on.machine.wait_until(
            lambda: _hotplug_interrupts(on) != before,
            what="the hotplug interrupt of the guest",
            timeout_s=_NOTIFIED_S,
        )
        return
    raise Disagreement("device_del", "device_del was lost: the guest got no interrupt")


def _keeps(share: GuestShare) -> str:
    return "is in use" if share.in_use else "a stopped guest has"


def _cont(on: GuestPerformer, _step: Step, before: GuestState) -> None:
    """The step ``cont``: the guest acts on a ``device_del`` of when it was stopped."""
    on.run_state.cont()
    for number, share in enumerate(before.shares):
        if share.leaving and share.in_use:
            if on.unplugs[number].state is UnplugState.REQUESTED:
                on.unplugs[number].wait_seen_by_guest()
        elif share.leaving:
            on.unplugs.pop(number).wait_completed()


def _eject(on: GuestPerformer, step: Step, before: GuestState) -> None:
    share = _share(on, step)
    if before.share(step).held:
        _eject_with_a_request(on, step)
    else:
        on.hostile.eject(share)
    on.mounts.pop(_number(step), None)
    if _number(step) in on.users:  # Its process cannot be ended: it waits for the device.
        on.users.pop(_number(step))[1].pop_all()


def _eject_with_a_request(on: GuestPerformer, step: Step) -> None:
    one = on.in_flight.pop(_number(step))
    ejection = on.hostile.request_eject(_share(on, step))
    early = ejection.observe(while_=one.held.waiting)
    one.stack.close()
    ejection.wait_completed()
    check_during(on.machine.timeout_scale.seconds(_CRASH_WINDOW_S), on.machine.watch, interval_s=0.01)
    on.guest.succeed("true")
    if early:
        raise Disagreement("drain", "the device was freed under a request in flight")


def _hold(on: GuestPerformer, step: Step, _before: GuestState) -> None:
    assert on.hold is not None
    stack = ExitStack()
    held = stack.enter_context(on.hold.requests(_share(on, step), *(STAT if step.value == ATTACH else DATA)))
    on.in_flight[_number(step)] = _InFlight(held, _begin(on, step), stack)
    held.wait_caught()


def _begin(on: GuestPerformer, step: Step) -> Transfer | Job:
    if step.value == ATTACH:
        return Mount.request(on.guest, _share(on, step))
    return (reader if step.value == "read" else writer)(on.mounts[_number(step)])


def _unbind(on: GuestPerformer, step: Step, _before: GuestState) -> None:
    on.guest.unbind_9p(_share(on, step))


def _bind(on: GuestPerformer, step: Step, _before: GuestState) -> None:
    on.guest.bind_9p(_share(on, step))


def _reset_while_held(on: GuestPerformer) -> str:
    """The guest's step that resets while requests are held.

    ``system_reset`` waits for them, and they are released here (QEMU: ``v9fs_reset``).
    """
    boot_id, held = on.boots_after or on.guest.boot_id, [one.held for one in on.in_flight.values()]

    def witness() -> None:
        for one in held:
            one.waiting()

    with on.machine.qmp.listen("RESET") as resets:
        going = Background(lambda: on.begin_system_reset(boot_id))
        early = happens_while(
            on.machine,
            lambda: bool(resets.events),
            while_=witness,
            what="the machine was reset",
            returned=lambda: going.done,
            window_s=_CRASH_WINDOW_S,
        )
        on.release_all()
        going.wait(timeout_s=on.machine.timeout_scale.seconds(EVENT_TIMEOUT_S))
    if early:
        # Where the requests come back to, QEMU may crash, which is the cause then.
        check_during(on.machine.timeout_scale.seconds(_CRASH_WINDOW_S), on.machine.watch, interval_s=0.01)
        on.machine.qmp.execute("query-status", watch=on.machine.watch)
        raise Disagreement("drain", "the machine was reset under a request in flight")
    return boot_id


def _system_reset(on: GuestPerformer, _step: Step, before: GuestState) -> None:
    held = before.any(lambda share: bool(share.held))
    _reset(on, (lambda: _reset_while_held(on)) if held else on.begin_system_reset, before)


def _reset(on: GuestPerformer, begin: Callable[[], str], before: GuestState) -> None:
    """The guest's step that resets. It ends every mount.

    A device that waited to leave is removed, or works and can be unplugged.

    The guest's boot, which takes longer than anything else, is waited for when the guest is needed.
    """
    leaving = [number for number, share in enumerate(before.shares) if share.leaving]
    with ExitStack() as stack:
        deletions = [stack.enter_context(Deletion(on.machine, on.shares[number].id)) for number in leaving]
        on.boots_after = begin()
        on.forget_guest()
        for number, deletion in zip(leaving, deletions, strict=True):
            on.unplugs.pop(number)
            with suppress(WaitTimeout):
                deletion.wait_reported(timeout_s=SETTLE_S)
            if deletion.reported:
                deletion.confirm()
            else:
                on.wait_booted()
                on.hotplug.request_unplug(on.shares[number]).expect_granted_or_under_way()
                deletion.wait(timeout_s=UNPLUG_TIMEOUT_S)


def _savevm(on: GuestPerformer, step: Step, before: GuestState) -> None:
    try:
        on.snapshot.savevm(_TAG)
    except QemuError as exc:
        if not before.blocked:
            raise
        expect_refused(step.do, on.mounted(before), exc.desc)
        return
    if before.blocked:
        expect_refused(step.do, on.mounted(before), "")


def _loadvm(on: GuestPerformer, _step: Step, _before: GuestState) -> None:
    on.snapshot.loadvm(_TAG)
    on.forget_guest()


def _migrate(on: GuestPerformer, step: Step, before: GuestState) -> None:
    if before.blocked:
        expect_migrate_refused(on.machine, step.do, on.mounted(before))
    elif before.attaching:
        expect_no_migration(on.machine, step.do)
    elif before.running:
        on.migration.migrate()
    else:
        source = on.machine
        on.migration.request_migrate(stopped=True).wait_arrived(status="paused")
        source.quit()


PERFORM: dict[str, Perform] = {
    "plug": _plug,
    "mount": _mount,
    "umount": _umount,
    "umount_lazy": _umount_lazy,
    "open": _open,
    "close": _close,
    "unlink": _unlink,
    "write": _write,
    "read": _read,
    "device_del": _device_del,
    "device_del_absent": lambda on, step, _before: expect_not_found(on.machine, step.do, _share(on, step)),
    "eject": _eject,
    "hold": _hold,
    "release": lambda on, step, _before: on.end_held(_number(step)),
    "unbind": _unbind,
    "bind": _bind,
    "rebind": lambda on, _step, _before: on.guest.rebind_9p(),
    "stop": lambda on, _step, _before: on.run_state.stop(),
    "cont": _cont,
    "system_reset": _system_reset,
    "reboot": lambda on, _step, before: _reset(on, on.run_state.begin_reboot, before),
    "savevm": _savevm,
    "loadvm": _loadvm,
    "migrate": _migrate,
}
