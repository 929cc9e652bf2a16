"""Looks for what grows: one cycle, repeated in one machine, whose counts and heap profiles are recorded.

After a warm-up come three parts of equal length, with a heap profile at the end of each. What leaks grows in
every part; what keeps memory for later use fills up. An allocation site (or the number of threads) that grows
in every part is then judged by its behaviour, never by its name:

1. Does it grow without the device as well? A *control* is a machine of the same kind that does the same, but
   for the device. What grows there about as fast is none of the device's.
2. Does it go on? The hunt gets three more parts, each twice as long. A pool whose bound lies beyond the first
   three levels off.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

from harness.checkers import growth
from harness.checkers.no_leak import growing_counts
from harness.guest.guest import Guest
from harness.leaks import footprint, heap_profile, vmstate
from harness.leaks.heap_profile import Live, Site
from harness.ninep.client import RawGuest
from harness.qemu import symbols
from harness.qemu.machine import Machine, Wrapping
from harness.qemu.spec import MachineSpec
from harness.testbed import Testbed

#: Written into the artefact folder for the checker ``no_leak``.
HEAP_SITES = "heap-sites.json"
#: Threads and fds are counted after each cycle. The rest, which costs as much as a cycle, after so many.
_EVERY = 4
_PARTS = 3
#: How much longer the parts are of a hunt that has to go on.
_LONGER = 2
#: A control has a heap profile after so many cycles. From its beginning: what is kept is kept early.
_CONTROL = (0, 4 * _EVERY)
#: What grows so many times as fast with the device leaks, though it grows a little without it: to look at a
#: machine (:mod:`harness.leaks.heap_profile` has a ``device_add`` refused) goes the same ways as some leaks.
_ALIKE = 4.0
#: What the guest of a control does: it uses a file system, and none of 9p.
_GUEST_WITHOUT_DEVICE = (
    "mkdir -p /tmp/control && mount -t tmpfs none /tmp/control && echo text > /tmp/control/file && "
    "cat /tmp/control/file && ls -l /tmp/control && umount /tmp/control"
)
S = TypeVar("S", Guest, Machine, RawGuest)
Profile = dict[Site, Live]
_NOTHING = Live(0, 0)


@dataclass(frozen=True)
class Plan:
    """How often to repeat: ``warm_up`` cycles, then three parts of ``part`` cycles.

    What is lost once in ``part`` cycles is found.

    :param thorough: the same for a hunt that may take longer.
    :param guest: a guest runs, and makes QEMU's memory grow by using its own.
    :param saves: the cycle writes streams by itself: none is written in between to count its sections (11.1
        keeps the description of a stream until the next one is written).
    """

    warm_up: int
    part: int
    thorough: int = 20
    guest: bool = False
    saves: bool = False

    @property
    def lengths(self) -> tuple[int, ...]:
        """The number of cycles before each heap profile."""
        return tuple(self.warm_up + number * self.part for number in range(_PARTS + 1))

    @property
    def longer(self) -> tuple[int, ...]:
        """The same of a hunt that has to go on."""
        last = self.lengths[-1]
        return (*self.lengths, *(last + number * self.part * _LONGER for number in range(1, _PARTS + 1)))


#: A cycle without a guest takes some 40 to 75 ms.
WITHOUT_GUEST = Plan(warm_up=10, part=12)
SAVING = replace(WITHOUT_GUEST, saves=True)
WITH_GUEST = Plan(warm_up=5, part=8, guest=True)


class LeakHunt:
    """Repeats a cycle in a machine of one testbed, which it launches; it has to exist before that is.

    Where the heap cannot be profiled, what can be counted is hunted all the same, and the record says why.

    :param thorough: hunt longer, for what is lost more rarely.
    """

    def __init__(self, testbed: Testbed, *, thorough: bool = False) -> None:
        self.testbed, self._thorough = testbed, thorough
        self._preload: Path | None = None
        self._not_profiled = ""
        try:
            self._preload = heap_profile.library(testbed.cell.qemu)
        except heap_profile.NotProfiled as exc:
            self._not_profiled = str(exc)
        testbed.attach(self)

    def wrap(self, spec: MachineSpec, _folder: Path) -> Wrapping:
        """Start QEMU with a heap that is profiled, where it can be."""
        if self._preload is None:
            return Wrapping()
        return Wrapping(environment=heap_profile.environment(self._preload, self._prefix(spec.name)))

    def release(self) -> None:
        """Nothing is in anybody's way."""

    def close(self) -> None:
        """Nothing is left."""

    def _prefix(self, name: str) -> Path:
        return self.testbed.artifacts.folder / f"heap-{name}"

    def repeat(self, cycle: Callable[[Guest], object], plan: Plan = WITH_GUEST) -> None:
        """Repeat ``cycle`` in a guest; what grew is then in the record, for ``no_leak`` to judge."""

        def boot(name: str) -> Guest:
            return self.testbed.boot(self.testbed.spec(name=name))

        def idle(guest: Guest) -> None:
            guest.succeed(_GUEST_WITHOUT_DEVICE)

        self._hunt(boot, lambda guest: guest.machine, cycle, plan, idle)

    def repeat_without_guest(
        self, cycle: Callable[[Machine], object], plan: Plan = WITHOUT_GUEST, *extra: str
    ) -> None:
        """The same in a machine that was never started (``-S``): no guest takes part, and no boot is needed.

        :param extra: further arguments for QEMU.
        """

        def launch(name: str) -> Machine:
            return self.testbed.launch(replace(self.testbed.spec(name=name), extra=("-S", *extra)))

        self._hunt(launch, lambda machine: machine, cycle, plan, lambda _: None)

    def repeat_raw(
        self,
        cycle: Callable[[RawGuest], object],
        plan: Plan = WITHOUT_GUEST,
        *,
        control: Callable[[RawGuest], object] | None = None,
    ) -> None:
        """The same with a client of our own in the place of the guest: the device is really used.

        :param control: the cycle without the device, where that leaks by itself; it is always run, and what
            grows in it is subtracted.
        """

        def launch(name: str) -> RawGuest:
            return RawGuest(self.testbed, name=name)

        self._hunt(launch, lambda raw: raw.machine, cycle, plan, lambda _: None, control)

    def _hunt(
        self,
        start: Callable[[str], S],
        machine_of: Callable[[S], Machine],
        cycle: Callable[[S], object],
        plan: Plan,
        idle: Callable[[S], object],
        control: Callable[[S], object] | None = None,
    ) -> None:
        if self._thorough:
            plan = replace(plan, part=max(plan.part, plan.thorough))
        self._note_plan(plan, plan.lengths, control is not None)
        runs = [_Run(self, start, machine_of, cycle, plan)]
        if control is not None:
            runs.append(_Run(self, start, machine_of, control, plan, "control-"))
        for run in runs:
            run.go_to(plan.lengths)
        suspects = self._suspects(runs)
        if suspects:
            alone = self._growth_without_device(start, machine_of, idle, plan)
            profiles, lengths = _differences(runs), runs[0].lengths
            suspects = {
                site
                for site in suspects
                if _objects_a_cycle(profiles, lengths, site) > _ALIKE * alone.get(site, 0.0)
            }
        if (suspects or runs[0].threads_grow(plan.lengths)) and not self._is_decided(runs, plan.lengths):
            self._note_plan(plan, plan.longer, control is not None)
            for run in runs:
                run.go_to(plan.longer)
            suspects &= self._suspects(runs)
        for run in runs:
            run.machine.quit()
        self._write_sites(runs, suspects)

    def profile(self, machine: Machine) -> Path | None:
        """The heap profile that a machine of this hunt has written now, where it can."""
        return None if self._preload is None else heap_profile.profile(machine, self._prefix(machine.name))

    def _note_plan(self, plan: Plan, lengths: Sequence[int], control: bool) -> None:
        value = {"warm_up": plan.warm_up, "lengths": lengths, "guest": plan.guest, "control": control}
        self.testbed.history.note("host", "leak:plan", value)

    def _is_decided(self, runs: Sequence[_Run[S]], lengths: Sequence[int]) -> bool:
        """Whether a count has leaked: then there is nothing to wait for."""
        control = runs[1].hunted if len(runs) > 1 else []
        found = growing_counts(runs[0].hunted, control, lengths)
        return any(not line.startswith("threads") for line, *_ in found)

    def _suspects(self, runs: Sequence[_Run[S]]) -> set[Site]:
        """The sites that have more objects after each part."""
        profiles = _differences(runs)
        return {
            site
            for site in set[Site]().union(*profiles)
            if growth.throughout([profile.get(site, _NOTHING).objects for profile in profiles])
        }

    def _growth_without_device(
        self,
        start: Callable[[str], S],
        machine_of: Callable[[S], Machine],
        idle: Callable[[S], object],
        plan: Plan,
    ) -> dict[Site, float]:
        """Objects a cycle of the sites that grow in the control."""
        run = _Run(self, start, machine_of, idle, plan, "idle-")
        run.go_to(_CONTROL)
        run.machine.quit()
        grow = {site: _objects_a_cycle(run.profiles, run.lengths, site) for site in run.profiles[-1]}
        return {site: objects for site, objects in grow.items() if objects > 0}

    def _write_sites(self, runs: Sequence[_Run[S]], suspects: set[Site]) -> None:
        if self._preload is None:
            self.testbed.history.note("host", "leak:heap-sites", {"not_profiled": self._not_profiled})
            return
        profiles = _differences(runs)
        found = {site: [profile.get(site, _NOTHING) for profile in profiles] for site in suspects}
        in_order = sorted(found, key=lambda site: found[site][0].objects - found[site][-1].objects)
        content = {
            "lengths": runs[0].lengths,
            "total_objects": [sum(live.objects for live in profile.values()) for profile in profiles],
            "total_bytes": [sum(live.bytes for live in profile.values()) for profile in profiles],
            "growing": [
                {
                    "objects": [one.objects for one in found[site]],
                    "bytes": [one.bytes for one in found[site]],
                    "stack": [symbols.name(file, offset) for file, offset in site],
                }
                for site in in_order
            ],
        }
        (self.testbed.artifacts.folder / HEAP_SITES).write_text(json.dumps(content, indent=1) + "\n")
        self.testbed.history.note("host", "leak:heap-sites", {"file": HEAP_SITES, "growing": len(suspects)})


