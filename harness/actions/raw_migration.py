"""``migrate`` of a machine that was never started, through a stream in a file that is whole or damaged.

It takes a tenth of a second, and the raw client can read each device register on both sides.
"""

from __future__ import annotations

from pathlib import Path

from harness.actions.migration import MIGRATE_TIMEOUT_S, migrate_into, wait_load_failed, wait_status
from harness.actions.stream import PAUSED
from harness.errors import QmpLost
from harness.ninep.client import RawDriver, RawGuest
from harness.qemu.machine import Machine
from harness.qemu.migration_socket import stream_from_file


def save_stream(raw: RawGuest, path: Path) -> None:
    """``migrate`` into the file ``path``, until it completes; the machine can be used afterwards.

    :raises QemuError: when ``migrate`` is refused.
    """
    migrate_into(raw.machine, path)


def load_stream(source: RawGuest, path: Path) -> RawGuest:
    """Launch a destination that loads the stream of ``source`` from the file ``path``.

    :raises QemuDied: when the destination cannot load it.
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
    """Migrate a machine that was never started, and end the source.

    :returns: the destination, and ``drivers`` that use the devices there.
    """
    path = source.machine.folder / "stream"
    save_stream(source, path)
    arrived = load_stream(source, path)
    source.machine.quit()
    return arrived, [driver.moved_to(arrived) for driver in drivers]


def expect_load_fails(source: RawGuest, path: Path) -> str:
    """Assert that a destination cannot load the damaged stream in ``path``, and exits with 1.

    :returns: the destination's output.
    :raises Violation: when it loads the stream, or crashes.
    """
    machine = source.destination().machine
    machine.expect_exit("a stream that is damaged")
    with stream_from_file(machine, path):
        return wait_load_failed(machine)


def load_stream_or_fail(source: RawGuest, path: Path) -> RawGuest | None:
    """As :func:`load_stream`, for a stream that QEMU may refuse: ``None`` when it exits with 1.

    :raises Violation: when it crashes.
    """
    loaded = source.destination()
    machine = loaded.machine
    machine.expect_exit("a stream that it may refuse")
    with stream_from_file(machine, path):
        machine.wait_until(
            lambda: not machine.running or _is_loaded(machine),
            what=f"{machine.name} to load its stream, or to refuse it",
            timeout_s=MIGRATE_TIMEOUT_S,
        )
    if machine.running:
        return loaded
    wait_load_failed(machine)
    return None


def _is_loaded(machine: Machine) -> bool:
    try:
        return bool(machine.qmp.execute("query-status")["status"] != "inmigrate")
    except QmpLost:  # It exits.
        return False


def require_pause(raw: RawGuest) -> None:
    """Check that this QEMU can pause before the switch-over. To be called before a device is plugged.

    :raises Unsupported: when it cannot.
    """
    PAUSED.check(raw.machine)


def migrate_to_the_pause(source: RawGuest) -> RawGuest:
    """Begin a migration that waits before the switch-over; returns its destination, which waits as well."""
    destination = source.destination()
    PAUSED.prepare(source.machine, destination.machine)
    uri = PAUSED.open(source.machine, destination.machine)
    source.machine.qmp.execute("migrate", {"uri": uri}, watch=source.machine.watch)
    PAUSED.begun(source.machine)
    return destination


def switch_over(source: RawGuest, destination: RawGuest) -> RawGuest:
    """``migrate-continue`` of a machine that was never started; ends the source, returns the destination."""
    machine = source.machine
    machine.qmp.execute("migrate-continue", {"state": "pre-switchover"}, watch=machine.watch)
    wait_status(machine, "completed")
    _wait_loaded(destination.machine)
    machine.quit()
    return destination


def cancel(source: RawGuest, destination: RawGuest) -> None:
    """``migrate_cancel`` of a machine that was never started; the destination exits with 1.

    :raises Violation: when the migration completes nevertheless, or the destination crashes.
    """
    destination.machine.expect_exit("its source cancels the migration")
    source.machine.qmp.execute("migrate_cancel", watch=source.machine.watch)
    wait_status(source.machine, "cancelled")
    PAUSED.undo(source.machine)
    wait_load_failed(destination.machine)
