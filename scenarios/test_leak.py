"""No leak: after an unplug, and after a plug that failed, QEMU holds nothing of the device."""

from __future__ import annotations

import pytest

from harness.actions.hotplug import Hotplug, plug_without_guest, unplug_without_guest
from harness.actions.leak_hunt import LeakHunt
from harness.guest.guest import Guest
from harness.qemu.machine import Machine
from harness.qemu.spec import Share


@pytest.mark.pin_machine("q35-pcie")
def test_plug_and_unplug_without_a_guest(leak_hunt: LeakHunt, share: Share) -> None:
    """realize and unrealize alone: on a machine that was never started, device_del is synchronous."""

    def cycle(machine: Machine) -> None:
        plug_without_guest(machine, share)
        unplug_without_guest(machine, share)

    leak_hunt.repeat_without_guest(cycle)


@pytest.mark.pin_machine("pc")
def test_plug_mount_use_unmount_unplug(leak_hunt: LeakHunt, share: Share) -> None:
    """A share's whole life, with files opened, written, read and listed."""

    def cycle(guest: Guest) -> None:
        hotplug = Hotplug(guest)
        hotplug.plug(share)
        mount = guest.mount(share)
        mount.expect_usable()
        mount.unmount()
        hotplug.unplug(share)

    leak_hunt.repeat(cycle)