class _Run(Generic[S]):
    """A machine in which a cycle is repeated, and what was seen of it."""

    def __init__(
        self,
        hunt: LeakHunt,
        start: Callable[[str], S],
        machine_of: Callable[[S], Machine],
        cycle: Callable[[S], object],
        plan: Plan,
        prefix: str = "",
    ) -> None:
        self._hunt, self._plan, self._prefix = hunt, plan, prefix
        self._cycle: Callable[[S], object] = cycle
        self._subject: S = start(f"{prefix}cycles")
        self.machine = machine_of(self._subject)
        self._pid = footprint.process(self.machine)
        self._done = 0
        self.lengths: list[int] = []
        self.profiles: list[Profile] = []
        self._samples: list[dict[str, object]] = []

    def go_to(self, lengths: Sequence[int]) -> None:
        """Repeat the cycle until the last of ``lengths``, with a heap profile after each that is new."""
        for length in lengths:
            if length in self.lengths:
                continue
            while self._done < length:
                self._cycle(self._subject)
                self._done += 1
                self._sample(last=self._done == length)
            self._profile()
            self.lengths.append(length)

    @property
    def hunted(self) -> list[dict[str, object]]:
        """The samples that count: from the last of the warm-up on."""
        return self._samples[self._plan.warm_up - 1 :]

    def threads_grow(self, lengths: Sequence[int]) -> bool:
        """Whether in each part a thread began that stays."""
        return any(line.startswith("threads") for line, *_ in growing_counts(self.hunted, [], lengths))

    def _sample(self, *, last: bool) -> None:
        value: dict[str, object] = {"cycle": self._done - 1, **footprint.handles(self._pid)}
        # The first cycles are sampled too: what QEMU keeps of being asked, it then has already.
        if last or self._done % _EVERY == 0:
            value |= {} if self._plan.saves else _sections(self.machine)
            value |= footprint.footprint(self.machine, self._pid)
        self._samples.append(value)
        self._hunt.testbed.history.note(self.machine.name, f"leak:{self._prefix}sample", value)

    def _profile(self) -> None:
        written = self._hunt.profile(self.machine)
        self.profiles.append({} if written is None else heap_profile.read_profile(written))


def _objects_a_cycle(profiles: Sequence[Profile], lengths: Sequence[int], site: Site) -> float:
    """How many more objects a site has with each cycle of the last part."""
    before, last = (profile.get(site, _NOTHING).objects for profile in profiles[-2:])
    return (last - before) / (lengths[-1] - lengths[-2])


def _sections(machine: Machine) -> dict[str, object]:
    """A count that not every machine tells."""
    count = vmstate.vmstate_sections(machine)
    return {} if count is None else {"vmstate_sections": count}


def _differences(runs: Sequence[_Run[S]]) -> list[Profile]:
    """The profiles of the hunt, less those of its control where there is one."""
    if len(runs) == 1:
        return runs[0].profiles
    hunted, control = runs
    return [_less(profile, base) for profile, base in zip(hunted.profiles, control.profiles, strict=True)]


def _less(profile: Profile, base: Profile) -> Profile:
    """What ``profile`` has more than ``base``, site by site; less than nothing, where that has more."""

    def difference(live: Live, other: Live) -> Live:
        return Live(live.objects - other.objects, live.bytes - other.bytes)

    return {site: difference(live, base.get(site, _NOTHING)) for site, live in profile.items()}
