"""The leak hunt's self-test: leaks of each kind are planted in a real QEMU, and every one is found.

Each is planted in one cycle of eight, for a default hunt, and of twenty, for a thorough one.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from harness.actions.hotplug import unplug_without_guest
from harness.checkers import Judgement, Verdict, judge
from harness.checkers.no_leak import no_leak
from harness.guest.guest import Guest
from harness.history import read
from harness.leaks import vmstate
from harness.leaks.heap_profile import Live, Site
from harness.leaks.hunt import LeakHunt, Plan, _minus
from harness.qemu.machine import Machine
from harness.qemu.spec import Share
from harness.testbed import Testbed

pytestmark = pytest.mark.qemu
PLAN = Plan(warm_up=4, part=12)


@pytest.fixture
def machine_type() -> str:
    return "q35-pcie"


@dataclass(frozen=True)
class Plant:
    """A command that leaks by being sent; ``{n}`` in an argument is how often it was."""

    command: str
    arguments: dict[str, Any]
    kinds: set[str]

    def send(self, machine: Machine, n: int) -> None:
        """Send it for the ``n``-th time."""
        filled = {k: v.format(n=n) if isinstance(v, str) else v for k, v in self.arguments.items()}
        machine.qmp.execute(self.command, filled)


def plants(folder: Path) -> list[Plant]:
    """One of each kind of what can be counted, and memory that no count and no heap profile shows.

    A writable vvfat blocks migration (QEMU: ``block/vvfat.c``), and outlives QEMU's own clean-up; the
    smallest object that it takes is a string of a few bytes. A PCI slot has room for several functions.
    """
    file = {"type": "file", "data": {"out": f"{folder}/planted"}}
    memory = {"qom-type": "memory-backend-ram", "id": "memory{n}", "size": 4 << 20, "prealloc": True}
    disk = {"driver": "vvfat", "node-name": "disk{n}", "dir": str(folder), "rw": True}
    function = {"driver": "pci-testdev", "id": "function{n}", "bus": "rp0", "addr": "0.{n}"}
    return [
        Plant("object-add", {"qom-type": "iothread", "id": "thread{n}"}, {"threads", "fds", "qom_children"}),
        Plant("chardev-add", {"id": "file{n}", "backend": file}, {"fds"}),
        Plant("device_add", {"driver": "scsi-cd", "id": "cd{n}", "bus": "scsi.0"}, {"vmstate_sections"}),
        Plant("device_add", function, {"memory_regions"}),
        Plant("blockdev-add", disk, {"blockers", "heap"}),
        Plant("object-add", memory, {"private_kib"}),
    ]


def hunted(testbed: Testbed, *planted: Plant, every: int = 1, thorough: bool = False) -> Judgement:
    """The verdict over cycles of which each, or one of so many, sends the commands."""
    numbers = itertools.count(1)
    hunt = LeakHunt(testbed, thorough=thorough)

    def cycle(machine: Machine) -> None:
        machine.qmp.execute("query-status")
        times, rest = divmod(next(numbers), every)
        if not rest:
            for plant in planted:
                plant.send(machine, times)

    hunt.repeat_without_guest(cycle, PLAN, "-device", "virtio-scsi-pci,id=scsi")
    testbed.close()
    (judgement,) = judge(testbed.artifacts.folder, [no_leak])
    return judgement


def kinds(judgement: Judgement) -> set[str]:
    """What was found to grow."""
    return {line.split(":")[0] for line in judgement.evidence if not line.startswith(" ")}


def test_cycles_that_leave_nothing(testbed: Testbed) -> None:
    judgement = hunted(testbed)
    assert judgement.verdict is Verdict.VALID, judgement


def test_a_device_that_comes_and_goes_needs_no_longer_hunt(testbed: Testbed, share: Share) -> None:
    """QEMU's pool of coroutines is full from the beginning, so nothing is suspected."""
    hunt = LeakHunt(testbed)

    def cycle(machine: Machine) -> None:
        machine.device_add(share)
        unplug_without_guest(machine, share)

    hunt.repeat_without_guest(cycle)
    assert len([entry for entry in read(testbed.history.path) if entry.f == "leak:plan"]) == 1
    assert len(testbed.machines) == 1, "a control was run for what was suspected"


def test_a_leak_of_each_kind_in_one_cycle_of_eight(testbed: Testbed, tmp_path: Path) -> None:
    planted = plants(tmp_path)
    judgement = hunted(testbed, *planted, every=8)
    assert judgement.verdict is Verdict.INVALID
    assert set[str]().union(*(plant.kinds for plant in planted)) <= kinds(judgement), judgement
    assert any(f"{tmp_path}/planted: +" in line for line in judgement.evidence), judgement
    sizes = re.findall(r"^heap: \+0\.1\d objects of (\d+) bytes", "\n".join(judgement.evidence), re.MULTILINE)
    assert min(int(size) for size in sizes) <= 8, judgement


def test_a_leak_of_each_kind_in_one_cycle_of_twenty(testbed: Testbed, tmp_path: Path) -> None:
    """Private memory is too noisy for that."""
    planted = plants(tmp_path)
    judgement = hunted(testbed, *planted, every=20, thorough=True)
    assert judgement.verdict is Verdict.INVALID
    assert set[str]().union(*(plant.kinds for plant in planted)) - {"private_kib"} <= kinds(judgement), (
        judgement
    )


