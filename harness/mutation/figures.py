"""Counts how many faults were caught: of all, of the real ones, and of the planted ones."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from harness.mutation import qtests
from harness.mutation.detection import Detection
from harness.mutation.verdicts import CAUGHT, ELSEWHERE, Finding


@dataclass(frozen=True)
class Figures:
    """How many faults were caught.

    :ivar of: which faults: ``all``, ``real`` or ``planted``. :ivar faults: their number.
    :ivar caught: by any scenario. :ivar by_guarantee: by a scenario of the guarantee that the fault breaks.
    :ivar in_table: the faults for which the table says whether a default run catches them.
    :ivar by_default: those of them that a default run catches.
    :ivar with_qtests: the faults that QEMU's own tests were run against.
    :ivar by_qtests: those of them that QEMU's own tests caught.
    """

    of: str
    faults: int
    caught: int
    by_guarantee: int
    in_table: int
    by_default: int
    with_qtests: int
    by_qtests: int


def by_default(table: Detection, default: Collection[str], qemu: str, fault: str) -> bool | None:
    """Whether a default run catches a fault, for the figures; ``None`` when the table does not say.

    The table says it when a scenario of the default run failed, or when all its scenarios that run on that
    QEMU were measured with the fault.
    """
    known = table.qemus.get(qemu)
    measured = known.faults.get(fault) if known else None
    if known is None or measured is None:
        return None
    if known.catches(fault) & set(default):
        return True
    return False if known.has_all(default, fault) else None


def figures(findings: Iterable[Finding], table: Detection, default: Collection[str]) -> list[Figures]:
    """Count all faults and, where there are both kinds, the real and the planted ones."""
    found = [one for one in findings if one.fault]
    kinds = {"real": [one for one in found if one.real], "planted": [one for one in found if not one.real]}
    groups = {"all": found} | (kinds if all(kinds.values()) else {})
    return [_count(name, group, table, default) for name, group in groups.items()]


def _count(name: str, found: Collection[Finding], table: Detection, default: Collection[str]) -> Figures:
    known = [by_default(table, default, one.qemu, one.fault) for one in found]
    ran = [one.qtests for one in found if one.qtests and one.qtests.verdict != qtests.NOT_RUN]
    return Figures(
        of=name,
        faults=len(found),
        caught=sum(one.verdict in (CAUGHT, ELSEWHERE) for one in found),
        by_guarantee=sum(one.verdict == CAUGHT for one in found),
        in_table=sum(one is not None for one in known),
        by_default=sum(one is True for one in known),
        with_qtests=len(ran),
        by_qtests=sum(one.verdict == qtests.CAUGHT for one in ran),
    )
