from __future__ import annotations

from typing import Any, cast

import pytest

from harness.actions.modes import in_mode, require_mode
from harness.errors import QmpLost, Unsupported, Violation
from harness.qemu.machine import Machine
from harness.tests.fakes import World


def _set(world: World) -> list[Any]:
    return [sent["mode"] for command, sent in world.qmp.sent if command == "migrate-set-parameters"]


def test_a_mode_ends_with_its_block(world: World) -> None:
    world.qmp.on("migrate-set-parameters", {})
    with in_mode(cast(Machine, world.machine), "cpr-reboot"):
        assert _set(world) == ["cpr-reboot"]
    assert _set(world) == ["cpr-reboot", "normal"]


def test_a_qemu_that_dies_in_the_block(world: World) -> None:
    """Its connection has ended, and its process is still there, as while it writes a core file."""
    world.qmp.on("migrate-set-parameters", {}, QmpLost("the QMP connection broke"))
    with pytest.raises(Violation, match="root cause"), in_mode(cast(Machine, world.machine), "cpr-reboot"):
        raise Violation("the root cause")


def test_the_normal_mode_needs_no_name(world: World) -> None:
    with in_mode(cast(Machine, world.machine), "normal"):
        pass
    assert world.qmp.sent == []


def test_a_qemu_without_the_mode(world: World) -> None:
    world.qmp.refuse("migrate-set-parameters", "Parameter 'mode' is unexpected")
    with pytest.raises(Unsupported, match=r"^cpr-exec: source has no such migration mode: Parameter"):
        require_mode(cast(Machine, world.machine), "cpr-exec")
