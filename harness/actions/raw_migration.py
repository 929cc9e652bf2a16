"""``migrate`` of a machine that was never started: its stream as a file, whole or damaged.

It takes a tenth of a second, and the machine's devices can be looked at register by register on both sides.
"""

from __future__ import annotations

from pathlib import Path

from harness.actions.migration import MIGRATE_TIMEOUT_S, migrate_into, wait_given_up, wait_status
from harness.actions.stream import PAUSED
from harness.ninep.client import RawDriver, RawGuest
from harness.qemu.machine import Machine
from harness.qemu.migration_socket import stream_from_file


def save_stream(raw: RawGuest, path: Path) -> None:
    """``migrate`` into the file ``path``; the machine has completed it, and can go on all the same.

    :raises QemuError: when ``migrate`` is refused.
    """
    migrate_into(raw.machine, path)


def load_stream(source: RawGuest, path: Path) -> RawGuest:
    """A machine that has loaded the stream of ``source`` from the file ``path``.

    :raises QemuDied: when it could not load it.
    """
    loaded = source.destination()
    with stream_from_file(loaded.machine, path):
        _wait_loaded(loaded.machine)
    return loaded


def _wait_loaded(machine: Machine) -> None:
    machine.wait_until(
        lambda: machine.qmp.execute("query-status")["status"] != "inmigrate",
        what=f"{machine.name} to load its stream",
        timeout_s=MIGRATE_TIMEOUT_S,
        watch=machine.watch_process,
    )


def migrate_raw(source: RawGuest, *drivers: RawDriver) -> tuple[RawGuest, list[RawDriver]]:
    """Migrate, and end the source.

    :returns: where the devices are now, and ``drivers`` that go on with them there.
    """
    path = source.machine.folder / "stream"
    save_stream(source, path)
    arrived = load_stream(source, path)
    source.machine.quit()
    return arrived, [driver.moved_to(arrived) for driver in drivers]


def expect_given_up(source: RawGuest, path: Path) -> str:
    """A destination that is given the damaged stream in ``path``: it has to end with 1.

    :returns: what it said.
    :raises Violation: when it loads the stream, or crashes.
    """
    machine = source.destination().machine
    machine.expect_exit("a stream that is damaged")
    with stream_from_file(machine, path):
        return wait_given_up(machine)


def require_pause(raw: RawGuest) -> None:
    """:raises Unsupported: when this QEMU has no pause before the switch-over. To be asked before a plug."""
    PAUSED.check(raw.machine)


def migrate_to_the_pause(source: RawGuest) -> RawGuest:
    """Begin a migration that waits before the switch-over; returns its destination, which waits, too."""
    destination = source.destination()
    PAUSED.prepare(source.machine, destination.machine)
    uri = PAUSED.open(source.machine, destination.machine)
    source.machine.qmp.execute("migrate", {"uri": uri}, watch=source.machine.watch)
    PAUSED.begun(source.machine)
    return destination


def switch_over(source: RawGuest, destination: RawGuest) -> RawGuest:
    """``migrate-continue``; returns the destination, which has the devices then. The source ends."""
    machine = source.machine
    machine.qmp.execute("migrate-continue", {"state": "pre-switchover"}, watch=machine.watch)
    wait_status(machine, "completed")
    _wait_loaded(destination.machine)
    machine.quit()
    return destination


def cancel(source: RawGuest, destination: RawGuest) -> None:
    """``migrate_cancel``; the destination gives up.

    :raises Violation: when the migration completes all the same, or the destination crashes.
    """
    destination.machine.expect_exit("its source cancels the migration")
    source.machine.qmp.execute("migrate_cancel", watch=source.machine.watch)
    wait_status(source.machine, "cancelled")
    PAUSED.undo(source.machine)
    wait_given_up(destination.machine)
