"""Ways in which a migration fails, as data. After each of them the guest runs in its source.

A migration fails because of its destination (it does not exist, it dies, it cannot load the stream), because
the connection breaks, or by ``migrate_cancel``: early, in the middle, or when the guest is stopped and only
the devices' state remains to be sent.
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
    wait_load_failed,
    wait_status,
)
from harness.actions.stream import PAUSED, SLOW, stalled
from harness.errors import ChannelLost, QemuError
from harness.qemu.bandwidth import bandwidth, limit_bandwidth
from harness.qemu.machine import Machine
from harness.qemu.migration_socket import stream_from_file

#: Bytes of the stream that are read before the reader closes its end, while QEMU sends the memory.
_PART = 1 << 20
_CHUNK = 1 << 16


def _nobody_listens(migration: Migration) -> None:
    machine = migration.guest.machine
    with contextlib.suppress(QemuError):  # Either migrate is refused, or the status becomes "failed".
        machine.qmp.execute("migrate", {"uri": f"unix:{machine.folder / 'nobody.sock'}"}, watch=machine.watch)
    wait_status(machine, "failed")


def _the_connection_breaks(migration: Migration) -> None:
    """A failed migration: the reader closes its end after a part of the stream.

    QEMU then writes to a closed socket.
    """
    machine = migration.guest.machine
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            machine.qmp.getfd("cut", theirs.fileno())
        machine.qmp.execute("migrate", {"uri": "fd:cut"}, watch=machine.watch)
        ours.settimeout(machine.timeout_scale.seconds(MIGRATE_TIMEOUT_S))
        try:
            _read_part(ours)
        except OSError as exc:
            lost = ChannelLost(f"QEMU {machine.name!r} sent no {_PART} bytes of its stream: {exc}")
            raise machine.root_cause(lost) from exc
    wait_status(machine, "failed")


def _read_part(connection: socket.socket) -> None:
    left = _PART
    while left > 0:
        received = connection.recv(min(_CHUNK, left))
        if not received:
            raise ConnectionResetError(f"it closed the connection {left} bytes earlier")
        left -= len(received)


def _the_destination_dies(migration: Migration) -> None:
    machine = migration.guest.machine
    before = bandwidth(machine)
    outgoing = migration.request_migrate(SLOW)
    outgoing.destination.kill()
    wait_status(machine, "failed")
    limit_bandwidth(machine, before)


def _the_destination_dies_before_the_switchover(migration: Migration) -> None:
    """A failed migration: the source notices it when it sends the devices' state.

    By then it has stopped the guest and released the disk.
    """
    with migration.before_switchover() as outgoing:
        outgoing.destination.kill()
        outgoing.switch_over()
        wait_status(outgoing.source, "failed")
    PAUSED.undo(migration.guest.machine)


def _the_stream_is_truncated(migration: Migration) -> None:
    """A failed migration whose source completes: it does not resume the guest by itself; ``cont`` does."""
    source = migration.guest.machine
    path = source.folder / "part"
    migrate_into(source, path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    destination = migration.testbed.launch_destination(source)
    destination.expect_exit("a stream that ends too early")
    with stream_from_file(destination, path):
        wait_load_failed(destination)
    _cont(source)


def _cancelled(migration: Migration) -> None:
    with under_way(migration.guest.machine):
        pass


def _cancelled_while_it_stalls(migration: Migration) -> None:
    machine = migration.guest.machine
    with stalled(machine):
        pass
    wait_status(machine, "cancelled")


def _cancelled_during_a_write(migration: Migration) -> None:
    """A migration whose thread is woken from a write by ``migrate_cancel``.

    The write then fails, which is not why the migration ended.
    """
    machine = migration.guest.machine
    with stalled(machine, read_first=False):
        pass
    wait_status(machine, "cancelled")


def _cancelled_before_the_switchover(migration: Migration) -> None:
    with migration.before_switchover():
        pass


def _cancelled_after_completion(migration: Migration) -> None:
    """A migration that did not fail: ``migrate_cancel`` after its completion changes nothing."""
    source = migration.guest.machine
    migrate_into(source, source.folder / "whole")
    source.qmp.execute("migrate_cancel", watch=source.watch)
    wait_status(source, "completed")
    _cont(source)


def _cont(source: Machine) -> None:
    source.qmp.execute("cont", watch=source.watch)


FAILURES: dict[str, Callable[[Migration], None]] = {
    "nobody_listens": _nobody_listens,
    "the_connection_breaks": _the_connection_breaks,
    "the_destination_dies": _the_destination_dies,
    "the_destination_dies_before_the_switchover": _the_destination_dies_before_the_switchover,
    "the_stream_is_truncated": _the_stream_is_truncated,
    "cancelled": _cancelled,
    "cancelled_while_it_stalls": _cancelled_while_it_stalls,
    "cancelled_during_a_write": _cancelled_during_a_write,
    "cancelled_before_the_switchover": _cancelled_before_the_switchover,
    "cancelled_after_completion": _cancelled_after_completion,
}


def require(migration: Migration, failure: str) -> None:
    """Check that a migration can be made to fail in this way. To be called before a device is plugged.

    :raises Unsupported: when the guest's QEMU lacks the capability that this way needs.
    """
    if "switchover" in failure:
        migration.require(PAUSED)


def wait_resumed(migration: Migration) -> None:
    """Wait until the guest runs in its source again, after the failed migration.

    :raises WaitTimeout: when the guest stays stopped.
    """
    machine = migration.guest.machine
    machine.wait_until(
        lambda: machine.qmp.execute("query-status", watch=machine.watch)["status"] == "running",
        what=f"{machine.name} to resume after a failed migration",
        timeout_s=MIGRATE_TIMEOUT_S,
    )
