"""The cheapest scenarios that catch every fault which any scenario catches, computed from the table.

The smallest weighted set cover cannot be computed quickly (it is NP-hard); taking what catches most per
second first, and then dropping what turns out not to be needed, comes close, and gives the same answer every
time.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from harness.mutation.table import Detection

#: A fault, and the QEMU that has it.
Target = tuple[str, str]
#: A scenario that takes no time would be taken for nothing.
_LEAST_S = 0.1


@dataclass(frozen=True)
class Plan:
    """What a default run should be of.

    :ivar chosen: its scenarios. :ivar take: those that a default run does not have today.
    :ivar leave_out: those that it has, and need not. :ivar seconds: what it takes.
    :ivar caught: the faults that the chosen ones catch. :ivar never: those that nothing measured catches.
    """

    chosen: tuple[str, ...]
    take: tuple[str, ...]
    leave_out: tuple[str, ...]
    seconds: float
    caught: tuple[Target, ...]
    never: tuple[Target, ...]


def plan(
    table: Detection,
    every: Collection[str],
    default: Collection[str],
    always: Collection[str],
    needed: Collection[str] = (),
) -> Plan:
    """The default set that a table asks for.

    :param every: the scenarios that there are. :param default: those that a default run has today.
    :param always: those that it has in any case. A scenario that the table does not know stays what it is.
    :param needed: tests (``file.py::test``) that have to find a fault which was not measured: they stay, too.
    """
    costs = seconds_of(table)
    kept = {name for name in default if name in always or name not in costs}
    kept |= {name for name in default if name.partition("[")[0] in needed}
    finds = catches(table, set(every) & set(costs) | kept)
    chosen = cheapest_cover(finds, costs, kept)
    missed = {target for target in targets(table) if not any(target in found for found in finds.values())}
    return Plan(
        chosen=tuple(sorted(chosen)),
        take=tuple(sorted(chosen - set(default))),
        leave_out=tuple(sorted(set(default) - chosen)),
        seconds=predicted_s(table, chosen),
        caught=tuple(sorted(targets(table) - missed)),
        never=tuple(sorted(missed)),
    )


@dataclass(frozen=True)
class Unmeasured:
    """What the table does not know: faults of the catalogue, and scenarios, as they are now."""

    faults: tuple[str, ...]
    scenarios: tuple[str, ...]


def unmeasured(table: Detection, every: Collection[str], keys: Mapping[str, str]) -> Unmeasured:
    """What the table does not know.

    :param every: the scenarios that there are; those that were skipped count as not measured.
    :param keys: the faults that there are, and :attr:`harness.mutation.catalogue.Fault.key` of each.
    """
    known = {(fault, one.key) for on in table.qemus.values() for fault, one in on.faults.items()}
    ran = {name for on in table.qemus.values() for name in (*on.scenarios, *on.alarms)}
    faults = [name for name, key in keys.items() if (name, key) not in known]
    return Unmeasured(tuple(faults), tuple(sorted(set(every) - ran)))


def targets(table: Detection) -> set[Target]:
    """Every fault that the table knows something of."""
    return {(qemu, fault) for qemu, known in table.qemus.items() for fault in known.faults}


def catches(table: Detection, among: Collection[str]) -> dict[str, set[Target]]:
    """What each of these scenarios catches."""
    found: dict[str, set[Target]] = {name: set() for name in among}
    for qemu, known in table.qemus.items():
        for fault in known.faults:
            for name in known.catches(fault) & set(among):
                found[name].add((qemu, fault))
    return found


def seconds_of(table: Detection) -> dict[str, float]:
    """What each scenario takes on a QEMU without a fault; on the slowest, where it was run on several."""
    costs: dict[str, float] = {}
    for known in table.qemus.values():
        for name, seconds in known.scenarios.items():
            costs[name] = max(seconds, costs.get(name, 0.0))
    return costs


def predicted_s(table: Detection, scenarios: Collection[str]) -> float:
    """What a run of these takes, as many at once as in the fault-free runs of the table."""
    costs = seconds_of(table)
    at_once = min((known.at_once for known in table.qemus.values()), default=1.0)
    return sum(costs.get(name, 0.0) for name in scenarios) / at_once


def cheapest_cover(
    finds: Mapping[str, Collection[Target]], costs: Mapping[str, float], kept: Collection[str]
) -> set[str]:
    """The ``kept`` ones, and of the others as few seconds as catch whatever any of them catches."""
    left = {target for found in finds.values() for target in found}
    left -= {target for name in kept for target in finds.get(name, ())}
    chosen: list[str] = []
    while left:
        name = min(
            (name for name in finds if left & set(finds[name])),
            key=lambda name: (max(costs.get(name, 0.0), _LEAST_S) / len(left & set(finds[name])), name),
        )
        chosen.append(name)
        left -= set(finds[name])
    for name in sorted(chosen, key=lambda name: (-costs.get(name, 0.0), name)):
        others = {target for other in (*kept, *chosen) if other != name for target in finds.get(other, ())}
        if set(finds[name]) <= others:
            chosen.remove(name)
    return {*kept, *chosen}
