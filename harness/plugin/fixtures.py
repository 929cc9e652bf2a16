"""The fixtures, named by how far the guest has come.

Every run of pytest imports this module, so it imports the rest of the harness only inside the fixtures.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness.plugin.folders import ROOT
from harness.plugin.options import option

if TYPE_CHECKING:
    from harness.actions.hostile import HostileGuest
    from harness.actions.hotplug import Hotplug
    from harness.actions.migration import Migration
    from harness.actions.run_state import RunState
    from harness.actions.snapshot import Snapshot
    from harness.artifacts import Artifacts
    from harness.guest.guest import Guest
    from harness.guest.variant import Variant
    from harness.holds.hold import Hold
    from harness.leaks.hunt import LeakHunt
    from harness.ninep.client import RawGuest
    from harness.qemu.binary import QemuInstall
    from harness.qemu.spec import Share
    from harness.reaper import RunFolder
    from harness.testbed import Cell, Testbed

TESTBED: pytest.StashKey[Testbed] = pytest.StashKey()
FOLDER: pytest.StashKey[Artifacts] = pytest.StashKey()
#: The number of the further run of a test that failed (``--confirm``), from 1.
AGAIN: pytest.StashKey[int] = pytest.StashKey()


@pytest.fixture(scope="session")
def run_folder() -> Iterator[RunFolder]:
    """Fixture: the run folder of this process, with sockets, disks and shares; always removed afterwards."""
    from harness.reaper import RunFolder

    folder = RunFolder()
    yield folder
    folder.close()


@pytest.fixture(scope="session")
def artifacts_root(request: pytest.FixtureRequest) -> Path:
    """Fixture: the folder of this run that has an artefact folder for each test."""
    return request.config.stash[ROOT]


@pytest.fixture(scope="session")
def cell(request: pytest.FixtureRequest, qemu_name: str, kernel_name: str, machine_name: str) -> Cell:
    """Fixture: the combination of QEMU, kernel and machine type that this test runs on."""
    from harness.plugin.provisioning import MATRIX

    return request.config.stash[MATRIX].cell(qemu_name, kernel_name, machine_name)


def _require_unplug(node: pytest.Item, cell: Cell) -> None:
    """For a fixture. :raises Unsupported: when the test's mark ``unplug`` asks for another machine type."""
    from harness.qemu.machine_types.machine_type import UnplugKind

    mark = node.get_closest_marker("unplug")
    if mark is None:
        cell.machine_type.require_hotplug()
        return
    names = {"asks": UnplugKind.ASKS, "takes": UnplugKind.TAKES, "refused": UnplugKind.REFUSED}
    if len(mark.args) != 1 or mark.args[0] not in names:
        raise pytest.UsageError(f"{node.nodeid}: write @pytest.mark.unplug with one of {', '.join(names)}")
    cell.machine_type.require_unplug(names[mark.args[0]])


@pytest.fixture
def testbed(
    request: pytest.FixtureRequest, cell: Cell, run_folder: RunFolder, artifacts_root: Path
) -> Iterator[Testbed]:
    """Fixture: the machines of this test. None is started yet."""
    from harness.testbed import Testbed

    _require_unplug(request.node, cell)
    test: str = request.node.nodeid
    made = Testbed(cell, run_folder, artifacts_of(request.node, artifacts_root))
    made.monitors = option(request.config, "stay-on-failure")
    request.node.stash[FOLDER] = made.artifacts
    request.node.stash[TESTBED] = made
    try:
        made.history.note("host", "test", {"id": test, "at": datetime.now(UTC).isoformat()})
        yield made
    finally:
        made.close()


def artifacts_of(test: pytest.Item, root: Path) -> Artifacts:
    """The fixture's empty artefact folder for a test below ``root``; a further run of it has another one."""
    from harness.artifacts import Artifacts, slug

    again = test.stash.get(AGAIN, 0)
    return Artifacts.create_at(root / (slug(test.nodeid) + (f"-again-{again}" if again else "")))


@pytest.fixture
def shares(request: pytest.FixtureRequest, testbed: Testbed) -> tuple[Share, ...]:
    """Fixture: the pool of exports that the machine declares; none of their devices is plugged in.

    The first is of the kind of the test's ``variant``, if it uses that fixture.
    """
    if "variant" in request.fixturenames:
        kind: Variant = request.getfixturevalue("variant")
        testbed.declare(kind.apply(testbed.shares[0]), *testbed.shares[1:])
    return testbed.shares


