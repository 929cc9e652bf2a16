"""How the shares of a program are declared, and what the footprint counts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.explore import shares as module
from harness.explore.disagreement import Disagreement
from harness.explore.invariants import check_blockers, check_devices, check_run_state, expect_refused
from harness.explore.program import ShareKind
from harness.qemu.spec import Share
from harness.testbed import Testbed
from harness.tests.fakes import World, peripheral


def fake_testbed(folder: Path) -> Testbed:
    pool = tuple(Share(f"share{slot}", folder / str(slot), f"tag{slot}", slot) for slot in range(4))
    return cast(Testbed, SimpleNamespace(shares=pool, cell=SimpleNamespace(qemu=None)))


def test_a_share_may_use_the_fsdev_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of one that uses a third's."""
    asked: list[Any] = []
    monkeypatch.setattr(module, "require_throttling", asked.append)
    kinds = (
        ShareKind(throttled=True, security_model="mapped-xattr"),
        ShareKind(fsdev_of=0),
        ShareKind(fsdev_of=1),
    )
    first, second, third = module.declared(fake_testbed(tmp_path), kinds)
    assert asked == [None]
    assert (first.security_model, list(first.fsdev_options)) == ("mapped-xattr", ["throttling.bps-total"])
    assert (second.fsdev, second.path, third.fsdev, third.path) == (first.fsdev, first.path) * 2
    assert [share.slot for share in (first, second, third)] == [0, 1, 2]


def test_the_devices_of_qemu(world: World) -> None:
    machine = cast(Any, world.machine)
    world.qmp.on("qom-list", peripheral("share0"))
    check_devices(machine, [world.share])
    with pytest.raises(Disagreement, match="QEMU has 1 devices instead of 0") as found:
        check_devices(machine, [])
    assert found.value.checker == "devices"


def test_the_run_state(world: World) -> None:
    world.qmp.on("query-status", {"running": True, "status": "running"})
    check_run_state(cast(Any, world.machine), running=True)
    with pytest.raises(Disagreement, match="the machine is running, and not stopped"):
        check_run_state(cast(Any, world.machine), running=False)


def test_the_blockers(world: World) -> None:
    """The message has no list of reasons, because it differs between programs."""
    world.qmp.on("query-version", {"qemu": {"major": 7}})
    world.qmp.on("query-migrate", {"blocked-reasons": ["something else"]})
    with pytest.raises(Disagreement) as found:
        check_blockers(cast(Any, world.machine), [])
    assert found.value.message == "blocked with nothing mounted"


@pytest.mark.parametrize(
    ("refusal", "message"),
    [
        ("", "savevm was accepted while an export is attached"),
        ("no disk", "refused with another text: no disk"),
    ],
)
def test_a_refusal_names_a_mounted_share(world: World, refusal: str, message: str) -> None:
    with pytest.raises(Disagreement, match=message):
        expect_refused("savevm", [world.share], refusal)
