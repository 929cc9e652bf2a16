from __future__ import annotations

import socket
from typing import cast

import pytest

from harness.actions.failed_migrations import FAILURES, require, wait_resumed
from harness.actions.migration import Migration
from harness.errors import ChannelLost, Unsupported, WaitTimeout
from harness.testbed import Testbed
from harness.tests.fakes import World


@pytest.fixture
def migration(world: World) -> Migration:
    return Migration(world.guest, cast(Testbed, None))


def test_only_what_needs_the_pause_asks_for_it(world: World, migration: Migration) -> None:
    world.qmp.refuse("migrate-set-capabilities", "Invalid parameter 'pause-before-switchover'")
    unsupported = []
    for failure in FAILURES:
        try:
            require(migration, failure)
        except Unsupported:
            unsupported.append(failure)
    assert unsupported == [
        "the_destination_dies_before_the_switchover",
        "cancelled_before_the_switchover",
    ]


class _ClosedByQemu:
    """A connection of which QEMU has closed its end: each read returns at once, and nothing."""

    reads = 0

    def __enter__(self) -> _ClosedByQemu:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def settimeout(self, _: float) -> None:
        pass

    def recv(self, _: int) -> bytes:
        self.reads += 1
        assert self.reads < 10, "read again and again"
        return b""


def test_a_qemu_that_dies_before_its_connection_is_cut(
    world: World, migration: Migration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "socketpair", lambda: (_ClosedByQemu(), socket.socket()))
    world.qmp.on("migrate", {})
    with pytest.raises(ChannelLost, match="it closed the connection 1048576 bytes earlier"):
        FAILURES["the_connection_breaks"](migration)


def test_a_guest_that_stays_stopped(world: World, migration: Migration) -> None:
    world.qmp.on("query-status", {"status": "finish-migrate"}, {"status": "running"})
    wait_resumed(migration)
    world.qmp.on("query-status", {"status": "finish-migrate"})
    world.impatient()
    with pytest.raises(WaitTimeout, match="source to resume after a failed migration"):
        wait_resumed(migration)
