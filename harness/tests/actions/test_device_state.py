from __future__ import annotations

import pytest

from harness.actions.device_state import registers
from harness.errors import GuestError
from harness.tests.fakes import World


def test_registers_by_name(world: World) -> None:
    world.ssh.on("perl -e", "config 00ff\ndevice features 0 79000000\nqueue's size 80\n")
    assert registers(world.guest, world.share) == {
        "config": "00ff",
        "device features 0": "79000000",
        "queue's size": "80",
    }
    assert world.ssh.commands[-1].endswith("/sys/bus/pci/devices/0000:00:10.0/config")


def test_a_device_without_the_modern_interface(world: World) -> None:
    world.ssh.on("perl -e", "config 00ff\n")
    with pytest.raises(GuestError, match=r"^share0: the guest finds no modern virtio interface"):
        registers(world.guest, world.share)
