"""Runs the scenarios against each fault, and against QEMUs without one (controls), and judges the results."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path

from harness.errors import SetupError
from harness.guarantees import BY_FILE
from harness.mutation import runner
from harness.mutation.catalogue import Fault
from harness.mutation.qtests import QtestResult
from harness.reaper import RunFolder
from harness.report.host_errors import is_of_the_host
from harness.report.summary import Outcome, Run

Report = Callable[[str], None]
#: Runs QEMU's own tests against the fault of that name.
RunQtests = Callable[[str], QtestResult]
#: The verdicts on a fault. Only the first is good.
CAUGHT, ELSEWHERE, MISSED = "caught", "caught by another guarantee", "missed"
#: The verdicts on a control: a scenario failed although there is no fault; or none did.
FALSE_POSITIVE, PASSED = "false positive", "passed"
#: Neither: pytest gave no result; or every scenario was skipped or is a known bug, so that none could fail;
#: or the host or the harness failed.
NO_RESULT = "no result"
#: The outcomes that are failures. A known bug is not one.
BAD = (Outcome.FAILED, Outcome.FIXED)
#: A name in pytest's ``-k``.
_WORD = re.compile(r"[\w:+.\-\[\]\\/]+")


@dataclass(frozen=True)
class Failure:
    """A scenario that failed: its file, its name with parameters, and the first line of the failure."""

    file: str
    name: str
    why: str


@dataclass(frozen=True)
class Finding:
    """The result of one fault, or of one control (the scenarios against a QEMU without a fault).

    :ivar fault: its name; empty for a control. :ivar guarantee: the guarantee that it breaks.
    :ivar qemu: the QEMU; of a fault, the one that it was put into.
    :ivar ran: the number of tests that ran. Skipped ones and known bugs do not count.
    :ivar failures: the tests that failed.
    :ivar real: whether the fault undoes a fix of QEMU's history.
    :ivar qtests: the result of QEMU's own tests, where they ran.
    :ivar problem: why there is no result: pytest gave none, or the host failed; empty when there is one.
    """

    fault: str
    guarantee: str
    qemu: str
    ran: int
    failures: tuple[Failure, ...]
    real: bool = False
    qtests: QtestResult | None = None
    problem: str = ""

    @property
    def name(self) -> str:
        """The name of a fault or a control in a printed table."""
        return self.fault or f"(none, {self.qemu})"

    @property
    def verdict(self) -> str:
        """The verdict on a fault or a control: one of those above."""
        if not self.ran:
            return NO_RESULT
        if not self.fault:
            return FALSE_POSITIVE if self.failures else PASSED
        if not self.failures:
            return MISSED
        return CAUGHT if self.guarantee in self.guarantees else ELSEWHERE

    @property
    def good(self) -> bool:
        """Whether a fault was caught by its guarantee, or a control passed."""
        return self.verdict in (CAUGHT, PASSED)

    @property
    def detail(self) -> str:
        """What explains the verdict: why there is no result, or the failures."""
        if not self.ran:
            return self.problem or "each scenario was skipped or is a known bug"
        return "; ".join(f"{one.name}: {one.why}" for one in self.failures)

    @property
    def guarantees(self) -> tuple[str, ...]:
        """The guarantees whose scenarios failed with a fault."""
        return tuple(dict.fromkeys(BY_FILE[failure.file] for failure in self.failures))


@dataclass(frozen=True)
class Controls:
    """The QEMUs without a fault that the scenarios are run against, and the number of runs of each."""

    qemus: tuple[str, ...]
    times: int = 1


def judge(fault: str, guarantee: str, qemu: str, run: Run, *, real: bool = False) -> Finding:
    """Judge a run of scenarios. An error of the host or the harness does not show that a fault was found."""
    judged = [one for one in run.results if one.outcome not in (Outcome.SKIPPED, Outcome.KNOWN)]
    bad = [one for one in judged if one.outcome in BAD]
    of_host = [one for one in bad if fault and is_of_the_host(one.why)]
    failures = [failure(runner.short(one.scenario or one.test), one.why) for one in bad if one not in of_host]
    if of_host and not failures:
        return Finding(fault, guarantee, qemu, 0, (), real, problem=of_host[0].why)
    return Finding(fault, guarantee, qemu, len(judged), tuple(failures), real)


def failure(scenario: str, why: str) -> Failure:
    """Make the :class:`Failure` of a scenario (``file.py::test[parameters]``) that found a fault."""
    file, _, test = scenario.partition("::")
    return Failure(file, test, why or "no reason given")


def run_all(
    faults: Mapping[str, Fault],
    flavour: str,
    artifacts: Path,
    *,
    at_once: int,
    report: Report,
    controls: Controls,
    run_qtests: RunQtests | None = None,
    by_default: Mapping[str, Sequence[str]] | None = None,
) -> Iterator[Finding]:
    """Run the scenarios of every fault, then the controls. Each finding is yielded when it is complete.

    A control runs the scenarios of all ``faults`` with as many workers as the machine has room for, because
    nothing else runs by then. A run of pytest without a result is a finding too, and the others go on.

    :param flavour: a QEMU that is built from source, such as ``7.2-src``.
    :param at_once: the number of faults that run at the same time.
    :param report: is given a line for each finding.
    :param by_default: run what a default run has, as a default run does: of the scenarios that have to find a
        fault, and of these further ones by the name of the fault.
    """
    run = RunFolder()

    def scenarios_of(name: str, fault: Fault) -> list[str]:
        if by_default is None:
            return _thorough([fault])
        return _selection([*fault.caught_by, *by_default.get(name, ())])

    def run_fault(name: str, fault: Fault) -> Finding:
        selection, folder = [*scenarios_of(name, fault), "--maxfail=1"], artifacts / name
        try:
            found = runner.run_scenarios(f"{flavour}+{name}", selection, folder, run, alone=False)
        except SetupError as error:
            return Finding(name, fault.guarantee, flavour, 0, (), bool(fault.takes_back), problem=str(error))
        judged = judge(name, fault.guarantee, flavour, found, real=bool(fault.takes_back))
        return judged if run_qtests is None else replace(judged, qtests=run_qtests(name))

    of_controls = _thorough(faults.values()) if by_default is None else runner.paths([""])

    def run_control(qemu: str, number: int) -> Finding:
        folder = artifacts / "control" / f"{Path(qemu).name}-{number}"
        try:
            found = runner.run_scenarios(qemu, of_controls, folder, run, alone=True)
        except SetupError as error:
            return Finding("", "", qemu, 0, (), problem=str(error))
        return judge("", "", qemu, found)

    with ThreadPoolExecutor(at_once) as pool:
        try:
            jobs = [pool.submit(run_fault, name, fault) for name, fault in faults.items()]
            for job in as_completed(jobs):
                found = job.result()
                report(_line(found))
                yield found
            for qemu in controls.qemus:
                for number in range(1, controls.times + 1):
                    found = run_control(qemu, number)
                    report(f"no fault, QEMU {qemu}, {number} of {controls.times}: {_verdict(found)}")
                    yield found
        finally:
            # After an interrupt some faults still run. Closing the run folder ends their processes, so that
            # the threads of the pool end too.
            pool.shutdown(wait=False, cancel_futures=True)
            run.close()


def _line(found: Finding) -> str:
    qtests = f"; QEMU's own tests: {found.qtests.verdict}" if found.qtests else ""
    return f"{found.fault}: {_verdict(found)}{qtests}"


def _verdict(found: Finding) -> str:
    return f"{found.verdict} ({found.detail})" if found.verdict == NO_RESULT else found.verdict


def _thorough(faults: Iterable[Fault]) -> list[str]:
    """pytest's arguments for the scenarios that have to find ``faults``, on the machine types of these."""
    chosen = list(faults)
    scenarios = dict.fromkeys(scenario for fault in chosen for scenario in fault.caught_by)
    machines = dict.fromkeys(machine for fault in chosen for machine in fault.machines)
    options = [word for machine in machines for word in ("--machine", machine)]
    return [*_selection(list(scenarios)), *options, "--thorough"]


def _selection(scenarios: Sequence[str]) -> list[str]:
    files = runner.paths(dict.fromkeys(scenario.partition("::")[0] for scenario in scenarios))
    return [*files, "-k", expression(scenarios)]


def expression(scenarios: Sequence[str]) -> str:
    """pytest's ``-k`` for scenarios written ``file.py::test`` or ``file.py::test[parameter]``.

    A name in ``-k`` has no spaces, and the operators are no names (``Scanner`` in pytest's
    ``mark/expression.py``). A parameter such as ``two flushes`` is therefore written as its words.
    """
    terms = []
    for scenario in scenarios:
        test, _, parameter = scenario.partition("::")[2].rstrip("]").partition("[")
        words = [word for word in _WORD.findall(parameter) if word not in ("and", "or", "not")]
        terms.append(f"({' and '.join([test, *words])})" if words else test)
    return " or ".join(terms)
