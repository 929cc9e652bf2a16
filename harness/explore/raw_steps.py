"""Performs the steps of :mod:`.raw_model` on a QEMU. Each checks what QEMU answers to it.

What has to be true between any two steps is in :mod:`.raw_invariants`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace

from harness.actions.bad_plugs import BadPlug, unrealizable
from harness.actions.drain import happens_while
from harness.actions.hotplug import plug_refusals
from harness.actions.migration import under_way
from harness.actions.raw_migration import migrate_raw
from harness.background import Background
from harness.deadline import check_during
from harness.errors import HarnessError, QemuError
from harness.explore.disagreement import Disagreement
from harness.explore.invariants import (
    check_footprint,
    expect_migrate_refused,
    expect_not_found,
    expect_refused,
    measured,
    plugged,
)
from harness.explore.program import Program, Step
from harness.explore.raw_invariants import WRITTEN, check
from harness.explore.raw_machine import ORIGINAL, InFlight, RawMachine
from harness.explore.raw_model import (
    ATTACH,
    FILE,
    MADE,
    READ_HIGH_TAG,
    ROOT,
    ROOTS,
    SECOND_ROOT,
    SMALL_MSIZE,
    RawState,
)
from harness.holds.hold import DATA, FSYNC, STAT, Held
from harness.ninep import messages as p9
from harness.ninep.client import (
    INDIRECT,
    MSIZE,
    NEXT,
    WRITE,
    Descriptor,
    FlushedError,
    NineError,
    RawDriver,
    Request,
)
from harness.ninep.messages import T
from harness.ninep.session import ANSWERED, BROKEN, count_virtio_errors, outcome, wait_answered_or_broken
from harness.qemu.deletion import Deletion
from harness.qemu.migration_socket import discarded_stream
from harness.qemu.spec import Share
from harness.testbed import Testbed

#: The numbers of the fids of :mod:`.raw_model`, of one that a step uses for itself, and of one that never is.
FIDS = {ROOT: 1, SECOND_ROOT: 9, FILE: 2, MADE: 3}
_HELPER, _UNKNOWN = 100, 4711
#: A tag that no other request of a short program has: they are counted from 1.
_OWN_TAG = 0x7FF0
#: Bytes, fewer than the file has.
_FEW = 100
_XATTR_NAME, _XATTR = "user.harness", b"an attribute"
#: Bytes, more than an attribute can have (kernel: ``include/uapi/linux/limits.h``, ``XATTR_SIZE_MAX``).
_HUGE = 1 << 24
#: Less than a message needs (QEMU: ``hw/9pfs/9p.c``, ``P9_MIN_MSIZE``).
_SMALL_MSIZE = 100
_TAG = "explored"
#: Seconds, before scaling, in which QEMU must not go on while a request is held.
_WINDOW_S = 0.15
_EVENT_TIMEOUT_S = 20.0
#: Seconds, before scaling, in which an idle device that is ejected has to be gone: QEMU needs milliseconds.
_DELETED_TIMEOUT_S = 5.0
_UNDER_WAY = ("is already in the process of unplug", "guest is busy")
#: The answers to what an active migration forbids.
_MIGRATING = "not allowed while migrating"

_BLOCKED = "blocked while mounted"

#: Steps that hold system calls, or make them fail.
_HOLDING = ("hold", "fail", "short_write")

Perform = Callable[[RawMachine, Step, RawState], None]


class RawPerformer:
    """Performs the steps of one program; the machine is started here.

    :raises Unsupported: when requests cannot be held here, or this QEMU cannot throttle an fsdev.
    """

    def __init__(self, testbed: Testbed, program: Program) -> None:
        holding = any(step.do in _HOLDING for step in program.steps)
        self._on = RawMachine(testbed, program.shares, holding=holding)
        self._footprint = measured(self._on.machine, with_guest=False)

    def perform(self, step: Step, before: RawState, after: RawState) -> None:
        """See :func:`perform`."""
        perform(self._on, step, before, after)

    def finish(self, state: RawState) -> None:
        """Release and unplug everything, and compare the footprint with that of the beginning.

        :raises Violation: when something is left.
        """
        finish(self._on, state)
        check_footprint(self._on.machine, self._footprint)

    def close(self) -> None:
        """Release held requests, and cancel a migration; errors of a QEMU that is dead are ignored."""
        for one in self._on.in_flight.values():
            with suppress(HarnessError):
                one.stack.close()
        with suppress(HarnessError):
            self._on.migration.close()


def perform(on: RawMachine, step: Step, before: RawState, after: RawState) -> None:
    """Perform one step, and compare QEMU with the model.

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
    """Release everything, end every session and eject every device; the machine is stopped then."""
    for share, device in enumerate(state.devices):
        if device.held:
            _release(on, Step(do="release", share=share), state)
    on.migration.close()
    for share, device in enumerate(state.devices):
        if device.plugged:
            on.driver(share).reset()
            _eject_idle(on, share)
    if state.running:
        _run_state(on, "stop", "STOP")


