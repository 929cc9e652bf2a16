"""A live update without QEMU; the scenarios show it with one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from harness.actions import live_update
from harness.errors import QemuDied
from harness.qemu.machine import Machine
from harness.tests import fakes
from harness.tests.fakes import World


@pytest.mark.parametrize("bound", [False, True])
def test_the_new_qemu_is_watched_while_it_starts(world: World, tmp_path: Path, bound: bool) -> None:
    """It dies before it listens, or between bind and listen: that is the error, and not a timeout."""
    world.impatient()
    source = world.machine
    new = fakes.machine(tmp_path, replace(source.spec, name="new"), source.history)
    new.death = QemuDied("QEMU 'new' exited with 1")
    cpr = tmp_path / "cpr.sock"
    if bound:
        cpr.touch()
        world.qmp.refuse("migrate", "Failed to connect to 'cpr.sock': Connection refused")
    with pytest.raises(QemuDied, match="QEMU 'new' exited with 1"):
        live_update._migrate(cast(Machine, source), cast(Machine, new), tmp_path / "main.sock", cpr)
