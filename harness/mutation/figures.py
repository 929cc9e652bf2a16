"""What the findings come to, in numbers: of all faults, of the real ones, and of those that were planted."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from harness.mutation import peers
from harness.mutation.table import Detection
from harness.mutation.verdicts import CAUGHT, MISSED, Finding


@dataclass(frozen=True)
class Figures:
    """How many faults were caught.

    :ivar of: which faults. :ivar faults: how many. :ivar caught: by any scenario.
    :ivar by_guarantee: by one of the guarantee that the fault breaks.
    :ivar in_table: how many the table knows well enough to say whether a default run catches them.
    :ivar by_default: how many of those it does.
    :ivar beside: how many QEMU's own tests were run on. :ivar by_peers: how many of those they caught.
    """

    of: str
    faults: int
    caught: int
    by_guarantee: int
    in_table: int
    by_default: int
    beside: int
    by_peers: int


def by_default(table: Detection, default: Collection[str], qemu: str, fault: str) -> bool | None:
    """Whether a default run catches a fault; ``None`` when the table cannot know.

    It can when a scenario of the default run is known to fail, or all of them that run on that QEMU were
    measured with the fault.
    """
    known = table.qemus.get(qemu)
    measured = known.faults.get(fault) if known else None
    if known is None or measured is None:
        return None
    if known.catches(fault) & set(default):
        return True
    return False if known.has_all(default, fault) else None


def figures(findings: Iterable[Finding], table: Detection, default: Collection[str]) -> list[Figures]:
    """The numbers: of all faults, and, where there are both, of the real and of the planted ones."""
    found = [one for one in findings if one.fault]
    kinds = {"real": [one for one in found if one.real], "planted": [one for one in found if not one.real]}
    groups = {"all": found} | (kinds if all(kinds.values()) else {})
    return [_count(name, group, table, default) for name, group in groups.items()]


def _count(name: str, found: Collection[Finding], table: Detection, default: Collection[str]) -> Figures:
    told = [by_default(table, default, one.qemu, one.fault) for one in found]
    beside = [one.beside for one in found if one.beside and one.beside.verdict != peers.NOT_RUN]
    return Figures(
        of=name,
        faults=len(found),
        caught=sum(one.verdict != MISSED for one in found),
        by_guarantee=sum(one.verdict == CAUGHT for one in found),
        in_table=sum(one is not None for one in told),
        by_default=sum(one is True for one in told),
        beside=len(beside),
        by_peers=sum(one.verdict == peers.CAUGHT for one in beside),
    )