#: A node of the block layer: objects on the heap, and nothing that is counted.
HEAP_ALONE = Plant("blockdev-add", {"driver": "null-co", "node-name": "node{n}"}, {"heap"})


def test_what_leaks_on_the_heap_alone(testbed: Testbed) -> None:
    """No count grows: the idle control has run, and the hunt has been extended."""
    judgement = hunted(testbed, HEAP_ALONE, every=8)
    assert judgement.verdict is Verdict.INVALID
    assert kinds(judgement) == {"heap"}


def test_a_count_is_hunted_where_the_heap_cannot_be_profiled(testbed: Testbed) -> None:
    """A host without libjemalloc2: no library to preload, and nothing fetched."""
    testbed.cell = replace(testbed.cell, qemu=replace(testbed.cell.qemu, libraries=(Path("/nowhere"),)))
    judgement = hunted(
        testbed, Plant("object-add", {"qom-type": "iothread", "id": "thread{n}"}, set()), every=8
    )
    assert judgement.verdict is Verdict.INVALID
    assert {"threads", "fds", "qom_children"} <= kinds(judgement)


def test_a_verdict_on_counts_alone_says_why(testbed: Testbed) -> None:
    testbed.cell = replace(testbed.cell, qemu=replace(testbed.cell.qemu, libraries=(Path("/nowhere"),)))
    judgement = hunted(testbed)
    assert judgement.verdict is Verdict.VALID
    assert "the heap was not profiled: no libjemalloc.so.2" in judgement.summary


def test_a_pool_that_the_device_alone_fills_levels_off(testbed: Testbed) -> None:
    """Each cycle allocates until the pool is full, which happens after the first three parts."""
    made = itertools.count(1)
    hunt = LeakHunt(testbed)

    def cycle(machine: Machine) -> None:
        if (n := next(made)) <= PLAN.lengths[-1] + PLAN.part:
            HEAP_ALONE.send(machine, n)

    hunt.repeat_without_guest(cycle, PLAN)
    testbed.close()
    (judgement,) = judge(testbed.artifacts.folder, [no_leak])
    assert judgement.verdict is Verdict.VALID, judgement


def test_a_site_that_grows_without_the_device_is_not_its_leak(
    testbed: Testbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Being asked makes QEMU keep something: so it does in the control."""
    keep_when_asked(monkeypatch)
    judgement = hunted(testbed)
    assert judgement.verdict is Verdict.VALID, judgement


def test_what_grows_faster_with_the_device_leaks(testbed: Testbed, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a site that grows in the control as well, and there only when QEMU is asked."""
    keep_when_asked(monkeypatch)
    several = [replace(HEAP_ALONE, arguments={"driver": "null-co", "node-name": f"{x}{{n}}"}) for x in "abcd"]
    judgement = hunted(testbed, *several)
    assert judgement.verdict is Verdict.INVALID
    assert "heap" in kinds(judgement), judgement


def test_what_grows_with_all_that_a_guest_does_is_not_the_devices_leak(
    testbed: Testbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the hunted machine alone, as what TCG keeps of translated code: the control has not got that far."""
    keep_after_commands(monkeypatch, "")
    judgement = hunted_with_a_guest(testbed)
    assert judgement.verdict is Verdict.VALID, judgement


def test_what_grows_with_one_thing_that_a_guest_does_leaks(
    testbed: Testbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_after_commands(monkeypatch, "true")
    judgement = hunted_with_a_guest(testbed)
    assert judgement.verdict is Verdict.INVALID
    assert "heap" in kinds(judgement), judgement


def hunted_with_a_guest(testbed: Testbed) -> Judgement:
    LeakHunt(testbed).repeat(lambda guest: guest.succeed("true"))
    testbed.close()
    (judgement,) = judge(testbed.artifacts.folder, [no_leak])
    return judgement


def keep_after_commands(monkeypatch: pytest.MonkeyPatch, those: str) -> None:
    """After each command of the guest that has ``those`` words, the hunted QEMU keeps a node."""
    ran = itertools.count(1)
    succeed = Guest.succeed

    def and_keep(guest: Guest, command: str, **options: Any) -> str:
        printed = succeed(guest, command, **options)
        if guest.machine.name == "cycles" and those in command:
            HEAP_ALONE.send(guest.machine, next(ran))
        return printed

    monkeypatch.setattr(Guest, "succeed", and_keep)


def keep_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time that QEMU is asked for its sections, it keeps a node."""
    asked = itertools.count(1)
    sections = vmstate.vmstate_sections

    def and_keep(machine: Machine) -> int | None:
        HEAP_ALONE.send(machine, next(asked))
        return sections(machine)

    monkeypatch.setattr(vmstate, "vmstate_sections", and_keep)


def test_the_control_is_subtracted_from_the_hunt() -> None:
    """Site by site, and below zero where the control has more."""
    shared: Site = (("qemu", 1),)
    own: Site = (("qemu", 2),)
    profile = {shared: Live(9, 90), own: Live(5, 50)}
    assert _minus(profile, {shared: Live(7, 95)}) == {shared: Live(2, -5), own: Live(5, 50)}
