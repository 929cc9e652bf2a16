"""A device is deleted when both events have arrived and its object is gone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from harness.errors import Violation
from harness.qemu.acpi import eject_writes
from harness.qemu.deletion import Deletion
from harness.qemu.machine import Machine
from harness.tests.fakes import BACKEND, GONE, World, peripheral, world


@pytest.fixture
def w(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return world(tmp_path, monkeypatch)


def deletion(w: World) -> Deletion:
    return Deletion(cast(Machine, w.machine), w.share.id)


def test_both_events_and_no_object(w: World) -> None:
    w.machine.plugged.add("share0")
    w.qmp.on("qom-list", peripheral())
    with deletion(w) as watched:
        w.qmp.emit("DEVICE_DELETED", path=BACKEND)
        w.qmp.emit("DEVICE_DELETED", path="/machine/peripheral/share1", device="share1")
        assert not watched.reported
        w.qmp.emit("DEVICE_DELETED", path=GONE, device="share0")
        watched.wait(timeout_s=1)
    assert watched.seen == [BACKEND, GONE]
    assert w.machine.plugged == set()


def test_a_missing_event(w: World) -> None:
    with deletion(w) as watched:
        w.qmp.emit("DEVICE_DELETED", path=GONE, device="share0")
        w.impatient()
        with pytest.raises(Violation, match=r"only .*share0.\] were reported"):
            watched.wait(timeout_s=1)


def test_an_event_that_comes_at_the_deadline(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes between the last look at the events and the end of the wait."""
    w.qmp.on("qom-list", peripheral())
    w.impatient()
    with deletion(w) as watched:
        w.qmp.emit("DEVICE_DELETED", path=BACKEND)
        monkeypatch.setattr(
            w.machine, "watch", lambda: w.qmp.emit("DEVICE_DELETED", path=GONE, device="share0")
        )
        watched.wait(timeout_s=1)


def test_an_object_that_still_exists(w: World) -> None:
    w.machine.plugged.add("share0")
    w.qmp.on("qom-list", peripheral("share0"))
    with deletion(w) as watched:
        w.qmp.emit("DEVICE_DELETED", path=BACKEND)
        w.qmp.emit("DEVICE_DELETED", path=GONE, device="share0")
        with pytest.raises(Violation, match="was reported deleted, but /machine/peripheral still has it"):
            watched.wait(timeout_s=1)
    assert w.machine.plugged == {"share0"}


@pytest.mark.parametrize(
    ("kind", "bus", "writes"),
    [
        ("pc", "/machine/i440fx/pci.0", [(0xAE10, 3), (0xAE08, 1 << 0x10)]),
        ("q35", "/machine/peripheral/rp0/rp0", [(0xCD0, 3), (0xCC8, 1)]),
    ],
)
def test_the_eject_registers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, bus: str, writes: list[tuple[int, int]]
) -> None:
    w = world(tmp_path, monkeypatch, kind=kind)
    w.qmp.on("qom-get", lambda asked: 3 if asked["path"] == bus else None)
    assert eject_writes(cast(Machine, w.machine), w.share) == writes


def test_the_eject_registers_of_another_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    w = world(tmp_path, monkeypatch, kind="pc")
    w.qmp.on("qom-get", lambda _: 3)
    moved = replace(w.share, device_options={"addr": "0x14"})
    assert eject_writes(cast(Machine, w.machine), moved)[1] == (0xAE08, 1 << 0x14)
