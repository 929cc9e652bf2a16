"""No crash in a vmstate change: after an unplug nothing calls back into the dead device."""

from __future__ import annotations

import pytest

from harness.actions.hotplug import Hotplug
from harness.actions.migration import Migration
from harness.actions.run_state import RunState
from harness.actions.snapshot import Snapshot
from harness.guest.guest import Guest
from harness.qemu.spec import Share


@pytest.fixture
def after_unplug(guest: Guest, hotplug: Hotplug, share: Share) -> Guest:
    """A guest whose only share was plugged, mounted, used, unmounted and unplugged."""
    hotplug.plug(share)
    mount = guest.mount(share)
    mount.expect_usable()
    mount.unmount()
    hotplug.unplug(share)
    return guest


def test_stop_and_cont_after_unplug(after_unplug: Guest, run_state: RunState) -> None:
    """A stale vm change state handler is called here (the bug of 2015)."""
    run_state.stop()
    run_state.cont()
    after_unplug.succeed("true")


def test_migrate_after_unplug(after_unplug: Guest, migration: Migration) -> None:
    """No section of the dead device is sent: the destination has no such device."""
    migration.expect_not_blocked()
    migration.migrate()
    after_unplug.succeed("true")


def test_savevm_and_loadvm_after_unplug(after_unplug: Guest, snapshot: Snapshot) -> None:
    """Neither saving nor loading meets a stale vmstate handler."""
    snapshot.savevm("unplugged")
    snapshot.loadvm("unplugged")
    after_unplug.succeed("true")


def test_system_reset_after_unplug(after_unplug: Guest, run_state: RunState) -> None:
    """No reset handler of the dead device is left; the guest boots again."""
    run_state.system_reset()
    after_unplug.succeed("true")


def test_quit_after_unplug(after_unplug: Guest) -> None:
    """QEMU ends cleanly."""
    after_unplug.machine.quit()
