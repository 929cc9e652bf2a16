from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from harness.errors import Unsupported, UsageError
from harness.qemu.spec import MACHINE_TYPES, SLOTS, MachineSpec
from harness.tests.qemu.specs import share, spec


@pytest.mark.parametrize(
    ("machine", "first", "last"),
    [
        ("pc", {"bus": "pci.0", "addr": "0x10"}, {"bus": "pci.0", "addr": "0x13"}),
        ("q35", {"bus": "rp0", "addr": "0x0"}, {"bus": "rp3", "addr": "0x0"}),
        ("q35-pcie", {"bus": "rp0", "addr": "0x0"}, {"bus": "rp3", "addr": "0x0"}),
    ],
)
def test_places(machine: str, first: dict[str, str], last: dict[str, str]) -> None:
    kind = MACHINE_TYPES[machine]
    assert (kind.place(0), kind.place(SLOTS - 1)) == (first, last)
    assert len({tuple(kind.place(slot).items()) for slot in range(SLOTS)}) == SLOTS


@pytest.mark.parametrize("slot", [-1, SLOTS])
def test_a_place_that_is_not_there(slot: int) -> None:
    with pytest.raises(UsageError, match=f"^machine q35 has places 0 to 3, not {slot}$"):
        MACHINE_TYPES["q35"].place(slot)


def test_only_q35_pcie_uses_native_hotplug() -> None:
    assert [kind.name for kind in MACHINE_TYPES.values() if kind.native] == ["q35-pcie"]


def test_a_destination_keeps_everything_else() -> None:
    source = spec("q35", plugged=frozenset({"share0"}), memory_mib=512, cpu="max", extra=("-S",))
    destination = source.destination("destination-1", plugged=frozenset({"share1"}))
    changed = {
        field.name: getattr(destination, field.name)
        for field in fields(MachineSpec)
        if getattr(destination, field.name) != getattr(source, field.name)
    }
    assert changed == {"name": "destination-1", "plugged": frozenset({"share1"}), "incoming": True}


def test_a_shares_path_must_be_a_folder(tmp_path: Path) -> None:
    share(path=tmp_path).check()
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"^share share0: .*/file: not a folder; 9p exports folders$"):
        share(path=tmp_path / "file").check()
    with pytest.raises(UsageError, match=r"^share share0: .*/none: no such folder$"):
        share(path=tmp_path / "none").check()


def test_a_dangling_link_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(UsageError, match="no such folder"):
        share(path=tmp_path / "link").check()


def test_an_unknown_share_names_the_known_ones() -> None:
    assert spec().share("share0") == share()
    with pytest.raises(UsageError, match=r"^machine source has no share 'x' \(it has: share0\)$"):
        spec().share("x")
    with pytest.raises(UsageError, match=r"\(it has: none\)$"):
        spec(shares=()).share("x")


@pytest.mark.parametrize(
    ("machine", "newest"), [("pc", "pc-i440fx-7.2"), ("q35", "pc-q35-7.2"), ("q35-pcie", "pc-q35-7.2")]
)
def test_the_newest_version_that_all_know(machine: str, newest: str) -> None:
    old = {"pc", "q35", "pc-i440fx-2.12", "pc-i440fx-7.2", "pc-q35-2.12", "pc-q35-7.2", "isapc"}
    new = {*old, "pc-i440fx-10.0", "pc-q35-10.0"}
    kind = MACHINE_TYPES[machine].known_to_all(new, old)
    assert (kind.qemu, kind.name, kind.native) == (newest, machine, MACHINE_TYPES[machine].native)
    assert kind.place(1) == MACHINE_TYPES[machine].place(1)


def test_no_version_that_all_know() -> None:
    with pytest.raises(Unsupported, match=r"^pc: these QEMUs have no machine type of one version in common"):
        MACHINE_TYPES["pc"].known_to_all({"pc", "pc-i440fx-11.0"}, {"pc", "pc-i440fx-5.2"})
