from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.qemu.spec import MachineSpec
from harness.tests.qemu.specs import share, spec


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
