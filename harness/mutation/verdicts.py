"""What the scenarios, and QEMU's own tests, say of each fault; and the scenarios of a QEMU without one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path

from harness.guarantees import BY_FILE
from harness.mutation import runner
from harness.mutation.catalogue import Fault
from harness.mutation.peers import PeerFinding
from harness.reaper import RunFolder
from harness.report.summary import Outcome, Run

Report = Callable[[str], None]
#: Says what QEMU's own tests make of the fault of that name.
Beside = Callable[[str], PeerFinding]
#: The verdicts on a fault; the first is what is wanted.
CAUGHT, ELSEWHERE, MISSED, ALARM, SILENT = (
    "caught",
    "caught by another guarantee",
    "missed",
    "alarm",
    "silent",
)
#: What makes a run red. A known bug does not.
BAD = (Outcome.FAILED, Outcome.FIXED)


@dataclass(frozen=True)
class Failure:
    """A scenario that failed: its file, its name with parameters, and the first line of why."""

    file: str
    name: str
    why: str


@dataclass(frozen=True)
class Finding:
    """What came of one fault, or of one control: the scenarios against a QEMU without a fault.

    :ivar fault: its name; empty for a control.
    :ivar qemu: the QEMU; of a fault, the one that it was put into.
    :ivar real: the fault takes back a fix of QEMU's history.
    :ivar ran: how many tests ran, skipped ones and known bugs not counted. :ivar failures: those that failed.
    :ivar beside: what QEMU's own tests say, where they ran.
    """

    fault: str
    guarantee: str
    qemu: str
    ran: int
    failures: tuple[Failure, ...]
    real: bool = False
    beside: PeerFinding | None = None

    @property
    def name(self) -> str:
        """What a table calls it."""
        return self.fault or f"(none, {self.qemu})"

    @property
    def verdict(self) -> str:
        """What that says of the scenarios: one of the words above."""
        if not self.fault:
            return ALARM if self.failures else SILENT
        if not self.failures:
            return MISSED
        return CAUGHT if self.guarantee in self.guarantees else ELSEWHERE

    @property
    def guarantees(self) -> tuple[str, ...]:
        """The guarantees whose scenarios failed."""
        return tuple(dict.fromkeys(BY_FILE[failure.file] for failure in self.failures))


@dataclass(frozen=True)
class Controls:
    """Which QEMUs without a fault the scenarios are run against, and how often each."""

    qemus: tuple[str, ...]
    times: int = 1


def judge(fault: str, guarantee: str, qemu: str, run: Run, *, real: bool = False) -> Finding:
    """What a run of scenarios says."""
    judged = [one for one in run.results if one.outcome not in (Outcome.SKIPPED, Outcome.KNOWN)]
    bad = [one for one in judged if one.outcome in BAD]
    failures = [failure(runner.short(one.scenario or one.test), one.why) for one in bad]
    return Finding(fault, guarantee, qemu, len(judged), tuple(failures), real)


def failure(scenario: str, why: str) -> Failure:
    """That a scenario (``file.py::test[parameters]``) failed."""
    file, _, test = scenario.partition("::")
    return Failure(file, test, why or "no reason given")


def look_for_all(
    faults: Mapping[str, Fault],
    flavour: str,
    artifacts: Path,
    *,
    at_once: int,
    report: Report,
    controls: Controls,
    beside: Beside | None = None,
) -> Iterator[Finding]:
    """Every fault, ``at_once`` of them at the same time, each as it is found; then the controls.

    A control runs the scenarios of all ``faults``, with as many workers as there is room for: nothing else
    runs by then.

    :param flavour: a QEMU that is built from source, such as ``7.2-src``.
    """
    run = RunFolder()

    def look(name: str, fault: Fault) -> Finding:
        selection, folder = [*_of([fault]), "--maxfail=1"], artifacts / name
        found = runner.run_scenarios(f"{flavour}+{name}", selection, folder, run, alone=False)
        judged = judge(name, fault.guarantee, flavour, found, real=bool(fault.takes_back))
        return judged if beside is None else replace(judged, beside=beside(name))

    with ThreadPoolExecutor(at_once) as pool:
        try:
            jobs = [pool.submit(look, name, fault) for name, fault in faults.items()]
            for job in as_completed(jobs):
                found = job.result()
                report(_told(found))
                yield found
            for qemu in controls.qemus:
                for number in range(1, controls.times + 1):
                    folder = artifacts / "control" / f"{Path(qemu).name}-{number}"
                    ran = runner.run_scenarios(qemu, _of(faults.values()), folder, run, alone=True)
                    found = judge("", "", qemu, ran)
                    report(f"no fault, QEMU {qemu}, {number} of {controls.times}: {found.verdict}")
                    yield found
        finally:
            # Given up half-way: what still runs is ended, and so the pool has nothing to wait for.
            pool.shutdown(wait=False, cancel_futures=True)
            run.close()


def _told(found: Finding) -> str:
    beside = f"; QEMU's own tests: {found.beside.verdict}" if found.beside else ""
    return f"{found.fault}: {found.verdict}{beside}"


def _of(faults: Iterable[Fault]) -> list[str]:
    """pytest's arguments for the scenarios that have to find ``faults``, on the machines to look on."""
    chosen = list(faults)
    scenarios = list(dict.fromkeys(scenario for fault in chosen for scenario in fault.caught_by))
    machines = dict.fromkeys(machine for fault in chosen for machine in fault.machines)
    files = runner.paths(dict.fromkeys(scenario.partition("::")[0] for scenario in scenarios))
    options = [word for machine in machines for word in ("--machine", machine)]
    return [*files, "-k", expression(scenarios), *options, "--thorough"]


def expression(scenarios: Sequence[str]) -> str:
    """pytest's ``-k`` for scenarios written ``file.py::test`` or ``file.py::test[parameter]``."""
    terms = []
    for scenario in scenarios:
        test, _, parameter = scenario.partition("::")[2].rstrip("]").partition("[")
        terms.append(f"({test} and {parameter})" if parameter else test)
    return " or ".join(terms)
