"""Computes the cheapest set of scenarios that catches every fault in the table that any scenario catches.

The smallest weighted set cover is NP-hard. A greedy approximation is used: the scenario that catches most new
faults per second is taken first, and at the end those that are not needed are dropped. The result depends on
the table alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from harness.mutation.detection import Detection

#: A fault, and the QEMU that has it.
Target = tuple[str, str]
#: Seconds: the least that a scenario is taken to cost. With a cost of zero, any number would be free.
_LEAST_S = 0.1
#: Seconds: a scenario of today's default set that costs less is not worth leaving out.
_WORTH_LEAVING_OUT_S = 3.0


@dataclass(frozen=True)
class Plan:
    """The scenarios that a default run should have.

    :ivar chosen: the scenarios. :ivar take: those of them that a default run does not have today.
    :ivar leave_out: those that a default run has today and does not need. :ivar seconds: of a default run.
    :ivar caught: the faults that the chosen scenarios catch.
    :ivar never: the faults that no measured scenario catches.
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
    """Compute the default set from a table.

    A scenario that is not in the table stays in the default set, or out of it; so does one of today's default
    set that costs hardly anything.

    :param every: all scenarios. :param default: the scenarios of a default run today.
    :param always: scenarios that are never left out.
    :param needed: tests (``file.py::test``) that have to find a fault which was not measured. They are not
        left out either.
    """
    costs = seconds_of(table)
    kept = {name for name in default if name in always or costs.get(name, 0.0) < _WORTH_LEAVING_OUT_S}
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
    """What is not in the table: faults of the catalogue in their present state, and scenarios."""

    faults: tuple[str, ...]
    scenarios: tuple[str, ...]


def unmeasured(table: Detection, every: Collection[str], keys: Mapping[str, str]) -> Unmeasured:
    """What the default set needs and the table does not have.

    :param every: all scenarios. One that was skipped counts as not measured.
    :param keys: :attr:`harness.mutation.catalogue.Fault.key` by the name of each fault of the catalogue.
    """
    known = {(fault, one.key) for on in table.qemus.values() for fault, one in on.faults.items()}
    ran = {name for on in table.qemus.values() for name in (*on.scenarios, *on.false_positives)}
    faults = [name for name, key in keys.items() if (name, key) not in known]
    return Unmeasured(tuple(faults), tuple(sorted(set(every) - ran)))


def targets(table: Detection) -> set[Target]:
    """What the default set has to catch: every fault in the table, with the QEMU that has it."""
    return {(qemu, fault) for qemu, known in table.qemus.items() for fault in known.faults}


def catches(table: Detection, among: Collection[str]) -> dict[str, set[Target]]:
    """The faults that each scenario catches, for the cover."""
    found: dict[str, set[Target]] = {name: set() for name in among}
    for qemu, known in table.qemus.items():
        for fault in known.faults:
            for name in known.catches(fault) & set(among):
                found[name].add((qemu, fault))
    return found


def seconds_of(table: Detection) -> dict[str, float]:
    """What each scenario costs in a cover: its seconds on a QEMU without a fault.

    Of several QEMUs, the slowest counts.
    """
    costs: dict[str, float] = {}
    for known in table.qemus.values():
        for name, seconds in known.scenarios.items():
            costs[name] = max(seconds, costs.get(name, 0.0))
    return costs


def predicted_s(table: Detection, scenarios: Collection[str]) -> float:
    """The seconds that a default set will take, as many scenarios at once as in the fault-free runs."""
    costs = seconds_of(table)
    at_once = min((known.at_once for known in table.qemus.values()), default=1.0)
    return sum(costs.get(name, 0.0) for name in scenarios) / at_once


def cheapest_cover(
    finds: Mapping[str, Collection[Target]], costs: Mapping[str, float], kept: Collection[str]
) -> set[str]:
    """The ``kept`` scenarios, and the cheapest others that together catch every fault in ``finds``.

    :param finds: the faults that each scenario catches. :param costs: seconds of each scenario.
    """
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
