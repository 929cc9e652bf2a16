"""The invariants that hold for both kinds of guests, and the footprint of a QEMU without devices."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from harness.actions.migration import blocked_reason, expect_blocked_by
from harness.deadline import check_during
from harness.errors import QemuError, Violation, WaitTimeout
from harness.explore.disagreement import Disagreement, shortened
from harness.leaks.footprint import counts, handles, thread_name
from harness.leaks.vmstate import vmstate_sections
from harness.qemu.blockers import blocked_reasons
from harness.qemu.deletion import PERIPHERAL
from harness.qemu.machine import Machine
from harness.qemu.migration_socket import discarded_stream
from harness.qemu.spec import Share

#: Seconds, before scaling, for what an RCU grace period or an ending thread still holds.
SETTLE_S = 2.0
#: Seconds, before scaling, in which a migration must not complete.
_INCOMPLETE_S = 1.5
#: QEMU's worker threads come and go: a pool (QEMU: ``util/thread-pool.c``).
_POOL = re.compile("worker|thread-pool|pool-")


def plugged(shares: Sequence[Share], present: Iterable[bool]) -> list[Share]:
    """The shares whose device is present, of both kinds of guests."""
    return [share for share, there in zip(shares, present, strict=True) if there]


def check_devices(machine: Machine, expected: Iterable[Share]) -> None:
    """The invariant: QEMU has exactly these 9p devices.

    :raises Disagreement: when it has others.
    """
    children = machine.qmp.execute("qom-list", {"path": PERIPHERAL}, watch=machine.watch)
    devices = [child["name"] for child in children if "virtio-9p" in child["type"]]
    seen = sorted(name for name in devices if name != "type")
    ids = sorted(share.id for share in expected)
    if seen != ids:
        what = f"QEMU has {len(seen)} devices instead of {len(ids)}"
        raise Disagreement("devices", what, details=f"{PERIPHERAL}: {seen}; expected: {ids}")


def check_blockers(machine: Machine, mounted: Sequence[Share], *, attaching: bool = False) -> None:
    """The invariant: exactly these shares block migration.

    :param attaching: a Tattach is in flight. Whether its share is listed already is QEMU's choice.
    :raises Disagreement: when others do.
    """
    if attaching:
        reasons = blocked_reasons(machine)
        if any(blocked_reason(share) not in reasons for share in mounted):
            raise Disagreement("blocked_reasons", "blocked-reasons does not name a mounted share")
        return
    try:
        expect_blocked_by(machine, *mounted)
    except Violation as exc:
        what = shortened(exc.message).partition(": ")[2]
        raise Disagreement("blocked_reasons", what, details=exc.message) from None


def expect_refused(do: str, mounted: Sequence[Share], refusal: str) -> None:
    """The invariant: a migration or a snapshot is refused, and names one of the mounted shares.

    :param refusal: QEMU's text; empty when it was accepted.
    :raises Disagreement: when it was accepted, or names none.
    """
    if not refusal:
        what = f"{do} was accepted while an export is attached"
        raise Disagreement(do, what, guarantee="blocked while mounted")
    if not any(blocked_reason(share) in refusal for share in mounted):
        raise Disagreement(do, f"refused with another text: {refusal}")


def expect_not_found(machine: Machine, do: str, share: Share) -> None:
    """The invariant: ``device_del`` of a device that is not there is refused.

    :raises Disagreement: when it is accepted, or refused with another text.
    """
    try:
        machine.qmp.execute("device_del", {"id": share.id}, watch=machine.watch)
    except QemuError as exc:
        if "not found" not in exc.desc:
            raise Disagreement(do, "refused with another text", details=exc.desc) from exc
    else:
        raise Disagreement(do, "device_del of a device that is not there was accepted")


def expect_migrate_refused(machine: Machine, do: str, mounted: Sequence[Share]) -> None:
    """The invariant: ``migrate`` is refused, and names one of the mounted shares.

    :raises Disagreement: when it is accepted, or names none.
    """
    try:
        # No descriptor is handed over (getfd): QEMU would keep it.
        machine.qmp.execute("migrate", {"uri": "exec:cat > /dev/null"}, watch=machine.watch)
    except QemuError as exc:
        expect_refused(do, mounted, exc.desc)
    else:
        expect_refused(do, mounted, "")


def expect_no_migration(machine: Machine, do: str) -> None:
    """The invariant: with a Tattach in flight ``migrate`` is refused, or does not complete.

    It is cancelled then.

    :raises Disagreement: when it completes.
    """

    def completed() -> bool:
        return migration_status(machine) == "completed"

    with discarded_stream(machine) as uri:
        try:
            machine.qmp.execute("migrate", {"uri": uri}, watch=machine.watch)
        except QemuError:
            return
        window_s = machine.timeout_scale.seconds(_INCOMPLETE_S)
        check_during(window_s, machine.watch, until=completed, interval_s=0.01)
        if completed():
            what = f"{do} completed with a Tattach in flight"
            raise Disagreement(do, what, guarantee="blocked while mounted")
        machine.qmp.execute("migrate_cancel", watch=machine.watch)


def migration_status(machine: Machine) -> str:
    """``query-migrate``'s ``status`` for an invariant; the empty string before the first migration."""
    return str(machine.qmp.execute("query-migrate", watch=machine.watch).get("status", ""))


def check_run_state(machine: Machine, *, running: bool) -> None:
    """The invariant: the machine runs, or does not.

    :raises Disagreement: when it is the other way round.
    """
    status = machine.qmp.execute("query-status", watch=machine.watch)
    if status["running"] != running:
        what = f"the machine is {status['status']}, and not {'running' if running else 'stopped'}"
        raise Disagreement("run_state", what)


def measured(machine: Machine, *, with_guest: bool) -> dict[str, int]:
    """The footprint that an invariant compares.

    Descriptors, QOM children, memory regions, blockers; vmstate sections if stopped.

    Without a guest the threads are counted as well, except those of the pool, which are recognised by their
    names. With a guest the threads have no names, and sockets come and go with the guest's connections.
    """
    found = handles(machine.pid)
    sockets = found["fd_targets"].get("socket", 0) if with_guest else 0
    held = {"fds": int(found["fds"]) - sockets, **counts(machine)}
    if not with_guest:
        names = [thread_name(machine.pid, number) for number in found["thread_ids"]]
        held["threads"] = sum(_POOL.match(name) is None for name in names)
    sections = vmstate_sections(machine)
    return held if sections is None else {**held, "vmstate_sections": sections}


def check_footprint(machine: Machine, before: dict[str, int]) -> None:
    """The invariant: a stopped machine without devices holds what it held at the beginning.

    :raises Disagreement: when it holds more.
    """
    # A destination was started in another way, and has the descriptors of its migration.
    arrived = machine.spec.incoming and not machine.spec.from_template
    unlike = ("fds", "threads") if arrived else ()
    left: dict[str, int] = {}

    def as_before() -> bool:
        now = measured(machine, with_guest="threads" not in before)
        left.clear()
        left.update({k: now[k] - v for k, v in before.items() if k in now and now[k] > v and k not in unlike})
        return not left

    try:
        machine.wait_until(as_before, what="its footprint", timeout_s=SETTLE_S, interval_s=0.02)
    except WaitTimeout:
        grown = ", ".join(f"{name} +{more}" for name, more in sorted(left.items()))
        raise Disagreement("footprint", f"left when everything is unplugged: {grown}") from None
