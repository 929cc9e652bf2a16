"""Migrates when unmounted: a migration that does not arrive costs nothing; the second try does.

The guest goes on in its source; its share is what it was, with everything that can be done to it.
"""

from __future__ import annotations

import pytest

from harness.actions.failed_migrations import FAILURES, require, wait_resumed
from harness.actions.hotplug import Hotplug
from harness.actions.migration import Migration
from harness.actions.raw_migration import (
    cancel,
    migrate_raw,
    migrate_to_the_pause,
    require_pause,
)
from harness.actions.run_state import RunState
from harness.actions.snapshot import Snapshot
from harness.guest.guest import Guest
from harness.ninep.client import RawGuest
from harness.plugin.thorough import by_default
from harness.qemu.spec import Share
from harness.testbed import Testbed


@pytest.mark.any_plug
@pytest.mark.parametrize(
    "failure",
    by_default(
        "the_destination_dies_before_the_switchover",
        of=["the_destination_dies_before_the_switchover", "cancelled_before_the_switchover", "cancelled"],
    ),
)
def test_the_source_goes_on_and_the_second_try_works(
    guest: Guest,
    hotplug: Hotplug,
    migration: Migration,
    snapshot: Snapshot,
    shares: tuple[Share, ...],
    failure: str,
) -> None:
    """The share mounts, works, blocks, saves, goes and comes again in the source, and arrives afterwards."""
    require(migration, failure)
    share, other = shares[:2]
    hotplug.plug(share)
    written = use(guest, migration, share, "before")
    FAILURES[failure](migration)
    wait_resumed(migration)
    mount = guest.mount(share)
    mount.expect_intact("before", written)
    migration.expect_refused(share)
    snapshot.expect_refused(share)
    mount.unmount()
    migration.expect_not_blocked()
    snapshot.savevm("afterwards")
    hotplug.unplug(share)
    hotplug.plug(other)
    hotplug.plug(share)
    migration.migrate()
    for arrived in (share, other):
        use(guest, migration, arrived, "after")
        hotplug.unplug(arrived)


def use(guest: Guest, migration: Migration, share: Share, name: str) -> str:
    """Mount, write, be in the way of a migration, let go; returns the checksum of what was written."""
    mount = guest.mount(share)
    written = mount.write(name, size_kib=64)
    mount.expect_intact(name, written)
    migration.expect_blocked_by(share)
    mount.unmount()
    migration.expect_not_blocked()
    return written


@pytest.mark.any_plug
def test_one_failure_after_another(
    guest: Guest, hotplug: Hotplug, migration: Migration, share: Share
) -> None:
    """All of them, in one source: no state of one is left for the next, nor for the one that works."""
    for failure in FAILURES:
        require(migration, failure)
    hotplug.plug(share)
    for number, fail in enumerate(FAILURES.values()):
        fail(migration)
        wait_resumed(migration)
        use(guest, migration, share, f"use{number}")
    migration.migrate()
    use(guest, migration, share, "after")
    hotplug.unplug(share)


@pytest.mark.thorough
@pytest.mark.any_plug
def test_a_stopped_guest_arrives_stopped(
    guest: Guest, hotplug: Hotplug, migration: Migration, run_state: RunState, share: Share, testbed: Testbed
) -> None:
    """Whether it was stopped before or after a try that failed: it does not run before it is told to."""
    hotplug.plug(share)
    use(guest, migration, share, "before")
    run_state.stop()
    FAILURES["cancelled"](migration)
    run_state.expect_stopped()
    migration.request_migrate(stopped=True).wait_arrived(status="paused")
    testbed.machines[0].quit()
    run_state.expect_stopped()
    run_state.cont()
    use(guest, migration, share, "after")
    hotplug.unplug(share)


@pytest.mark.no_guest_kernel
@pytest.mark.pin_machine("pc")
def test_a_stopped_machine_migrates_at_the_second_try(raw_guest: RawGuest, share: Share) -> None:
    """The first is cancelled when only the devices' state is left; nothing has run before or in between."""
    require_pause(raw_guest)
    driver = raw_guest.plug(share)
    driver.version()
    before = driver.registers()
    cancel(raw_guest, migrate_to_the_pause(raw_guest))
    _, (driver,) = migrate_raw(raw_guest, driver)
    assert driver.registers() == before
    driver.version()
