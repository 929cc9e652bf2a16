from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from harness.actions import bad_plugs as module
from harness.actions.bad_plugs import BadPlug, bad_plugs, unrealizable
from harness.actions.hotplug import plug_refusals
from harness.errors import Violation
from harness.qemu.machine import Machine
from harness.qemu.machine_types import MACHINE_TYPES
from harness.tests.fakes import World, peripheral, world
from harness.tests.qemu.specs import spec


@pytest.fixture
def w(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = world(tmp_path, monkeypatch)
    made.qmp.on("qom-list", peripheral())
    return made


def test_each_unrealizable_share_has_the_refusals_of_qemu(w: World) -> None:
    wrong = unrealizable(w.share)
    assert len({share.device(MACHINE_TYPES["pc"])["id"] for share in wrong.values()}) == 1
    assert [plug_refusals(name, share)[0] for name, share in wrong.items()] == [
        "9pfs device couldn't find fsdev with the id = nowhere",
        "fsdev with id fs-share0 needs mount_tag arguments",
        f"mount tag '{'t' * 32}' (32 bytes) is longer than maximum (31 bytes)",
    ]


def test_a_refusal_in_the_right_words(w: World) -> None:
    w.qmp.refuse("device_add", "Bus 'nowhere' not found")
    BadPlug(w.share, "Bus '.*' not found").expect_refused(cast(Machine, w.machine))


def test_a_refusal_in_other_words(w: World) -> None:
    w.qmp.refuse("device_add", "Bus 'nowhere' not found, nor anything else")
    with pytest.raises(Violation, match=r"was refused with .*, not \"Bus '\.\*' not found\"$"):
        BadPlug(w.share, "Bus '.*' not found").expect_refused(cast(Machine, w.machine))


def test_no_refusal(w: World) -> None:
    w.qmp.on("device_add", {})
    bad = BadPlug(replace(w.share, device_options={"rombar": 0}), ".*")
    with pytest.raises(Violation, match=r"device_add with \{'rombar': 0\} was accepted$"):
        bad.expect_refused(cast(Machine, w.machine))


def test_a_device_that_is_there_all_the_same(w: World) -> None:
    w.qmp.refuse("device_add", "no")
    w.qmp.on("qom-list", peripheral(w.share.id))
    with pytest.raises(Violation, match=r"has the device$"):
        BadPlug(w.share, "no").expect_refused(cast(Machine, w.machine))
    w.machine.plugged.add(w.share.id)
    BadPlug(w.share, "no").expect_refused(cast(Machine, w.machine))


def test_only_what_the_qemu_has_the_properties_for(
    w: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "properties", lambda _qemu, _device: frozenset(["addr", "romfile"]))
    mount_user = replace(w.share, id="other", slot=1)
    found = bad_plugs(spec().qemu, MACHINE_TYPES["pc"], tmp_path, w.share, mount_user)
    assert "rom_missing" in found
    assert "rom_without_bar" not in found  # It takes rombar.
    assert found["slot_taken"].share.device_options == {"bus": "pci.0", "addr": "0x11"}
    assert all(re.compile(bad.refusal) for bad in found.values())
