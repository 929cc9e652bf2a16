from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from harness.errors import Unsupported
from harness.qemu.machine import Machine
from harness.qemu.schema import has_command, require_command
from harness.tests import fakes


def test_a_command_is_looked_for_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = fakes.world(tmp_path, monkeypatch)
    world.qmp.on("query-commands", [{"name": "stop"}, {"name": "screendump"}])
    machine = cast(Machine, world.machine)
    assert has_command(machine, "screendump")
    assert not has_command(machine, "snapshot-save")
    require_command(machine, "screendump", "it was built without pixman")
    with pytest.raises(Unsupported, match=r"^this QEMU has no snapshot-save \(the jobs came with 6\.0\)$"):
        require_command(machine, "snapshot-save", "the jobs came with 6.0")
    world.machine.history.close()
