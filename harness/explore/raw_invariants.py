"""The invariants of a raw program: after each step QEMU is what the model says, at the end as it began."""

from __future__ import annotations

import re
from pathlib import Path

from harness.actions.migration import blocked_reason, expect_blocked_by
from harness.errors import Violation, WaitTimeout
from harness.explore.disagreement import Disagreement, shortened
from harness.explore.raw_machine import ORIGINAL, RawMachine
from harness.explore.raw_model import FILE, MADE, RawState
from harness.leaks.footprint import counts, handles
from harness.leaks.vmstate import vmstate_sections
from harness.qemu.blockers import blocked_reasons
from harness.qemu.deletion import PERIPHERAL

#: The content of an export's file after a write; as long as :data:`.raw_machine.ORIGINAL`.
WRITTEN = b"written!" * 100
#: Seconds, before scaling, for what an RCU grace period or an ending thread still holds.
_SETTLE_S = 2.0
#: QEMU's worker threads come and go: a pool (QEMU: ``util/thread-pool.c``).
_POOL = re.compile("worker|thread-pool|pool-")


def check(on: RawMachine, state: RawState) -> None:
    """The invariants that hold between any two steps.

    :raises Disagreement: when one does not hold.
    """
    _check_devices(on, state)
    _check_blockers(on, state)
    _check_run_state(on, state)
    for share in range(len(on.shares)):
        _check_content(on, state, share)
    _check_open_files(on, state)


def _check_devices(on: RawMachine, state: RawState) -> None:
    children = on.execute("qom-list", {"path": PERIPHERAL})
    seen = sorted(child["name"] for child in children if "virtio-9p" in child["type"])
    expected = sorted(
        share.id for share, device in zip(on.shares, state.devices, strict=True) if device.plugged
    )
    if seen != expected:
        what = f"QEMU has {len(seen)} devices instead of {len(expected)}"
        raise Disagreement("devices", what, details=f"{PERIPHERAL}: {seen}; expected: {expected}")
    ids = {share.id for share in on.shares}
    reported = sum(event.data.get("device") in ids for event in on.deletions.events)
    if reported != on.expected_deletions:
        what = f"{reported} devices were reported deleted instead of {on.expected_deletions}"
        raise Disagreement("events", what)


def _check_blockers(on: RawMachine, state: RawState) -> None:
    mounted = [share for share, device in zip(on.shares, state.devices, strict=True) if device.blocks]
    if state.attaching:  # Whether a Tattach in flight is listed already is QEMU's choice.
        reasons = blocked_reasons(on.machine)
        if any(blocked_reason(share) not in reasons for share in mounted):
            raise Disagreement("blocked_reasons", "blocked-reasons does not name a mounted share")
        return
    try:
        expect_blocked_by(on.machine, *mounted)
    except Violation as exc:
        what = shortened(exc.message).partition(": ")[2]
        raise Disagreement("blocked_reasons", what, details=exc.message) from None


def _check_run_state(on: RawMachine, state: RawState) -> None:
    status = on.execute("query-status")
    if status["running"] != state.running:
        expected = "running" if state.running else "stopped"
        raise Disagreement("run_state", f"the machine is {status['status']}, and not {expected}")


def _check_content(on: RawMachine, state: RawState, share: int) -> None:
    if any(device.held == "write" for device in state.neighbours(share)):
        return
    folder, path = state.folders[state.folder_of(share)], on.shares[share].path
    if (path / "file").read_bytes() != (WRITTEN if folder.written else ORIGINAL):
        raise Disagreement("content", "the export's file has other content than was written")
    if (path / "made").exists() != folder.made:
        raise Disagreement("content", f"the created file {'does not exist' if folder.made else 'exists'}")


def _check_open_files(on: RawMachine, state: RawState) -> None:
    """QEMU has open: the root of each device's export, and the files of open fids."""
    if state.any_held:
        return
    expected = sum(device.plugged + len(device.fids & {FILE, MADE}) for device in state.devices)
    try:
        on.machine.wait_until(
            lambda: _open_files(on) == expected, what="its files", timeout_s=_SETTLE_S, interval_s=0.01
        )
    except WaitTimeout:
        more = _open_files(on) - expected
        what = "stay open" if more > 0 else "are closed too early"
        raise Disagreement("open_files", f"{abs(more)} files of the share {what}") from None


def _open_files(on: RawMachine) -> int:
    """How many files of the exports QEMU has open."""
    folders = tuple(str(share.path.resolve()) for share in on.shares)
    targets = handles(on.machine.pid)["fd_targets"]
    return sum(count for target, count in targets.items() if target.startswith(folders))


def measured(on: RawMachine) -> dict[str, int]:
    """What QEMU holds: threads without those of the pool, descriptors, QOM children and so on."""
    machine = on.machine
    found = handles(machine.pid)
    names = [_thread_name(machine.pid, number) for number in found["thread_ids"]]
    held = {
        "threads": sum(_POOL.match(name) is None for name in names),
        "fds": int(found["fds"]),
        **counts(machine),
    }
    sections = vmstate_sections(machine)
    return held if sections is None else {**held, "vmstate_sections": sections}


def check_footprint(on: RawMachine, before: dict[str, int]) -> None:
    """Compare what a stopped machine without devices holds with what it held at the beginning.

    :raises Disagreement: when it holds more.
    """
    # A destination was started in another way, and has the descriptors of its migration.
    unlike = ("fds", "threads") if on.machine.spec.incoming else ()
    left: dict[str, int] = {}

    def as_before() -> bool:
        now = measured(on)
        left.clear()
        left.update({k: now[k] - v for k, v in before.items() if k in now and now[k] > v and k not in unlike})
        return not left

    try:
        on.machine.wait_until(as_before, what="its footprint", timeout_s=_SETTLE_S, interval_s=0.02)
    except WaitTimeout:
        grown = ", ".join(f"{name} +{more}" for name, more in left.items())
        raise Disagreement("footprint", f"left when everything is unplugged: {grown}") from None


def _thread_name(pid: int, thread: int) -> str:
    """The name of a thread; empty when it has just ended."""
    try:
        return Path(f"/proc/{pid}/task/{thread}/comm").read_text().strip()
    except OSError:
        return ""