def _share(step: Step) -> int:
    assert step.share is not None
    return step.share


def _driver(on: RawMachine, step: Step) -> RawDriver:
    return on.driver(_share(step))


def _refused(step: Step, call: Callable[[], object], *texts: str) -> None:
    """:raises Disagreement: when the command is accepted, or refused with another text."""
    try:
        call()
    except QemuError as exc:
        if not any(text in exc.desc for text in texts):
            what = f"{step}: refused with another text"
            raise Disagreement(step.do, what, details=f"{exc.desc}, expected: {texts[0]}") from exc
        return
    raise Disagreement(step.do, f"{step.do} was accepted, and has to be refused: {texts[0]}")


# ---- the host ----------------------------------------------------------------------------------------------


def _plug(on: RawMachine, step: Step, before: RawState) -> None:
    share = on.shares[_share(step)]
    if before.migrating:
        _refused(step, lambda: on.machine.device_add(share), _MIGRATING)
        return
    on.machine.device_add(share)
    on.driver(_share(step))


def _plug_refused(on: RawMachine, step: Step, _before: RawState) -> None:
    share, what = on.shares[_share(step)], str(step.value)
    if what == "rom":
        bad = replace(share, device_options={**share.device_options, "romfile": "/nowhere/rom"})
        BadPlug(bad, 'failed to find romfile "/nowhere/rom"').expect_refused(on.machine)
    elif what == "duplicate":
        _refused(step, lambda: on.machine.device_add(share), *plug_refusals("busy_id", share))
    else:
        bad = unrealizable(share)[what]
        _refused(step, lambda: on.machine.device_add(bad), *plug_refusals(what, bad))


def _device_del(on: RawMachine, step: Step, before: RawState) -> None:
    """No guest acts on it; a second one may be refused because the first is under way."""

    def ask() -> None:
        on.execute("device_del", {"id": on.shares[_share(step)].id})

    if before.migrating:
        _refused(step, ask, _MIGRATING)
        return
    try:
        ask()
    except QemuError as exc:
        if not before.device(step).leaving or not any(text in exc.desc for text in _UNDER_WAY):
            raise


def _device_del_absent(on: RawMachine, step: Step, _before: RawState) -> None:
    expect_not_found(on.machine, step.do, on.shares[_share(step)])


