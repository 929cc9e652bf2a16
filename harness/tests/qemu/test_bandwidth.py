from __future__ import annotations

from typing import cast

import pytest

from harness.errors import QemuError
from harness.qemu.bandwidth import bandwidth, limit_bandwidth
from harness.qemu.machine import Machine
from harness.tests.fakes import World


@pytest.fixture
def machine(world: World) -> Machine:
    return cast(Machine, world.machine)


def test_a_parameter(world: World, machine: Machine) -> None:
    world.qmp.on("query-migrate-parameters", {"max-bandwidth": 77})
    world.qmp.on("migrate-set-parameters", {})
    assert bandwidth(machine) == 77
    limit_bandwidth(machine, 5)
    assert world.qmp.sent[-1] == ("migrate-set-parameters", {"max-bandwidth": 5})


def test_an_old_qemu_has_a_command_for_it(world: World, machine: Machine) -> None:
    """Messages of QEMU 2.5.0."""
    world.qmp.on("query-migrate-parameters", {"decompress-threads": 2})
    world.qmp.refuse("migrate-set-parameters", "Invalid parameter 'max-bandwidth'")
    world.qmp.on("migrate_set_speed", {})
    assert bandwidth(machine) == 32 << 20
    limit_bandwidth(machine, 5)
    assert world.qmp.sent[-1] == ("migrate_set_speed", {"value": 5})


@pytest.mark.parametrize("desc", ["not now", "Parameter 'max-bandwidth' expects another value"])
def test_any_other_refusal_is_raised(world: World, machine: Machine, desc: str) -> None:
    world.qmp.refuse("migrate-set-parameters", desc)
    with pytest.raises(QemuError, match=desc):
        limit_bandwidth(machine, 5)
