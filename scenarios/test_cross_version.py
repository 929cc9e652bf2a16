"""Migrates when unmounted, between versions of QEMU: forward, back, along a chain, through a snapshot.

With one ``--qemu`` there is nothing to do; with several, every ordered pair.
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


def by(qemu: QemuInstall) -> Callable[[MachineSpec], MachineSpec]:
    """The same machine, run by ``qemu``."""
    return lambda spec: replace(spec, qemu=qemu)


def use(guest: Guest, share: Share, name: str) -> None:
    """Mount, write, read on both sides, let go."""
    mount = guest.mount(share)
    mount.expect_intact(name, mount.write(name, size_kib=64))
    mount.unmount()


@pytest.mark.parametrize("plugged", ["hot", "cold"])
def test_a_device_arrives_at_another_version(
    testbed: Testbed, share: Share, peer: QemuInstall, plugged: str
) -> None:
    """And comes back, alive each time."""
    home = testbed.cell.qemu
    guest = testbed.boot(testbed.spec(plugged=frozenset([share.id] if plugged == "cold" else [])))
    hotplug, migration = Hotplug(guest), Migration(guest, testbed)
    if plugged == "hot":
        hotplug.plug(share)
    use(guest, share, "before")
    for where in (peer, home):
        migration.migrate(change=by(where))
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
    """From one to the next and back again, with a device that is plugged in one and unplugged in another."""
    hotplug.plug(share)
    for number, where in enumerate([*peers, *reversed(peers[:-1]), testbed.cell.qemu]):
        migration.migrate(change=by(where))
        use(guest, share, f"turn-{number}")
    hotplug.unplug(share)


def test_a_snapshot_is_loaded_by_another_version(
    guest: Guest, hotplug: Hotplug, snapshot: Snapshot, share: Share, peer: QemuInstall, testbed: Testbed
) -> None:
    """savevm by one, loadvm by the other: the guest goes on there, and its device with it."""
    hotplug.plug(share)
    use(guest, share, "before")
    guest.succeed("echo saved > /tmp/state")
    snapshot.savevm("crossing")
    snapshot.load_elsewhere(testbed, "crossing", change=by(peer))
    assert guest.succeed("cat /tmp/state") == "saved\n"
    use(guest, share, "after")
    hotplug.unplug(share)
