"""The invariants of a raw program: after each step QEMU is what the model says."""

from __future__ import annotations

from harness.errors import WaitTimeout
from harness.explore.disagreement import Disagreement
from harness.explore.invariants import SETTLE_S, check_blockers, check_devices, check_run_state, plugged
from harness.explore.raw_machine import ORIGINAL, RawMachine
from harness.explore.raw_model import FILE, MADE, RawState
from harness.leaks.footprint import handles
from harness.qemu.blockers import lists_blocked_reasons

#: The content of an export's file after a write; as long as :data:`.raw_machine.ORIGINAL`.
WRITTEN = b"written!" * 100


def check(on: RawMachine, state: RawState) -> None:
    """The invariants of a raw program that hold between any two steps.

    :raises Disagreement: when one does not hold.
    """
    check_devices(on.machine, plugged(on.shares, (device.plugged for device in state.devices)))
    _check_events(on)
    _check_blockers(on, state)
    check_run_state(on.machine, running=state.running)
    for share in range(len(on.shares)):
        _check_content(on, state, share)
    if not state.any_held:
        check_open_files(on, state)


def _check_events(on: RawMachine) -> None:
    ids = {share.id for share in on.shares}
    reported = sum(event.data.get("device") in ids for event in on.deletions.events)
    if reported != on.expected_deletions:
        what = f"{reported} devices were reported deleted instead of {on.expected_deletions}"
        raise Disagreement("events", what)


def _check_blockers(on: RawMachine, state: RawState) -> None:
    if state.migrating and not lists_blocked_reasons(on.machine):
        return  # Such a QEMU is asked by trying to migrate.
    mounted = plugged(on.shares, (device.blocks for device in state.devices))
    check_blockers(on.machine, mounted, attaching=state.attaching)


def _check_content(on: RawMachine, state: RawState, share: int) -> None:
    if any(device.held == "write" for device in state.neighbours(share)):
        return
    folder, path = state.folders[state.folder_of(share)], on.shares[share].path
    if (path / "file").read_bytes() != (WRITTEN if folder.written else ORIGINAL):
        raise Disagreement("content", "the export's file has other content than was written")
    if (path / "made").exists() != folder.made:
        raise Disagreement("content", f"the created file {'does not exist' if folder.made else 'exists'}")


def check_open_files(on: RawMachine, state: RawState) -> None:
    """The invariant of a raw program about open files: roots of exports, and files of open fids.

    No request is held.

    :raises Disagreement: when it has more or fewer files of the exports open.
    """
    expected = sum(device.plugged + len(device.fids & {FILE, MADE}) for device in state.devices)
    try:
        on.machine.wait_until(
            lambda: _open_files(on) == expected, what="its files", timeout_s=SETTLE_S, interval_s=0.01
        )
    except WaitTimeout:
        more = _open_files(on) - expected
        what = "stay open" if more > 0 else "are closed too early"
        raise Disagreement("open_files", f"{abs(more)} files of the share {what}") from None


def _open_files(on: RawMachine) -> int:
    """How many files of the exports QEMU has open, for the invariant of a raw program."""
    folders = tuple(str(share.path.resolve()) for share in on.shares)
    targets = handles(on.machine.pid)["fd_targets"]
    return sum(count for target, count in targets.items() if target.startswith(folders))
