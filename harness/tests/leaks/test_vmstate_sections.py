from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from harness.errors import QemuError
from harness.leaks.vmstate import vmstate_sections
from harness.qemu.machine import Machine
from harness.tests.fakes import World
from harness.tests.leaks.test_vmstate import section

_SAVE = "xen-save-devices-state"


def _counted(world: World, *, running: bool = False) -> int | None:
    world.qmp.on("query-status", {"running": running})
    return vmstate_sections(cast(Machine, world.machine))


def test_the_sections_that_qemu_writes_are_counted(world: World) -> None:
    def save(arguments: Any) -> dict[str, Any]:
        state = section(1, "timer", b"12") + section(2, "0000:00:02.0/virtio-9p", b"") + b"\0"
        Path(arguments["filename"]).write_bytes(b"QEVM\0\0\0\3" + state)
        return {}

    world.qmp.on(_SAVE, save)
    assert _counted(world) == 2
    assert dict(world.qmp.sent)[_SAVE]["live"] is False


def test_a_machine_that_runs_is_not_asked(world: World) -> None:
    assert _counted(world, running=True) is None
    assert _SAVE not in dict(world.qmp.sent)


@pytest.mark.parametrize(
    ("kind", "desc"),
    [
        ("CommandNotFound", f"The command {_SAVE} has not been found"),
        ("GenericError", "Parameter 'live' is unexpected"),
    ],
)
def test_a_qemu_that_cannot_be_asked(world: World, kind: str, desc: str) -> None:
    world.qmp.on(_SAVE, QemuError("source", {"execute": _SAVE}, {"class": kind, "desc": desc}, desc))
    assert _counted(world) is None


def test_any_other_error_is_raised(world: World) -> None:
    world.qmp.refuse(_SAVE, "Could not open '/full': No space left on device")
    with pytest.raises(QemuError, match="No space left"):
        _counted(world)
