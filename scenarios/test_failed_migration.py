"""Migrates when unmounted: after a migration that failed or was cancelled, the next one succeeds.

In between the guest goes on in the source, and its share works as before.
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
    """After a failed migration the share can be mounted, blocks, is saved, unplugged and plugged again in
    the source; then it migrates."""
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
    """Mount the share, write a file, check the blocker, unmount; returns the file's checksum."""
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
    """Every kind of failure in turn, in one source; each time the share works, and at the end it
    migrates."""
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


@pytest.mark.any_plug
def test_a_stopped_guest_arrives_stopped(
    guest: Guest, hotplug: Hotplug, migration: Migration, run_state: RunState, share: Share, testbed: Testbed
) -> None:
    """A guest that was stopped before a failed migration stays stopped, also on the destination, until
    cont."""
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
    """A machine that never ran: its first migration is cancelled before the switchover, the second
    completes."""
    require_pause(raw_guest)
    driver = raw_guest.plug(share)
    driver.version()
    before = driver.registers()
    cancel(raw_guest, migrate_to_the_pause(raw_guest))
    _, (driver,) = migrate_raw(raw_guest, driver)
    assert driver.registers() == before
    driver.version()
