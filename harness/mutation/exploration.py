"""Explores QEMUs with a fault: whether a search that knows no scenario finds what is wrong.

Programs of a guest run on a machine type of the fault, those of the raw client on pc. Each fault is explored
until the first new failure, or until the time is up. A *control* explores the QEMU without a fault for as
long: what it finds is a false positive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.errors import SetupError
from harness.explore.explore import Explorer, KnownBugs, Settings
from harness.explore.fresh_guests import FreshGuests, alphabets, cell_of
from harness.explore.generate import Space
from harness.explore.known import bug_of, programs_of_bugs
from harness.explore.program import AlphabetName, ProgramCell
from harness.explore.workers import Workers
from harness.mutation.catalogue import Fault

#: How many faults a sample has.
SAMPLE = 30
#: The only machine type whose devices the raw client can drive.
_OF_RAW = "pc"


@dataclass(frozen=True)
class Explored:
    """What exploring one QEMU came to.

    :ivar fault: its name; empty for a control. :ivar guarantee: the guarantee that it breaks.
    :ivar seconds: until the failure was found, or all that were spent.
    :ivar programs: how many passed or failed; without any, nothing is known.
    :ivar failure: the failure; empty when none was found. :ivar program: the program that showed it.
    :ivar found_guarantee: the guarantee that the failure breaks.
    :ivar problem: why the search ended early; empty when it did not.
    """

    fault: str
    guarantee: str
    qemu: str
    machine: str
    seconds: float
    programs: int
    failure: str = ""
    program: str = ""
    found_guarantee: str = ""
    problem: str = ""

    @property
    def good(self) -> bool:
        """A fault has to be found. A control has to run to its end, and must not find anything."""
        if self.fault:
            return bool(self.failure)
        return bool(self.programs) and not (self.failure or self.problem)

    def as_json(self) -> dict[str, Any]:
        """What ``harness faults run --by exploration --json`` prints of a fault."""
        return {**asdict(self), "good": self.good}


def sample(names: Sequence[str]) -> tuple[str, ...]:
    """About :data:`SAMPLE` faults to explore, at equal distances by name."""
    every = max(1, round(len(names) / SAMPLE))
    return tuple(sorted(names)[::every])


def explore_all(
    faults: Mapping[str, Fault],
    flavour: str,
    into: Path,
    *,
    seconds: float,
    workers: int,
    report: Callable[[str], None],
) -> Iterator[Explored]:
    """Explore each fault, then the QEMU without one; each result is yielded at once.

    :param flavour: a QEMU that is built from source, such as ``7.2-src``.
    :param seconds: for each. :param into: the folder of the findings.
    """
    for number, (name, fault) in enumerate(faults.items(), 1):
        cell = ProgramCell(qemu=f"{flavour}+{name}", machine=fault.machines[0])
        found = _explore(name, fault.guarantee, cell, into / name, seconds, workers)
        what = f"found after {found.seconds:.0f} s: {found.failure}" if found.failure else "not found"
        what += f" ({found.problem})" if found.problem else ""
        report(f"{name} ({number} of {len(faults)}): {what}")
        yield found
    control = _explore("", "", ProgramCell(qemu=flavour), into / "control", seconds, workers)
    what = control.failure or control.problem or "nothing was found"
    report(f"no fault: {what} ({control.programs} programs)")
    yield control


def _explore(
    fault: str, guarantee: str, names: ProgramCell, into: Path, seconds: float, workers: int
) -> Explored:
    cell, of_raw = cell_of(names), names.model_copy(update={"machine": _OF_RAW})
    spaces = {
        name: Space(name, alphabet, of_raw if name is AlphabetName.RAW else names)
        for name, alphabet in alphabets().items()
    }
    settings = Settings(known_bugs=KnownBugs.AVOID, alphabets=tuple(spaces), qemu=names.qemu)
    with Workers(FreshGuests(into / "records"), workers) as attempts:
        explorer = Explorer(
            spaces,
            settings,
            attempts,
            into,
            bug_of=bug_of(cell),
            qemu=cell.capabilities.version_text,
            minimise_s=0,
        )
        explorer.begin()
        for _, program in programs_of_bugs(cell):
            explorer.avoid(program)
        problem = ""
        try:
            explorer.run(seconds, enough=lambda: bool(explorer.new))
        except SetupError as exc:  # The other faults are explored nevertheless.
            problem = exc.message
    programs = explorer.results
    spent_s = sum(tally.seconds for tally in explorer.tallies.values())
    if not explorer.new:
        return Explored(fault, guarantee, names.qemu, names.machine, spent_s, programs, problem=problem)
    first = explorer.new[0].finding
    return Explored(
        fault,
        guarantee,
        names.qemu,
        names.machine,
        spent_s,
        programs,
        f"{first.failure.checker}: {first.failure.message}",
        str(first.program),
        first.failure.guarantee,
        problem,
    )
