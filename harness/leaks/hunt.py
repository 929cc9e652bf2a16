"""Leak hunts: one cycle is repeated in one machine, whose counts and heap profiles are recorded.

A warm-up is followed by three parts of equal length, with a heap profile at the end of each. A leak grows in
every part; a cache or pool stops growing. An allocation site (or the number of threads) that grows in every
part is then judged by its behaviour, never by its name:

1. With a guest: does it grow as fast when that guest does something else, for as much of QEMU's processor
   time, or are its objects freed then? Under TCG, QEMU translates code as long as the guest meets paths that
   it has not taken before, such as those of its interrupts, and keeps a record of each block until a hash
   table is resized (QEMU: ``accel/tcg/translate-all.c``, ``tb_link_page``; ``util/qht.c``). That takes longer
   than a hunt, and depends on what was translated before, so that no other machine is a measure of it.
2. Does it grow without the device as well? A *control* is a machine of the same kind that does the same
   without the device. A site that grows about as fast there is not the device's.
3. Does it keep growing? The hunt is extended by three more parts, each twice as long. A pool whose limit lies
   beyond the first three parts then stops growing.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

from harness.checkers import growth
from harness.checkers.no_leak import growing_counts
from harness.guest.guest import Guest
from harness.leaks import coroutine_pool, footprint, heap_profile, vmstate
from harness.leaks.heap_profile import Live, Site
from harness.ninep.client import RawGuest
from harness.qemu import symbols
from harness.qemu.machine import Machine, Wrapping
from harness.qemu.process import process, processor_s
from harness.qemu.spec import MachineSpec
from harness.testbed import Testbed

#: Written into the artefact folder for the checker ``no_leak``.
HEAP_SITES = "heap-sites.json"
#: Threads and fds are counted after each cycle, the rest after this many cycles: it costs as much as a cycle.
_EVERY = 4
_PARTS = 3
#: How many times longer the parts of an extension are.
_EXTENSION_FACTOR = 2
#: An idle control has a heap profile after each of these numbers of cycles. The first is before any cycle,
#: because caches fill in the first cycles.
_IDLE_LENGTHS = (0, 4 * _EVERY)
#: A site that grows in the idle control is suspected only if it grows more than this many times as fast with
#: the device. Measuring itself makes a control grow a little: :mod:`harness.leaks.heap_profile` sends a
#: ``device_add`` that QEMU refuses, which allocates at the same sites as some leaks.
_IDLE_RATIO = 4.0
#: What the guest does without the device: it uses a file system other than 9p.
_GUEST_WITHOUT_DEVICE = (
    "mkdir -p /tmp/control && mount -t tmpfs none /tmp/control && echo text > /tmp/control/file && "
    "cat /tmp/control/file && ls -l /tmp/control && umount /tmp/control"
)
S = TypeVar("S", Guest, Machine, RawGuest)
Profile = dict[Site, Live]
_NOTHING = Live(0, 0)


@dataclass(frozen=True)
class Plan:
    """How often a cycle is repeated: ``warm_up`` cycles, then three parts of ``part`` cycles.

    A leak that happens at least once in ``part`` cycles is found.

    :param thorough: the length of a part in a thorough hunt, in cycles.
    :param guest: a guest runs. It makes QEMU's memory grow by touching its own memory.
    :param saves: the cycle writes migration streams. No further stream is then written to count the vmstate
        sections (11.1 keeps the description of a stream until the next one is written).
    """

    warm_up: int
    part: int
    thorough: int = 20
    guest: bool = False
    saves: bool = False

    @property
    def lengths(self) -> tuple[int, ...]:
        """The number of cycles before each heap profile of a hunt."""
        return tuple(self.warm_up + number * self.part for number in range(_PARTS + 1))

    @property
    def extended(self) -> tuple[int, ...]:
        """The number of cycles before each heap profile, for a hunt that is extended."""
        last = self.lengths[-1]
        return (
            *self.lengths,
            *(last + number * self.part * _EXTENSION_FACTOR for number in range(1, _PARTS + 1)),
        )


#: A cycle without a guest takes some 40 to 75 ms.
WITHOUT_GUEST = Plan(warm_up=8, part=8)
SAVING = replace(WITHOUT_GUEST, thorough=12, saves=True)
#: For a cycle of a hundred requests, each of which leaks in each cycle or never; it takes some 150 ms.
MANY_REQUESTS = Plan(warm_up=4, part=5, thorough=12)
#: Under TCG a cycle with a guest takes the processor time of four without. What is lost more rarely is found
#: without a guest.
WITH_GUEST = Plan(warm_up=4, part=3, thorough=8, guest=True)


class LeakHunt:
    """Repeats a cycle in a machine of one testbed; to be created before the machine is launched.

    When the heap cannot be profiled, the counts are hunted nevertheless, and the reason is recorded.

    :param thorough: repeat more cycles, to find leaks that happen more rarely.
    """

    def __init__(self, testbed: Testbed, *, thorough: bool = False) -> None:
        self.testbed, self._thorough = testbed, thorough
        self._daemon: Callable[[Machine], int] | None = None
        self._preload: Path | None = None
        self._not_profiled = ""
        try:
            self._preload = heap_profile.library(testbed.cell.qemu)
        except heap_profile.NotProfiled as exc:
            self._not_profiled = str(exc)
        testbed.attach(self)

    def wrap(self, spec: MachineSpec, _folder: Path) -> Wrapping:
        """Start QEMU with heap profiling, if it can be profiled."""
        if self._preload is None:
            return Wrapping()
        return Wrapping(environment=heap_profile.environment(self._preload, self._prefix(spec.name)))

    def release(self) -> None:
        """Nothing to do: a leak hunt does not keep a machine from ending."""

    def close(self) -> None:
        """Nothing to do: a leak hunt holds nothing."""

    def _prefix(self, name: str) -> Path:
        return self.testbed.artifacts.folder / f"heap-{name}"

    def repeat(
        self,
        cycle: Callable[[Guest], object],
        plan: Plan = WITH_GUEST,
        *,
        daemon: Callable[[Machine], int] | None = None,
    ) -> None:
        """Hunt leaks: repeat ``cycle`` in a guest, and record what the checker ``no_leak`` judges.

        :param daemon: the process id of a device's daemon, whose fds, threads and memory are judged as well.
            It has to be one process during all cycles.
        """
        self._daemon = daemon

        def boot(name: str) -> Guest:
            return self.testbed.boot(self.testbed.spec(name=name))

        def idle(guest: Guest) -> None:
            guest.succeed(_GUEST_WITHOUT_DEVICE)

        self._hunt(boot, lambda guest: guest.machine, cycle, plan, idle)

    def repeat_without_guest(
        self, cycle: Callable[[Machine], object], plan: Plan = WITHOUT_GUEST, *extra: str
    ) -> None:
        """Hunt leaks in a machine that is never started (``-S``), so that no guest has to boot.

        :param extra: further arguments for QEMU.
        """

        def launch(name: str) -> Machine:
            spec = self.testbed.spec(name=name).without_kernel()
            machine = self.testbed.launch(replace(spec, extra=("-S", *extra)))
            if not plan.saves:
                coroutine_pool.fill(machine)
            return machine

        self._hunt(launch, lambda machine: machine, cycle, plan, lambda _: None)

    def repeat_raw(
        self,
        cycle: Callable[[RawGuest], object],
        plan: Plan = WITHOUT_GUEST,
        *,
        control: Callable[[RawGuest], object] | None = None,
    ) -> None:
        """Hunt leaks: repeat ``cycle`` with the raw 9P client instead of a guest.

        :param control: the cycle without the device, for a cycle that leaks even then. It is always run, and
            what grows in it is subtracted.
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
            run.run_to(plan.lengths)
        suspects = self._grown(runs, idle, plan)
        if suspects:
            alone = self._growth_without_device(start, machine_of, idle, plan)
            profiles, lengths = _differences(runs), runs[0].lengths
            suspects = {
                site
                for site in suspects
                if _objects_a_cycle(profiles, lengths, site) > _IDLE_RATIO * alone.get(site, 0.0)
            }
        if (suspects or runs[0].threads_grow(plan.lengths)) and not self._is_decided(runs, plan.lengths):
            self._note_plan(plan, plan.extended, control is not None)
            for run in runs:
                run.run_to(plan.extended)
            suspects &= self._grown(runs, idle, plan)
        for run in runs:
            run.machine.quit()
        self._write_sites(runs, suspects)

    def profile(self, machine: Machine) -> Path | None:
        """A new heap profile of a machine of this hunt; ``None`` when its heap cannot be profiled."""
        return None if self._preload is None else heap_profile.profile(machine, self._prefix(machine.name))

    def of_daemon(self, machine: Machine) -> dict[str, object]:
        """The counts of the daemon that this hunt samples as well; empty without one."""
        return {} if self._daemon is None else footprint.of_daemon(self._daemon(machine))

    def _note_plan(self, plan: Plan, lengths: Sequence[int], control: bool) -> None:
        value = {"warm_up": plan.warm_up, "lengths": lengths, "guest": plan.guest, "control": control}
        self.testbed.history.note("host", "leak:plan", value)

    def _is_decided(self, runs: Sequence[_Run[S]], lengths: Sequence[int]) -> bool:
        """Whether the hunt found that a count other than threads leaks: an extension would add nothing."""
        control = runs[1].hunted if len(runs) > 1 else []
        found = growing_counts(runs[0].hunted, control, lengths)
        return any(not line.startswith("threads") for line, *_ in found)

    def _grown(self, runs: Sequence[_Run[S]], idle: Callable[[S], object], plan: Plan) -> set[Site]:
        """The sites that the hunt suspects: with more objects after each part than before it.

        With a guest, without those that grow as fast while it does something else.
        """
        profiles = _differences(runs)
        suspects = {
            site
            for site in set[Site]().union(*profiles)
            if growth.throughout([profile.get(site, _NOTHING).objects for profile in profiles])
        }
        return runs[0].of_the_cycle(suspects, idle) if suspects and plan.guest else suspects

    def _growth_without_device(
        self,
        start: Callable[[str], S],
        machine_of: Callable[[S], Machine],
        idle: Callable[[S], object],
        plan: Plan,
    ) -> dict[Site, float]:
        """Objects a cycle of the sites that grow in the hunt's control, which is idle."""
        run = _Run(self, start, machine_of, idle, plan, "idle-")
        run.run_to(_IDLE_LENGTHS)
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
    """A machine in which a cycle is repeated, with its samples and heap profiles."""

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
        self._pid = process(self.machine)
        self._done = 0
        self.lengths: list[int] = []
        self.profiles: list[Profile] = []
        self._processor_s: list[float] = []
        self._samples: list[dict[str, object]] = []

    def run_to(self, lengths: Sequence[int]) -> None:
        """Repeat the hunt's cycle up to the last of ``lengths``.

        There is a heap profile at each new one of them.
        """
        for length in lengths:
            if length in self.lengths:
                continue
            while self._done < length:
                self._cycle(self._subject)
                self._done += 1
                self._sample(last=self._done == length)
            self.profiles.append(self._profile())
            self._processor_s.append(processor_s(self._pid))
            self.lengths.append(length)

    def of_the_cycle(self, suspects: set[Site], idle: Callable[[S], object]) -> set[Site]:
        """Those of ``suspects`` whose objects stay while the guest does something else, and grow more slowly.

        What it does (``idle``) is repeated as often as the cycle in the last part of the hunt, and on until
        QEMU has used as much processor time as for that part.
        """
        cycles = self.lengths[-1] - self.lengths[-2]
        before = self._profile()  # The second in succession: it shows what a profile itself adds.
        limit_s = processor_s(self._pid) + self._processor_s[-1] - self._processor_s[-2]
        for done in itertools.count():
            if done >= cycles and processor_s(self._pid) >= limit_s:
                break
            idle(self._subject)
        after = self._profile()
        return {site for site in suspects if self._is_of_the_cycle(site, before, after)}

    def _is_of_the_cycle(self, site: Site, before: Profile, after: Profile) -> bool:
        start, end = (profile.get(site, _NOTHING).objects for profile in (before, after))
        objects = [profile.get(site, _NOTHING).objects for profile in self.profiles]
        if not growth.throughout([min(count, end) for count in objects]):
            return False  # They were not lost: QEMU has freed them.
        parts = zip(itertools.pairwise(objects), itertools.pairwise(self.lengths), strict=True)
        least = min((last - first) / (upto - since) for (first, last), (since, upto) in parts)
        elsewhere = (end - start) - (start - objects[-1])  # Without what a profile itself adds.
        return least > _IDLE_RATIO * elsewhere / (self.lengths[-1] - self.lengths[-2])

    @property
    def hunted(self) -> list[dict[str, object]]:
        """The samples that this hunt has taken and that are judged: from the warm-up's last one on."""
        return self._samples[self._plan.warm_up - 1 :]

    def threads_grow(self, lengths: Sequence[int]) -> bool:
        """Whether in each part of the hunt a thread was started that did not end."""
        return any(line.startswith("threads") for line, *_ in growing_counts(self.hunted, [], lengths))

    def _sample(self, *, last: bool) -> None:
        value: dict[str, object] = {"cycle": self._done - 1, **footprint.handles(self._pid)}
        # The warm-up is sampled too, so that QEMU has allocated what the commands themselves need.
        if last or self._done % _EVERY == 0:
            value |= {} if self._plan.saves else _sections(self.machine)
            value |= footprint.footprint(self.machine, self._pid)
        value |= self._hunt.of_daemon(self.machine)
        self._samples.append(value)
        self._hunt.testbed.history.note(self.machine.name, f"leak:{self._prefix}sample", value)

    def _profile(self) -> Profile:
        written = self._hunt.profile(self.machine)
        return {} if written is None else heap_profile.read_profile(written)


def _objects_a_cycle(profiles: Sequence[Profile], lengths: Sequence[int], site: Site) -> float:
    """How many objects a site gained per cycle in the last part of the hunt."""
    before, last = (profile.get(site, _NOTHING).objects for profile in profiles[-2:])
    return (last - before) / (lengths[-1] - lengths[-2])


def _sections(machine: Machine) -> dict[str, object]:
    """The number of vmstate sections for a sample of the hunt, if this machine can be asked for it."""
    count = vmstate.vmstate_sections(machine)
    return {} if count is None else {"vmstate_sections": count}


def _differences(runs: Sequence[_Run[S]]) -> list[Profile]:
    """The heap profiles of the hunt, minus those of its control if there is one."""
    if len(runs) == 1:
        return runs[0].profiles
    hunted, control = runs
    return [_minus(profile, base) for profile, base in zip(hunted.profiles, control.profiles, strict=True)]


def _minus(profile: Profile, base: Profile) -> Profile:
    """A heap profile minus that of the hunt's control, site by site; negative where ``base`` has more."""

    def difference(live: Live, other: Live) -> Live:
        return Live(live.objects - other.objects, live.bytes - other.bytes)

    return {site: difference(live, base.get(site, _NOTHING)) for site, live in profile.items()}
