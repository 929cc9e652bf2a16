from __future__ import annotations

from typing import Any, cast

import pytest

from harness.errors import QemuError
from harness.qemu import blockers
from harness.qemu.blockers import blocked_reasons
from harness.qemu.machine import Machine
from harness.tests.fakes import World

_VIRTFS = "Migration is disabled when VirtFS export path '/s' is mounted in the guest using mount_tag 'tag0'"


@pytest.fixture(autouse=True)
def nobody_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blockers, "_VERSIONS", {})


def _asked(world: World) -> list[str]:
    return blocked_reasons(cast(Machine, world.machine))


def test_a_qemu_that_lists_the_reasons(world: World) -> None:
    world.qmp.on("query-version", {"qemu": {"major": 6, "minor": 0, "micro": 0}})
    world.qmp.on("query-migrate", {"blocked-reasons": ["a", "b"]}, {})
    assert _asked(world) == ["a", "b"]
    assert _asked(world) == []
    assert [name for name, _ in world.qmp.sent].count("query-version") == 1


@pytest.fixture
def old(world: World) -> World:
    world.qmp.on("query-version", {"qemu": {"major": 5, "minor": 2, "micro": 0}})
    return world


def test_an_older_one_refuses_to_migrate(old: World) -> None:
    old.qmp.refuse("migrate", _VIRTFS)
    assert _asked(old) == [_VIRTFS]
    assert dict(old.qmp.sent)["migrate"] == {"uri": "nowhere:"}


def test_an_older_one_that_is_not_blocked_refuses_the_address(old: World) -> None:
    old.qmp.refuse("migrate", "Parameter 'uri' expects a valid migration protocol")
    assert _asked(old) == []


def test_any_other_refusal_is_raised(old: World) -> None:
    old.qmp.refuse("migrate", "There's a migration process in progress")
    with pytest.raises(QemuError, match="in progress"):
        _asked(old)


def test_an_older_one_that_accepts_the_address(old: World) -> None:
    answer: Any = {}
    old.qmp.on("migrate", answer)
    with pytest.raises(AssertionError, match="accepted"):
        _asked(old)
