"""Guests of other architectures than the host's, for real: booted once, restored, and used."""

from __future__ import annotations

import pytest

from harness.actions.hotplug import Hotplug
from harness.history import read
from harness.testbed import Testbed

pytestmark = pytest.mark.qemu


@pytest.fixture(params=["s390-ccw", "virt"])
def machine_type(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_the_life_of_a_share(testbed: Testbed) -> None:
    """The guest is restored from a template, so boot, reseeding and the resumed session work as well."""
    guest, share = testbed.boot(), testbed.shares[0]
    started = [entry.value for entry in read(testbed.history.path) if entry.f == "guest:started"]
    assert started == ["restored"]
    assert guest.succeed("uname -m").strip() == testbed.cell.machine_type.architecture.name
    hotplug = Hotplug(guest)
    hotplug.plug(share)
    mount = guest.mount(share)
    mount.expect_intact("file", mount.write("file", size_kib=64))
    guest.use("console")
    assert guest.succeed(f"ls {mount.mountpoint}").split() == ["file"]
    mount.unmount()
    hotplug.unplug(share)
