"""Migrates when unmounted: also between versions of QEMU, forward, back, along a chain and by a snapshot.

These scenarios run when ``--qemu`` is given several times: for every ordered pair, or once through all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from harness.actions.hotplug import Hotplug
from harness.actions.migration import Migration
from harness.actions.snapshot import Snapshot
from harness.guest.guest import Guest
from harness.qemu.binary import QemuInstall
from harness.qemu.spec import MachineSpec, Share
from harness.testbed import Testbed


def run_by(qemu: QemuInstall) -> Callable[[MachineSpec], MachineSpec]:
    """A change of a machine's spec: ``qemu`` runs it."""
    return lambda spec: replace(spec, qemu=qemu)


def use(guest: Guest, share: Share, name: str) -> None:
    """Mount the share, write a file, read it in the guest and on the host, unmount."""
    mount = guest.mount(share)
    mount.expect_intact(name, mount.write(name, size_kib=64))
    mount.unmount()


@pytest.mark.parametrize("plugged", ["hot", "cold"])
def test_a_device_arrives_at_another_version(
    testbed: Testbed, share: Share, peer: QemuInstall, plugged: str
) -> None:
    """The device works after a migration to another version, and after the migration back."""
    home = testbed.cell.qemu
    guest = testbed.boot(testbed.spec(plugged=frozenset([share.id] if plugged == "cold" else [])))
    hotplug, migration = Hotplug(guest), Migration(guest, testbed)
    if plugged == "hot":
        hotplug.plug(share)
    use(guest, share, "before")
    for where in (peer, home):
        migration.migrate(change=run_by(where))
        use(guest, share, f"on-{where.name.replace('/', '-')}")
    hotplug.unplug(share)


def test_one_life_in_all_versions(
    guest: Guest,
    hotplug: Hotplug,
    migration: Migration,
    share: Share,
    peers: list[QemuInstall],
    testbed: Testbed,
) -> None:
    """The guest migrates through all versions and back; its device works in each of them."""
    hotplug.plug(share)
    for number, where in enumerate([*peers, *reversed(peers[:-1]), testbed.cell.qemu]):
        migration.migrate(change=run_by(where))
        use(guest, share, f"turn-{number}")
    hotplug.unplug(share)


def test_a_snapshot_is_loaded_by_another_version(
    guest: Guest, hotplug: Hotplug, snapshot: Snapshot, share: Share, peer: QemuInstall, testbed: Testbed
) -> None:
    """A snapshot saved by one version is loaded by another, and the device works there."""
    hotplug.plug(share)
    use(guest, share, "before")
    guest.succeed("echo saved > /tmp/state")
    snapshot.savevm("crossing")
    snapshot.load_elsewhere(testbed, "crossing", change=run_by(peer))
    assert guest.succeed("cat /tmp/state") == "saved\n"
    use(guest, share, "after")
    hotplug.unplug(share)
