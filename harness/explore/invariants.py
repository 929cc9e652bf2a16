"""The invariants that hold for both kinds of guests, and the footprint of a QEMU without devices."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from harness.errors import WaitTimeout
from harness.explore.disagreement import Disagreement
from harness.leaks.footprint import counts, handles
from harness.leaks.vmstate import vmstate_sections
from harness.qemu.deletion import PERIPHERAL
from harness.qemu.machine import Machine
from harness.qemu.spec import Share

#: Seconds, before scaling, for what an RCU grace period or an ending thread still holds.
SETTLE_S = 2.0
#: QEMU's worker threads come and go: a pool (QEMU: ``util/thread-pool.c``).
_POOL = re.compile("worker|thread-pool|pool-")


def plugged(shares: Sequence[Share], present: Iterable[bool]) -> list[Share]:
    """The shares whose device is present."""
    return [share for share, there in zip(shares, present, strict=True) if there]


def check_devices(machine: Machine, expected: Iterable[Share]) -> None:
    """QEMU has exactly these 9p devices.

    :raises Disagreement: when it has others.
    """
    children = machine.qmp.execute("qom-list", {"path": PERIPHERAL}, watch=machine.watch)
    seen = sorted(child["name"] for child in children if "virtio-9p" in child["type"])
    ids = sorted(share.id for share in expected)
    if seen != ids:
        what = f"QEMU has {len(seen)} devices instead of {len(ids)}"
        raise Disagreement("devices", what, details=f"{PERIPHERAL}: {seen}; expected: {ids}")


def check_run_state(machine: Machine, *, running: bool) -> None:
    """The machine runs, or does not.

    :raises Disagreement: when it is the other way round.
    """
    status = machine.qmp.execute("query-status", watch=machine.watch)
    if status["running"] != running:
        what = f"the machine is {status['status']}, and not {'running' if running else 'stopped'}"
        raise Disagreement("run_state", what)


def measured(machine: Machine, *, named_threads: bool) -> dict[str, int]:
    """What QEMU holds: descriptors, QOM children, memory regions, blockers, vmstate sections if stopped.

    :param named_threads: count the threads as well, without those of the pool, which are told by name.
    """
    found = handles(machine.pid)
    held = {"fds": int(found["fds"]), **counts(machine)}
    if named_threads:
        names = [_thread_name(machine.pid, number) for number in found["thread_ids"]]
        held["threads"] = sum(_POOL.match(name) is None for name in names)
    sections = vmstate_sections(machine)
    return held if sections is None else {**held, "vmstate_sections": sections}


def check_footprint(machine: Machine, before: dict[str, int]) -> None:
    """Compare what a stopped machine without devices holds with what it held at the beginning.

    :raises Disagreement: when it holds more.
    """
    # A destination was started in another way, and has the descriptors of its migration.
    arrived = machine.spec.incoming and not machine.spec.from_template
    unlike = ("fds", "threads") if arrived else ()
    left: dict[str, int] = {}

    def as_before() -> bool:
        now = measured(machine, named_threads="threads" in before)
        left.clear()
        left.update({k: now[k] - v for k, v in before.items() if k in now and now[k] > v and k not in unlike})
        return not left

    try:
        machine.wait_until(as_before, what="its footprint", timeout_s=SETTLE_S, interval_s=0.02)
    except WaitTimeout:
        grown = ", ".join(f"{name} +{more}" for name, more in sorted(left.items()))
        raise Disagreement("footprint", f"left when everything is unplugged: {grown}") from None


def _thread_name(pid: int, thread: int) -> str:
    """The name of a thread; empty when it has just ended."""
    try:
        return Path(f"/proc/{pid}/task/{thread}/comm").read_text().strip()
    except OSError:
        return ""
