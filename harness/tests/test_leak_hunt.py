"""The leak hunt's self-test: leaks of each kind are planted in a real QEMU, and every one is found."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.actions.leak_hunt import LeakHunt, Plan, _less
from harness.artifacts import Artifacts
from harness.checkers import Judgement, Verdict, judge
from harness.checkers.no_leak import no_leak
from harness.guest.lab import Lab
from harness.matrix import DEFAULT, Matrix, Selection
from harness.qemu.jemalloc import Live, Site
from harness.qemu.machine import Machine
from harness.reaper import RunFolder

pytestmark = pytest.mark.qemu
PLAN = Plan(warm_up=4, cycles=6)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    run = RunFolder()
    matrix = Matrix(Selection(machines=("q35-pcie",), accel="tcg"))
    lab = Lab(matrix.cell(DEFAULT, DEFAULT, "q35-pcie"), run, Artifacts.create(tmp_path, "hunt"))
    yield lab
    lab.close()
    run.close()


def hunted(lab: Lab, command: str, **arguments: Any) -> Judgement:
    """The verdict over cycles that each send one command; ``{n}`` in an argument is the cycle's number."""
    numbers = itertools.count()
    hunt = LeakHunt(lab)

    def cycle(machine: Machine) -> None:
        n = next(numbers)
        filled = {k: v.format(n=n) if isinstance(v, str) else v for k, v in arguments.items()}
        machine.qmp.execute(command, filled)

    hunt.repeat_without_guest(cycle, PLAN, "-device", "virtio-scsi-pci,id=scsi")
    lab.close()
    (judgement,) = judge(lab.artifacts.folder, [no_leak])
    return judgement


def test_cycles_that_leave_nothing(lab: Lab) -> None:
    judgement = hunted(lab, "query-status")
    assert judgement.verdict is Verdict.VALID, judgement


@pytest.mark.parametrize(
    ("command", "arguments", "kinds"),
    [
        ("object-add", {"qom-type": "rng-builtin", "id": "leak{n}"}, ["heap", "qom_children"]),
        ("object-add", {"qom-type": "iothread", "id": "leak{n}"}, ["threads", "fds", "qom_children"]),
        (
            "object-add",
            {"qom-type": "memory-backend-ram", "id": "leak{n}", "size": 1 << 20, "prealloc": True},
            ["private_kib", "qom_children"],
        ),
        (
            "device_add",
            {"driver": "scsi-cd", "id": "leak{n}", "bus": "scsi.0"},
            ["heap", "qom_children", "vmstate_sections"],
        ),
    ],
    ids=["small-object", "thread-and-fds", "memory", "device"],
)
def test_a_planted_leak_is_found(lab: Lab, command: str, arguments: dict[str, Any], kinds: list[str]) -> None:
    judgement = hunted(lab, command, **arguments)
    assert judgement.verdict is Verdict.INVALID
    found = {line.split(":")[0] for line in judgement.evidence if not line.startswith(" ")}
    assert set(kinds) <= found, judgement


def test_a_planted_file_is_named(lab: Lab, tmp_path: Path) -> None:
    backend = {"type": "file", "data": {"out": f"{tmp_path}/planted"}}
    judgement = hunted(lab, "chardev-add", id="leak{n}", backend=backend)
    assert judgement.verdict is Verdict.INVALID
    assert any(f"{tmp_path}/planted: +" in line for line in judgement.evidence), judgement


def test_a_planted_blocker_is_found_and_each_allocation_by_itself(lab: Lab, tmp_path: Path) -> None:
    """A writable vvfat blocks migration (QEMU: ``block/vvfat.c``), and outlives QEMU's own clean-up.

    The smallest object that it takes is a string of a few bytes.
    """
    arguments = {"driver": "vvfat", "node-name": "leak{n}", "dir": str(tmp_path), "rw": True}
    judgement = hunted(lab, "blockdev-add", **arguments)
    assert judgement.verdict is Verdict.INVALID
    assert any(line.startswith("blockers: +") for line in judgement.evidence), judgement
    sizes = re.findall(r"^heap: \+1\.00 objects of (\d+) bytes", "\n".join(judgement.evidence), re.MULTILINE)
    assert min(int(size) for size in sizes) <= 8, judgement


def test_what_leaks_without_the_device_as_well_is_not_its_leak() -> None:
    """A profile less its control, site by site; also where that has more: growth is not cut off."""
    shared: Site = (("qemu", 1),)
    own: Site = (("qemu", 2),)
    profile = {shared: Live(9, 90), own: Live(5, 50)}
    assert _less(profile, {shared: Live(7, 95)}) == {shared: Live(2, -5), own: Live(5, 50)}
