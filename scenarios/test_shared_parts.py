"""Shared parts are counted: unplugging one device leaves the others working."""

from __future__ import annotations

import pytest

from harness.actions.hotplug import Hotplug
from harness.actions.run_state import RunState
from harness.guest.guest import Guest
from harness.guest.lab import Lab
from harness.guest.workload import Workload
from harness.holds.throttle import require_throttling, throttled
from harness.plugin.thorough import by_default
from harness.qemu.spec import Share

#: Fast enough that nothing waits for long: what counts is that the throttle is there.
_BYTES_PER_S = 64 << 20


@pytest.fixture(params=["own_fsdevs", "one_fsdev", "one_throttled_fsdev"])
def shares(request: pytest.FixtureRequest, lab: Lab) -> tuple[Share, ...]:
    """Two devices: with an fsdev each, or with one between them."""
    first, second = lab.shares[:2]
    if request.param == "own_fsdevs":
        return lab.declare(first, second)
    if request.param == "one_throttled_fsdev":
        first = throttled(first, bytes_per_s=_BYTES_PER_S)
        require_throttling(lab.cell.qemu)
    return lab.declare(first, second.beside(first))


@pytest.mark.always
@pytest.mark.any_plug
@pytest.mark.parametrize("goes", by_default("first", of=["first", "second"]))
def test_unplugging_one_leaves_the_other_working(
    guest: Guest, hotplug: Hotplug, shares: tuple[Share, ...], goes: str
) -> None:
    """Whichever goes, the one that stays reads and writes; then it goes as well."""
    leaving, staying = shares if goes == "first" else reversed(shares)
    for share in shares:
        hotplug.plug(share)
        mount = guest.mount(share)
        mount.expect_intact("before", mount.write("before", size_kib=64))
        mount.unmount()
    mount = guest.mount(staying)
    hotplug.unplug(leaving)
    mount.expect_intact("after", mount.write("after", size_kib=64))
    mount.unmount()
    hotplug.unplug(staying)


@pytest.mark.thorough("q35", "q35-pcie")
def test_others_come_and_go_beside_a_workload(
    guest: Guest, hotplug: Hotplug, run_state: RunState, lab: Lab
) -> None:
    """Devices come, are used, and go, the machine stops and goes on: the workload loses nothing."""
    busy, *others = lab.shares[:3]
    hotplug.plug(busy)
    mount = guest.mount(busy)
    workload = Workload.start(mount)
    for other in others:
        hotplug.plug(other)
        beside = guest.mount(other)
        beside.expect_usable()
        workload.wait_progress()
        beside.unmount()
        hotplug.unplug(other)
        run_state.stop()
        run_state.cont()
    workload.wait_progress()
    workload.stop()
    mount.unmount()
    hotplug.unplug(busy)
    workload.expect_acknowledged()