@pytest.fixture
def peer(request: pytest.FixtureRequest, testbed: Testbed, peer_name: str) -> QemuInstall:
    """Fixture: another QEMU of this run; the machines are of the newest type that both know."""
    return _agreed(request, testbed, peer_name)[0]


@pytest.fixture
def peers(request: pytest.FixtureRequest, testbed: Testbed, peer_names: tuple[str, ...]) -> list[QemuInstall]:
    """Fixture: every other QEMU of this run, the oldest first.

    The machines are of the newest type that all know.
    """
    return _agreed(request, testbed, *peer_names)


def _agreed(request: pytest.FixtureRequest, testbed: Testbed, *names: str) -> list[QemuInstall]:
    from harness.plugin.provisioning import MATRIX

    matrix = request.config.stash[MATRIX]
    kernel, machine = (request.getfixturevalue(axis) for axis in ("kernel_name", "machine_name"))
    cells = [matrix.cell(name, kernel, machine) for name in names]
    testbed.use_common_machine_type(*(cell.capabilities for cell in cells))
    return [cell.qemu for cell in sorted(cells, key=lambda cell: cell.capabilities.version)]


@pytest.fixture
def share(shares: tuple[Share, ...]) -> Share:
    """Fixture: one export; its device is not plugged in."""
    return shares[0]


@pytest.fixture
def variant(variant_name: str) -> Variant:
    """Fixture: the kind of the share: the plain one, or with ``--full`` each kind in turn."""
    from harness.guest.variant import VARIANTS

    return VARIANTS[variant_name]


@pytest.fixture
def hold(testbed: Testbed) -> Hold:
    """Fixture: holds system calls of QEMU, or lets them fail.

    A request of 9p or a disk's flush stays in flight.
    """
    from harness.holds.hold import Hold

    return Hold(testbed)


@pytest.fixture
def virtiofsd(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Fixture: the command of Debian's virtiofsd, for :class:`harness.devices.VirtiofsDevice`."""
    from harness.plugin.provisioning import MATRIX

    return request.config.stash[MATRIX].virtiofsd()


@pytest.fixture
def guest(request: pytest.FixtureRequest, testbed: Testbed) -> Guest:
    """Fixture: a guest that answers commands and that no other test has used.

    No 9p device is plugged in.
    """
    _first(request, "shares", "device", "hold", "peer", "peers")
    return testbed.boot(cold=request.node.get_closest_marker("cold") is not None)


def _first(request: pytest.FixtureRequest, *names: str) -> None:
    """For a fixture: make what the machine is started with, in whatever order the test names them."""
    for name in names:
        if name in request.fixturenames:
            request.getfixturevalue(name)


@pytest.fixture
def raw_guest(request: pytest.FixtureRequest, testbed: Testbed) -> RawGuest:
    """Fixture: a machine without a guest, driven by the harness's own 9p client (``pc`` only)."""
    from harness.ninep.client import RawGuest

    _first(request, "shares", "hold")
    return RawGuest(testbed)


@pytest.fixture
def leak_hunt(request: pytest.FixtureRequest, testbed: Testbed, shares: tuple[Share, ...]) -> LeakHunt:
    """Fixture: repeats a cycle in separate machines and measures what grows.

    With ``--thorough`` for longer.
    """
    from harness.leaks.hunt import LeakHunt

    assert shares, "nothing to plug"
    thorough = option(request.config, "thorough") or option(request.config, "full")
    return LeakHunt(testbed, thorough=thorough)


@pytest.fixture
def hostile(guest: Guest) -> HostileGuest:
    """Fixture: what a hostile guest can do to its devices."""
    from harness.actions.hostile import HostileGuest

    return HostileGuest(guest)


@pytest.fixture
def hotplug(guest: Guest) -> Hotplug:
    """Fixture: ``device_add`` and ``device_del`` for this guest."""
    from harness.actions.hotplug import Hotplug

    return Hotplug(guest)


@pytest.fixture
def migration(guest: Guest, testbed: Testbed) -> Migration:
    """Fixture: ``migrate`` for this guest."""
    from harness.actions.migration import Migration

    return Migration(guest, testbed)


@pytest.fixture
def snapshot(guest: Guest) -> Snapshot:
    """Fixture: ``savevm``, ``loadvm`` and the snapshot jobs for this guest."""
    from harness.actions.snapshot import Snapshot

    return Snapshot(guest)


@pytest.fixture
def run_state(guest: Guest) -> RunState:
    """Fixture: ``stop``, ``cont`` and ``system_reset`` for this guest."""
    from harness.actions.run_state import RunState

    return RunState(guest)
