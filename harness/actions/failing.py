"""Ways in which a migration does not arrive, as data: each leaves the guest in its source, running.

What ends a migration is the destination (it is not there, it dies, it cannot load what it reads), the way to
it, or ``migrate_cancel``: early, in the middle, or when the guest is stopped and the devices' state is left.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable

from harness.actions.migration import (
    MIGRATE_TIMEOUT_S,
    Migration,
    migrate_into,
    under_way,
    wait_given_up,
    wait_status,
)
from harness.actions.stream import PAUSED, SLOW, stalled
from harness.errors import QemuError
from harness.qemu.bandwidth import bandwidth, limit_bandwidth
from harness.qemu.machine import Machine
from harness.qemu.migration_socket import stream_from_file

#: Bytes of the stream that are read before its reader goes: in the middle of the guest's memory.
_PART = 1 << 20
_CHUNK = 1 << 16


def _nobody_listens(migration: Migration) -> None:
    machine = migration.guest.machine
    with contextlib.suppress(QemuError):  # It says so at once, or its status does.
        machine.qmp.execute("migrate", {"uri": f"unix:{machine.folder / 'nobody.sock'}"}, watch=machine.watch)
    wait_status(machine, "failed")


def _the_way_is_cut(migration: Migration) -> None:
    """The reader goes after a part: QEMU writes into a socket that nobody has."""
    machine = migration.guest.machine
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            machine.qmp.getfd("cut", theirs.fileno())
        machine.qmp.execute("migrate", {"uri": "fd:cut"}, watch=machine.watch)
        ours.settimeout(machine.timeout_scale.seconds(MIGRATE_TIMEOUT_S))
        left = _PART
        while left > 0:
            left -= len(ours.recv(min(_CHUNK, left)))
    wait_status(machine, "failed")


def _the_destination_dies(migration: Migration) -> None:
    machine = migration.guest.machine
    before = bandwidth(machine)
    outgoing = migration.request_migrate(SLOW)
    outgoing.destination.kill()
    wait_status(machine, "failed")
    limit_bandwidth(machine, before)


def _the_destination_dies_before_the_switchover(migration: Migration) -> None:
    """The source learns it when it sends the devices' state, and has stopped its guest and left its disk."""
    with migration.before_switchover() as outgoing:
        outgoing.destination.kill()
        outgoing.switch_over()
        wait_status(outgoing.source, "failed")
    PAUSED.undo(migration.guest.machine)


def _the_destination_is_given_a_part(migration: Migration) -> None:
    """The source has completed, and knows nothing of it; told to, it goes on (``cont``)."""
    source = migration.guest.machine
    path = source.folder / "part"
    migrate_into(source, path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    destination = migration.testbed.launch_destination(source)
    destination.expect_exit("a stream that ends too early")
    with stream_from_file(destination, path):
        wait_given_up(destination)
    _go_on(source)


def _cancelled(migration: Migration) -> None:
    with under_way(migration.guest.machine):
        pass


def _cancelled_while_it_stalls(migration: Migration) -> None:
    machine = migration.guest.machine
    with stalled(machine):
        pass
    wait_status(machine, "cancelled")


def _cancelled_before_the_switchover(migration: Migration) -> None:
    with migration.before_switchover():
        pass


def _cancelled_when_it_is_over(migration: Migration) -> None:
    """``migrate_cancel`` of a migration that has completed changes nothing."""
    source = migration.guest.machine
    migrate_into(source, source.folder / "whole")
    source.qmp.execute("migrate_cancel", watch=source.watch)
    wait_status(source, "completed")
    _go_on(source)


def _go_on(source: Machine) -> None:
    source.qmp.execute("cont", watch=source.watch)


FAILURES: dict[str, Callable[[Migration], None]] = {
    "nobody_listens": _nobody_listens,
    "the_way_is_cut": _the_way_is_cut,
    "the_destination_dies": _the_destination_dies,
    "the_destination_dies_before_the_switchover": _the_destination_dies_before_the_switchover,
    "the_destination_is_given_a_part": _the_destination_is_given_a_part,
    "cancelled": _cancelled,
    "cancelled_while_it_stalls": _cancelled_while_it_stalls,
    "cancelled_before_the_switchover": _cancelled_before_the_switchover,
    "cancelled_when_it_is_over": _cancelled_when_it_is_over,
}


def require(migration: Migration, failure: str) -> None:
    """Asked before anything is plugged.

    :raises Unsupported: when the guest's QEMU cannot fail in this way.
    """
    if "switchover" in failure:
        migration.require(PAUSED)


def wait_goes_on(migration: Migration) -> None:
    """Wait until the guest runs in its source again.

    :raises WaitTimeout: when it stays stopped.
    """
    machine = migration.guest.machine
    machine.wait_until(
        lambda: machine.qmp.execute("query-status", watch=machine.watch)["status"] == "running",
        what=f"{machine.name} to go on after a migration that did not arrive",
        timeout_s=MIGRATE_TIMEOUT_S,
    )
