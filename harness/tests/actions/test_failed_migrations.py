from __future__ import annotations

from typing import cast

import pytest

from harness.actions.failed_migrations import FAILURES, require, wait_resumed
from harness.actions.migration import Migration
from harness.errors import Unsupported, WaitTimeout
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


def test_a_guest_that_stays_stopped(world: World, migration: Migration) -> None:
    world.qmp.on("query-status", {"status": "finish-migrate"}, {"status": "running"})
    wait_resumed(migration)
    world.qmp.on("query-status", {"status": "finish-migrate"})
    world.impatient()
    with pytest.raises(WaitTimeout, match="source to resume after a failed migration"):
        wait_resumed(migration)