def _run_state(on: RawMachine, command: str, event: str) -> None:
    with on.machine.qmp.listen(event) as events:
        on.execute(command)
        events.wait(
            what=f"{event} after {command}",
            timeout_s=on.machine.timeout_scale.seconds(_EVENT_TIMEOUT_S),
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
            raise Disagreement(step.do, "savevm completed with a Tattach in flight", guarantee=_BLOCKED)
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

    window_s = on.machine.timeout_scale.seconds(10 * _WINDOW_S)
    check_during(window_s, on.machine.watch, until=completed, interval_s=0.01)
    if completed():
        raise Disagreement(step.do, "migrate completed with a Tattach in flight", guarantee=_BLOCKED)
    on.execute("migrate_cancel")


def _migrate_begin(on: RawMachine, _step: Step, _before: RawState) -> None:
    on.migration.enter_context(under_way(on.machine))


# ---- resets and ejects, which wait for a held request ------------------------------------------------------


def _while_held(
    on: RawMachine,
    shares: list[int],
    begin: Callable[[], object],
    happened: Callable[[Background[object]], bool],
    what: str,
) -> None:
    """Begin what has to wait for the held requests of ``shares``, release them, and wait for its end.

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
        window_s=_WINDOW_S,
    )
    for one in held:
        one.stack.close()
    going.wait(timeout_s=on.machine.timeout_scale.seconds(_EVENT_TIMEOUT_S))
    if early:
        # Where the requests come back to, QEMU may crash, which is the cause then.
        check_during(on.machine.timeout_scale.seconds(_WINDOW_S), on.machine.watch, interval_s=0.01)
        on.execute("query-status")
        raise Disagreement("drain", f"{what} under a request in flight")


def _eject(on: RawMachine, step: Step, before: RawState) -> None:
    number = _share(step)
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
            deletion.wait(timeout_s=_EVENT_TIMEOUT_S)
    else:
        _eject_idle(on, number)
    on.forget_driver(number)


def _eject_idle(on: RawMachine, share: int) -> None:
    with Deletion(on.machine, on.shares[share].id) as deletion:
        on.guest.request_eject(on.shares[share])
        deletion.wait(timeout_s=_DELETED_TIMEOUT_S)


def _device_reset(on: RawMachine, step: Step, before: RawState) -> None:
    driver = _driver(on, step)
    if before.device(step).held:
        _while_held(on, [_share(step)], driver.reset, lambda going: going.done, "the device was reset")
    else:
        driver.reset()
    on.forget_driver(_share(step))


def _system_reset(on: RawMachine, _step: Step, before: RawState) -> None:
    """A reset also does the removals that wait for the guest (QEMU: ``hw/acpi/pcihp.c``)."""
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
            deletion.wait(timeout_s=_EVENT_TIMEOUT_S)
    on.forget_drivers()


# ---- the requests of a session -----------------------------------------------------------------------------


def _version(on: RawMachine, step: Step, _before: RawState) -> None:
    _driver(on, step).version()


def _attach(on: RawMachine, step: Step, before: RawState) -> None:
    driver = _driver(on, step)
    fid = FIDS[SECOND_ROOT if step.value == "second" else ROOT]
    if before.migrating:
        _expect_errno(step, driver, T.ATTACH, p9.attach(fid), "EBUSY")
    elif step.value == "again":
        _expect_errno(step, driver, T.ATTACH, p9.attach(fid), "EINVAL")
    else:
        driver.attach(fid)


def _expect_errno(step: Step, driver: RawDriver, kind: int, body: bytes, *errnos: str) -> None:
    seen = outcome(driver, kind, body)
    if seen not in errnos:
        raise Disagreement(step.do, f"{step.do}: {seen}, expected {' or '.join(errnos)}")


def _root(before: RawState, step: Step) -> int:
    """The number of an attached fid."""
    return min(FIDS[fid] for fid in before.device(step).fids & ROOTS)


def _open(on: RawMachine, step: Step, before: RawState) -> None:
    driver = _driver(on, step)
    driver.walk(_root(before, step), FIDS[FILE], "file")
    driver.open(FIDS[FILE], os.O_RDWR)


def _read(on: RawMachine, step: Step, before: RawState) -> None:
    """More than the file has, and less."""
    driver = _driver(on, step)
    _expect_content(step, before, driver.read(FIDS[FILE], 0, 2 * len(ORIGINAL)))
    if len(driver.read(FIDS[FILE], 0, _FEW)) != _FEW:
        raise Disagreement("content", f"a Tread of {_FEW} bytes gives another number of bytes")


def _expect_content(step: Step, before: RawState, seen: bytes) -> None:
    if seen != (WRITTEN if before.folder(step).written else ORIGINAL):
        raise Disagreement("content", "a read gives other content than the file has", details=repr(seen[:80]))


def _write(on: RawMachine, step: Step, _before: RawState) -> None:
    _expect_written(_driver(on, step).write(FIDS[FILE], 0, WRITTEN))


def _expect_written(count: int) -> None:
    if count != len(WRITTEN):
        raise Disagreement("content", f"a Twrite of {len(WRITTEN)} bytes wrote {count}")


def _fsync(on: RawMachine, step: Step, _before: RawState) -> None:
    _driver(on, step).call(T.FSYNC, p9.fsync(FIDS[FILE]))


def _create(on: RawMachine, step: Step, before: RawState) -> None:
    driver = _driver(on, step)
    driver.walk(_root(before, step), FIDS[MADE])
    driver.create(FIDS[MADE], "made")


def _unlink(on: RawMachine, step: Step, before: RawState) -> None:
    driver = _driver(on, step)
    driver.call(T.UNLINKAT, p9.unlinkat(_root(before, step), "made"))
    if MADE in before.device(step).fids:  # It is open, so its attributes can still be read.
        driver.call(T.GETATTR, p9.getattr_(FIDS[MADE]))


def _remove(on: RawMachine, step: Step, _before: RawState) -> None:
    driver = _driver(on, step)
    driver.call(T.REMOVE, p9.fid(FIDS[MADE]))
    driver.fids.discard(FIDS[MADE])


def _readdir(on: RawMachine, step: Step, before: RawState) -> None:
    driver = _driver(on, step)
    driver.walk(_root(before, step), _HELPER)
    driver.open(_HELPER)
    names = {name for name, _ in p9.entries(driver.readdir(_HELPER))}
    driver.call(T.FSYNC, p9.fsync(_HELPER))
    driver.clunk(_HELPER)
    expected = {".", "..", "file"} | ({"made"} if before.folder(step).made else set())
    if names != expected:
        what = "Rreaddir has other names than the folder"
        raise Disagreement("content", what, details=f"{sorted(names)}, expected {sorted(expected)}")


def _xattrwalk(on: RawMachine, step: Step, _before: RawState) -> None:
    """The list of the file's extended attributes, if the host's file system has any."""
    driver = _driver(on, step)
    try:
        driver.xattrwalk(FIDS[FILE], _HELPER)
    except NineError:
        return
    driver.clunk(_HELPER)


def _xattr(on: RawMachine, step: Step, before: RawState) -> None:
    """Set an extended attribute, read it, and remove it, if the host's file system has any."""
    driver, root = _driver(on, step), _root(before, step)
    try:
        _set_xattr(driver, root, _XATTR)
    except NineError:
        return
    driver.walk(root, _HELPER, "file")
    driver.xattrwalk(_HELPER, _UNKNOWN, _XATTR_NAME)
    seen = driver.read(_UNKNOWN, 0, 2 * len(_XATTR))
    driver.clunk(_UNKNOWN)
    driver.clunk(_HELPER)
    if seen != _XATTR:
        raise Disagreement("content", "an extended attribute is read with another value", details=repr(seen))
    _set_xattr(driver, root, b"")


def _set_xattr(driver: RawDriver, root: int, value: bytes) -> None:
    """The Tclunk sets it; an empty value removes it (kernel: ``fs/9p/xattr.c``, ``v9fs_fid_xattr_set``)."""
    driver.walk(root, _HELPER, "file")
    driver.call(T.XATTRCREATE, p9.xattrcreate(_HELPER, _XATTR_NAME, len(value)))
    if value:
        driver.write(_HELPER, 0, value)
    driver.clunk(_HELPER)


def _clunk(on: RawMachine, step: Step, _before: RawState) -> None:
    _driver(on, step).clunk(FIDS[str(step.value)])


def _malformed(on: RawMachine, step: Step, _before: RawState) -> None:
    driver, what = _driver(on, step), str(step.value)
    if what == "unknown_type":
        _expect_errno(step, driver, 250, b"junk", "ENOTSUP", "EOPNOTSUPP")
    elif what == "unknown_fid":
        _expect_errno(step, driver, T.READ, p9.read(_UNKNOWN, 0, 10), "EINVAL", "ENOENT")
    elif what == "queue":
        driver.set_queue(1, 1)  # The device has no such queue.
    elif what == SMALL_MSIZE:
        _expect_error(step, driver, T.VERSION, p9.version(_SMALL_MSIZE))
    else:
        _break(on, step, driver, what)


def _break(on: RawMachine, step: Step, driver: RawDriver, what: str) -> None:
    """Offer the device what it has to refuse with ``virtio_error``."""
    answered, errors = driver.answered(), count_virtio_errors(on.machine)
    last, out = driver.queue_size - 2, driver.buffer(0)
    chains = {
        "next": (Descriptor(out, p9.HEADER, NEXT, driver.queue_size + 5),),
        "no_reply": (Descriptor(out, p9.HEADER),),
        "empty": (Descriptor(out, 0, NEXT, last + 1), Descriptor(out, 4096, WRITE)),
        "indirect": (Descriptor(out, 0, INDIRECT),),
    }
    if what == "ring":
        driver.break_device()
    elif what == "no_body":
        driver.send(T.READ)
    else:
        driver.write_descriptors(last, *chains[what])
        driver.make_available(last)
    if wait_answered_or_broken(on.machine, driver, answered, errors) != BROKEN:
        raise Disagreement(step.do, f"{step.do} {what}: answered, and the device has to be marked broken")


def _ignored(on: RawMachine, step: Step, _before: RawState) -> None:
    """A device that is marked broken answers nothing until a reset, also where it has migrated to."""
    driver = _driver(on, step)
    answered = driver.answered()
    driver.send(T.VERSION, p9.version(MSIZE))
    on.execute("query-status")  # QEMU's main loop has handled the notification.
    if driver.answered() != answered:
        raise Disagreement(step.do, "a device that is marked broken answers")


def _expect_error(step: Step, driver: RawDriver, kind: int, body: bytes) -> None:
    if outcome(driver, kind, body) == ANSWERED:
        raise Disagreement(step.do, f"{step.do} {step.value}: answered, and has to fail")


def _misuse(on: RawMachine, step: Step, before: RawState) -> None:
    root, file, what = _root(before, step), FIDS[FILE], str(step.value)
    messages: dict[str, tuple[T, bytes]] = {
        "open": (T.LOPEN, p9.open_(file)),
        "walk_to_it": (T.WALK, p9.walk(root, file, "file")),
        "walk_itself": (T.WALK, p9.walk(file, file)),
        "rename": (T.RENAME, p9.rename(file, root, "renamed")),
        "readdir": (T.READDIR, p9.read(file, 0, 4096)),
        "xattrcreate": (T.XATTRCREATE, p9.xattrcreate(file, "user.harness", 8)),
        "slash": (T.WALK, p9.walk(root, _HELPER, "../outside")),
    }
    if what in messages:
        _expect_error(step, _driver(on, step), *messages[what])
    elif what == "huge_xattr":
        body = p9.xattrcreate(_HELPER, "user.harness", _HUGE)
        _misuse_of(on, step, root, "file", (T.XATTRCREATE, body))
    else:
        _misuse_of_the_hosts(on, step, root)


def _misuse_of(on: RawMachine, step: Step, root: int, name: str, message: tuple[T, bytes]) -> None:
    """Send a message about a fid that was walked to; it has to fail."""
    driver = _driver(on, step)
    driver.walk(root, _HELPER, name)
    _expect_error(step, driver, *message)
    driver.clunk(_HELPER)


def _misuse_of_the_hosts(on: RawMachine, step: Step, root: int) -> None:
    """What is on the host, and no guest has made: links that lead out of the export, and a FIFO."""
    path = on.shares[_share(step)].path / "special"
    if step.value == "open_fifo":
        os.mkfifo(path)
    else:
        outside = path.parent.parent / "outside"
        outside.mkdir(exist_ok=True)
        (outside / "secret").write_text("secret")
        path.symlink_to(outside / "secret" if step.value == "open_link" else outside)
    try:
        if step.value == "through_link":
            _misuse_of(on, step, root, "special", (T.WALK, p9.walk(_HELPER, _UNKNOWN, "secret")))
        else:
            _misuse_of(on, step, root, "special", (T.LOPEN, p9.open_(_HELPER)))
    finally:
        path.unlink()


def _every_kind(on: RawMachine, step: Step, before: RawState) -> None:
    """Messages of many kinds, which together leave the folder as it was."""
    driver, root, file = _driver(on, step), _root(before, step), FIDS[FILE]
    for kind, body in (
        (T.STATFS, p9.fid(root)),
        (T.GETATTR, p9.getattr_(file)),
        (T.SETATTR, p9.setattr_(file, 0o600)),
        (T.LOCK, p9.lock(file)),
        (T.GETLOCK, p9.getlock(file)),
        (T.LINK, p9.link(root, file, "linked")),
        (T.RENAMEAT, p9.renameat(root, "linked", "renamed")),
        (T.UNLINKAT, p9.unlinkat(root, "renamed")),
        (T.SYMLINK, p9.symlink(root, "symbolic", "target")),
        (T.WALK, p9.walk(root, _HELPER, "symbolic")),
        (T.READLINK, p9.fid(_HELPER)),
        (T.RENAME, p9.rename(_HELPER, root, "again")),
        (T.REMOVE, p9.fid(_HELPER)),
        (T.MKNOD, p9.mknod(root, "node")),
        (T.UNLINKAT, p9.unlinkat(root, "node")),
        (T.MKDIR, p9.mkdir(root, "folder")),
        (T.WALK, p9.walk(root, _HELPER, "folder")),
        (T.LCREATE, p9.create(_HELPER, "inside")),
        (T.REMOVE, p9.fid(_HELPER)),
        (T.UNLINKAT, p9.unlinkat(root, "folder", p9.REMOVEDIR)),
    ):
        answer = driver.call(kind, body)
        if kind == T.READLINK and answer[2:] != b"target":
            raise Disagreement("content", f"Rreadlink has {answer[2:]!r} instead of the link's target")


# ---- holds -------------------------------------------------------------------------------------------------

_CALLS = {"read": DATA, READ_HIGH_TAG: DATA, "write": DATA, "fsync": FSYNC, ATTACH: STAT}
#: Tags are numbers of 16 bits without a sign.
_TAGS = {READ_HIGH_TAG: 0x9000}
_READ = (T.READ, p9.read(FIDS[FILE], 0, 2 * len(ORIGINAL)))
_REQUESTS: dict[str, tuple[T, bytes]] = {
    "read": _READ,
    READ_HIGH_TAG: _READ,
    "write": (T.WRITE, p9.write(FIDS[FILE], 0, WRITTEN)),
    "fsync": (T.FSYNC, p9.fsync(FIDS[FILE])),
    ATTACH: (T.ATTACH, p9.attach(FIDS[ROOT])),
}


def _hold(on: RawMachine, step: Step, _before: RawState) -> None:
    """Send a request, and hold its system call in the worker thread."""
    assert on.hold is not None
    number, what = _share(step), str(step.value)
    driver, stack = on.driver(number), ExitStack()
    held: Held = stack.enter_context(on.hold.requests(on.shares[number], *_CALLS[what]))
    request = driver.send(*_REQUESTS[what], tag=_TAGS.get(what))
    on.in_flight[number] = InFlight(held, request, stack)
    held.wait_caught()


def _fail(on: RawMachine, step: Step, _before: RawState) -> None:
    """The host's system call fails, and the guest gets its errno."""
    assert on.hold is not None
    what = str(step.value)
    with on.hold.failing(on.shares[_share(step)], errno.ENOSPC, *_CALLS[what]):
        _expect_errno(step, _driver(on, step), *_REQUESTS[what], "ENOSPC")


def _short_write(on: RawMachine, step: Step, _before: RawState) -> None:
    """The host writes half of what it is asked to. What is acknowledged has been written (QEMU goes on)."""
    assert on.hold is not None
    driver, share = _driver(on, step), on.shares[_share(step)]
    with on.hold.halving(share):
        done = driver.write(FIDS[FILE], 0, WRITTEN)
    if (share.path / "file").read_bytes()[:done] != WRITTEN[:done]:
        raise Disagreement("content", "a write that the host did in part is acknowledged as complete")
    driver.write(FIDS[FILE], 0, WRITTEN)


def _flush(on: RawMachine, step: Step, before: RawState) -> None:
    """A Tflush of a request in flight has to wait for it; one of nothing is answered at once."""
    driver = _driver(on, step)
    if step.value == "itself":
        driver.flush(_OWN_TAG, tag=_OWN_TAG)
        return
    one = on.in_flight.get(_share(step)) if before.device(step).held else None
    if one is None:
        driver.flush(_UNKNOWN)
        return
    answered = driver.answered()
    one.flushes.append(driver.send(T.FLUSH, p9.flush(one.request.tag)))
    one.held.in_flight()  # It sends a QMP command: QEMU has read the Tflush when that is answered.
    if driver.answered() != answered:
        high = " of a tag above 0x7fff" if before.device(step).held == READ_HIGH_TAG else ""
        raise Disagreement(step.do, f"Tflush{high} was answered before the request that it flushes")


def _release(on: RawMachine, step: Step, before: RawState) -> None:
    """The request goes on and is answered, or returned without an answer if it was flushed."""
    number, what = _share(step), before.device(step).held
    one, driver = on.in_flight.pop(number), on.driver(number)
    one.stack.close()
    if one.flushes:
        for flush in one.flushes:
            driver.wait_answer(flush)
        try:
            driver.wait_answer(one.request)
        except (FlushedError, NineError):
            return
    _expect_answer(step, before, what, driver, one.request)


def _expect_answer(step: Step, before: RawState, what: str, driver: RawDriver, request: Request) -> None:
    answer = driver.wait_answer(request)
    if what in ("read", READ_HIGH_TAG):
        _expect_content(step, before, answer[4:])
    elif what == "write":
        _expect_written(int.from_bytes(answer[:4], "little"))
    elif what == ATTACH:
        driver.fids.add(FIDS[ROOT])


PERFORM: dict[str, Perform] = {
    "plug": _plug,
    "plug_refused": _plug_refused,
    "device_del": _device_del,
    "device_del_absent": lambda on, step, _before: expect_not_found(
        on.machine, step.do, on.shares[_share(step)]
    ),
    "eject": _eject,
    "device_reset": _device_reset,
    "version": _version,
    "attach": _attach,
    "open": _open,
    "read": _read,
    "write": _write,
    "fsync": _fsync,
    "create": _create,
    "unlink": _unlink,
    "remove": _remove,
    "readdir": _readdir,
    "xattrwalk": _xattrwalk,
    "clunk": _clunk,
    "fail": _fail,
    "short_write": _short_write,
    "xattr": _xattr,
    "flush": _flush,
    "malformed": _malformed,
    "ignored": _ignored,
    "misuse": _misuse,
    "every_kind": _every_kind,
    "hold": _hold,
    "release": _release,
    "cont": lambda on, _step, _before: _run_state(on, "cont", "RESUME"),
    "stop": lambda on, _step, _before: _run_state(on, "stop", "STOP"),
    "system_reset": _system_reset,
    "savevm": _savevm,
    "loadvm": _loadvm,
    "migrate": _migrate,
    "migrate_begin": _migrate_begin,
    "migrate_cancel": lambda on, _step, _before: on.migration.close(),
}
