"""Looks for what grows: one cycle, repeated in one machine, which is sampled after each but the first few.

A heap profile is taken three times: after a warm-up, half-way, and at the end. An allocation site whose live
objects grow from the first to the second *and* from the second to the third, by as much as there were more
cycles, leaks; caches fill up once, and retained memory belongs to nobody's site.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from harness.errors import SetupError
from harness.guest.guest import Guest
from harness.guest.lab import Lab
from harness.guest.raw9p import RawGuest
from harness.qemu import jemalloc, symbols
from harness.qemu.footprint import footprint
from harness.qemu.jemalloc import Live, Site
from harness.qemu.machine import Machine, Wrapping
from harness.qemu.spec import MachineSpec
from harness.qemu.vmstate import vmstate_sections

#: Written into the artefact folder for the checker ``no_leak``.
HEAP_SITES = "heap-sites.json"
#: The last cycles of the warm-up are sampled too: what QEMU keeps of being asked, it then has already.
_SAMPLED_BEFORE = 3
#: Sites are worth naming when they grow at all; the checker decides what is a leak.
_MAX_SITES = 200
S = TypeVar("S", Guest, Machine, RawGuest)


@dataclass(frozen=True)
class Plan:
    """How often to repeat: ``warm_up`` cycles, then twice ``cycles``.

    :param guest: a guest runs, and makes QEMU's memory grow by using its own.
    :param saves: the cycle writes streams by itself: none is written in between to count its sections (11.1
        keeps the description of a stream until the next one is written).
    """

    warm_up: int
    cycles: int
    guest: bool = False
    saves: bool = False

    @property
    def lengths(self) -> tuple[int, int, int]:
        """The number of cycles before each of the three heap profiles."""
        return self.warm_up, self.warm_up + self.cycles, self.warm_up + 2 * self.cycles


#: A cycle without a guest takes some 40 to 75 ms.
WITHOUT_GUEST = Plan(warm_up=10, cycles=10)
SAVING = replace(WITHOUT_GUEST, saves=True)
WITH_GUEST = Plan(warm_up=5, cycles=10, guest=True)


class LeakHunt:
    """Repeats a cycle in a machine of one lab, which it launches; it has to exist before that is.

    :raises SetupError: where this QEMU's host has no libjemalloc2 to preload, QEMU has a heap of its own, or
        a script starts it.
    """

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        install = lab.cell.qemu
        if install.sanitized:
            raise SetupError(
                f"QEMU {install.name} has AddressSanitizer's heap, which jemalloc cannot profile"
            )
        if not install.libraries:
            raise SetupError(f"QEMU {install.name} is started by a script: what it can preload is not known")
        found = jemalloc.library(install)
        if found is None:
            folders = ", ".join(str(folder) for folder in install.libraries)
            raise SetupError(
                f"no {jemalloc.LIBRARY} for QEMU {install.name} (apt-get install libjemalloc2); "
                f"looked in {folders}"
            )
        self._preload = found
        lab.attach(self)

    def wrap(self, spec: MachineSpec, _folder: Path) -> Wrapping:
        """Start QEMU with a heap that is profiled."""
        return Wrapping(environment=jemalloc.environment(self._preload, self._prefix(spec.name)))

    def release(self) -> None:
        """Nothing is in anybody's way."""

    def close(self) -> None:
        """Nothing is left."""

    def _prefix(self, name: str) -> Path:
        return self.lab.artifacts.folder / f"heap-{name}"

    def repeat(self, cycle: Callable[[Guest], object], plan: Plan = WITH_GUEST) -> None:
        """Repeat ``cycle`` in a guest; what grew is then in the record, for ``no_leak`` to judge."""

        def boot(name: str) -> Guest:
            return self.lab.boot(self.lab.spec(name=name))

        self._hunt(boot, lambda guest: guest.machine, cycle, plan)

    def repeat_without_guest(
        self, cycle: Callable[[Machine], object], plan: Plan = WITHOUT_GUEST, *extra: str
    ) -> None:
        """The same in a machine that was never started (``-S``): no guest takes part, and no boot is needed.

        :param extra: further arguments for QEMU.
        """

        def launch(name: str) -> Machine:
            return self.lab.launch(replace(self.lab.spec(name=name), extra=("-S", *extra)))

        self._hunt(launch, lambda machine: machine, cycle, plan)

    def repeat_raw(
        self,
        cycle: Callable[[RawGuest], object],
        plan: Plan = WITHOUT_GUEST,
        *,
        control: Callable[[RawGuest], object] | None = None,
    ) -> None:
        """The same with a client of our own in the place of the guest: the device is really used.

        :param control: the cycle without the device; what grows in it as well is none of the device's.
        """
        self._hunt(lambda name: RawGuest(self.lab, name=name), lambda raw: raw.machine, cycle, plan, control)

    def _hunt(
        self,
        start: Callable[[str], S],
        machine_of: Callable[[S], Machine],
        cycle: Callable[[S], object],
        plan: Plan,
        control: Callable[[S], object] | None = None,
    ) -> None:
        value = {"warm_up": plan.warm_up, "lengths": plan.lengths, "guest": plan.guest}
        self.lab.history.note("host", "leak:plan", value)
        profiles = self._measure(start, machine_of, cycle, plan)
        if control is not None:
            baseline = self._measure(start, machine_of, control, plan, "control-")
            profiles = [_less(profile, base) for profile, base in zip(profiles, baseline, strict=True)]
        self._write_sites(profiles, plan)

    def _measure(
        self,
        start: Callable[[str], S],
        machine_of: Callable[[S], Machine],
        cycle: Callable[[S], object],
        plan: Plan,
        prefix: str = "",
    ) -> list[dict[Site, Live]]:
        subject = start(f"{prefix}cycles")
        machine = machine_of(subject)
        profiles = []
        for number in range(plan.lengths[-1]):
            cycle(subject)
            if number >= plan.warm_up - _SAMPLED_BEFORE:
                value = {"cycle": number, **({} if plan.saves else _sections(machine)), **footprint(machine)}
                self.lab.history.note(machine.name, f"leak:{prefix}sample", value)
            if number + 1 in plan.lengths:
                written = jemalloc.profile(machine, self._prefix(machine.name))
                profiles.append(jemalloc.read_profile(written))
        machine.quit()
        return profiles

    def _write_sites(self, profiles: list[dict[Site, Live]], plan: Plan) -> None:
        nothing = Live(0, 0)
        sites = []
        for site in set().union(*profiles):
            live = [profile.get(site, nothing) for profile in profiles]
            if live[2].objects > live[1].objects > live[0].objects:
                sites.append((live, site))
        sites.sort(key=lambda found: found[0][0].objects - found[0][2].objects)
        content = {
            "lengths": plan.lengths,
            "total_objects": [sum(live.objects for live in profile.values()) for profile in profiles],
            "total_bytes": [sum(live.bytes for live in profile.values()) for profile in profiles],
            "growing": [
                {
                    "objects": [one.objects for one in live],
                    "bytes": [one.bytes for one in live],
                    "stack": [symbols.name(file, offset) for file, offset in site],
                }
                for live, site in sites[:_MAX_SITES]
            ],
        }
        (self.lab.artifacts.folder / HEAP_SITES).write_text(json.dumps(content, indent=1) + "\n")
        self.lab.history.note("host", "leak:heap-sites", {"file": HEAP_SITES, "growing": len(sites)})


def _sections(machine: Machine) -> dict[str, int]:
    """A count that not every machine tells."""
    count = vmstate_sections(machine)
    return {} if count is None else {"vmstate_sections": count}


def _less(profile: dict[Site, Live], base: dict[Site, Live]) -> dict[Site, Live]:
    """What ``profile`` has more than ``base``, site by site; less than nothing, where that has more."""
    nothing = Live(0, 0)

    def difference(live: Live, other: Live) -> Live:
        return Live(live.objects - other.objects, live.bytes - other.bytes)

    return {site: difference(live, base.get(site, nothing)) for site, live in profile.items()}
