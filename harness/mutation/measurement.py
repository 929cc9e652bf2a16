"""Fills the table: runs the chosen scenarios against each chosen fault, and against no fault.

Each result is written to the table at once. A result that is in the table is measured again only if the fault
or the scenario has changed since. So a run that was interrupted can be started again, and continues.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.deadline import Deadline
from harness.errors import SetupError
from harness.guarantees import BY_FILE
from harness.mutation import detection, runner
from harness.mutation.catalogue import Fault
from harness.mutation.detection import Detection, Measured, OnQemu
from harness.mutation.verdicts import BAD, Finding, Report, failure
from harness.reaper import RunFolder
from harness.report.host_errors import is_of_the_host
from harness.report.summary import Outcome, Result, Run

#: The scenarios that are run against a fault: the tests that have to find it; these, and the files of the
#: guarantee that it breaks; all.
SCOPES = ("caught-by", "guarantee", "all")
#: No limit: the deadline serves as a clock.
_NEVER = float("inf")


def units(fault: Fault, scope: str, files: Iterable[str]) -> tuple[str, ...]:
    """What is measured: the files (``file.py``) and tests (``file.py::test``) of a scope.

    A test stands for all its parameters and machine types.

    :param scope: one of :data:`SCOPES`. :param files: the names of all files of scenarios.
    """
    known = sorted(files)
    if scope == "all":
        return tuple(known)
    own = [name for name in known if scope == "guarantee" and BY_FILE[name] == fault.guarantee]
    tests = dict.fromkeys(scenario.partition("[")[0] for scenario in fault.caught_by)
    return (*own, *(test for test in tests if test.partition("::")[0] not in own))


@dataclass(frozen=True)
class Measurement:
    """Measures faults on one QEMU that is built from source, and writes one table.

    :ivar data: the table. :ivar path: its file. :ivar flavour: the QEMU, such as ``7.2-src``.
    :ivar artifacts: the folder for artefacts. :ivar report: is given lines of progress.
    :ivar hashes: the present hash of each file of scenarios, by its name.
    """

    data: Detection
    path: Path
    flavour: str
    artifacts: Path
    report: Report
    hashes: Mapping[str, str]

    @property
    def known(self) -> OnQemu:
        """The table's entry of the QEMU that is measured."""
        return self.data.on(self.flavour)

    def measure(self, faults: Mapping[str, Fault], scope: str) -> Iterator[Finding]:
        """Measure the QEMU without a fault, then each fault, and yield each finding; this fills the table.

        :raises SetupError: when the run without a fault gives no result; at the end, when the run of a fault
            gave none, or the host failed in it.
        """
        wanted = {name: units(fault, scope, self.hashes) for name, fault in faults.items()}
        failed: list[str] = []
        run = RunFolder()
        try:
            self._control(run)
            yield self._without_a_fault()
            for number, (name, fault) in enumerate(faults.items(), start=1):
                where = f"{name} ({number} of {len(faults)})"
                try:
                    yield self._fault(name, fault, wanted[name], where, run)
                except SetupError as exc:
                    self.report(f"{where}: no result: {exc}")
                    failed.append(name)
        finally:
            run.close()
        if failed:
            raise SetupError(f"no result, so nothing in the table, for: {', '.join(failed)}")

    def _control(self, run: RunFolder) -> None:
        """Measure all scenarios without a fault, in any scope.

        The default set depends on the time of each.
        """
        missing = self._missing(sorted(self.hashes), self.known.of)
        if not missing:
            return
        self.report(f"no fault: running the scenarios of {len(missing)} files …")
        clock = Deadline.after(_NEVER)
        judged = _judged(self._run(self.flavour, missing, self.artifacts / "control", run))
        took_s, known, bad = clock.elapsed_s, self.known, _failed(judged)
        good = {name: round(one.seconds, 1) for name, one in judged.items() if name not in bad}
        kept = detection.replace(known.scenarios, missing, {})
        known.at_once = parallelism(sum(kept.values()), known.at_once, _seconds(judged), took_s)
        known.scenarios = kept | good
        whys = {name: one.why for name, one in bad.items()}
        known.false_positives = detection.replace(known.false_positives, missing, whys)
        known.of = detection.replace(known.of, missing, self._now(missing))
        detection.write(self.data, self.path)
        for name, one in bad.items():
            self.report(f"no fault: false positive: {name}: {one.why}")

    def _fault(self, name: str, fault: Fault, wanted: Sequence[str], where: str, run: RunFolder) -> Finding:
        measured = self.known.faults.get(name)
        if measured is None or measured.key != fault.key:
            measured = Measured(key=fault.key)
        missing = self._missing(wanted, measured.of)
        if missing:
            bad = _failed(_judged(self._run(f"{self.flavour}+{name}", missing, self.artifacts / name, run)))
            _refuse_errors_of_the_host(bad)
            failed = {scenario: round(one.seconds, 1) for scenario, one in bad.items()}
            measured.failed = detection.replace(measured.failed, missing, failed)
            measured.of = detection.replace(measured.of, missing, self._now(missing))
            self.known.faults[name] = measured
            detection.write(self.data, self.path)
        found = self._finding(name, fault, measured)
        self.report(f"{where}: {found.verdict}, {len(found.failures)} scenarios failed")
        return found

    def _finding(self, name: str, fault: Fault, measured: Measured) -> Finding:
        """The finding of a fault that was measured, from the table."""
        caught = sorted(self.known.catches(name))
        failures = [failure(one, f"failed after {measured.failed[one]} s") for one in caught]
        ran = sum(detection.is_of(scenario, measured.of) for scenario in self.known.scenarios)
        return Finding(name, fault.guarantee, self.flavour, ran, tuple(failures), bool(fault.takes_back))

    def _without_a_fault(self) -> Finding:
        """The finding of the measurement without a fault, from the table."""
        failures = [failure(name, why) for name, why in sorted(self.known.false_positives.items())]
        ran = len(self.known.scenarios) + len(failures)
        return Finding("", "", self.flavour, ran, tuple(failures))

    def _missing(self, wanted: Iterable[str], measured: Mapping[str, str]) -> list[str]:
        return [
            unit
            for unit in wanted
            if not detection.covers(measured, unit, self.hashes[unit.partition("::")[0]])
        ]

    def _now(self, measured: Iterable[str]) -> dict[str, str]:
        return {unit: self.hashes[unit.partition("::")[0]] for unit in measured}

    def _run(self, qemu: str, of: Sequence[str], artifacts: Path, run: RunFolder) -> Run:
        selection = [*runner.paths(of), "--thorough"]
        return runner.run_scenarios(qemu, selection, artifacts, run, alone=True)


def parallelism(kept_s: float, kept_at_once: float, found_s: float, took_s: float) -> float:
    """How many scenarios ran at the same time, on average, over an earlier run and one of further scenarios.

    A run of a few files has fewer scenarios than workers, so by itself it says little.

    :param kept_s: the scenarios' seconds that are kept of the earlier run, ``kept_at_once`` at the same time.
    :param found_s: the seconds of the scenarios that ran now. :param took_s: what all of them took.
    """
    return round(max(1.0, (kept_s + found_s) / (kept_s / kept_at_once + took_s)), 1)


def _refuse_errors_of_the_host(bad: Mapping[str, Result]) -> None:
    """:raises SetupError: when a scenario failed, and not because of the fault."""
    for scenario, one in bad.items():
        if is_of_the_host(one.why):
            raise SetupError(f"{scenario}: {one.why}")


def _seconds(judged: Mapping[str, Result]) -> float:
    return sum(one.seconds for one in judged.values())


def _judged(run: Run) -> dict[str, Result]:
    """The results of a measurement that are not skips, by the scenario's name."""
    found = {runner.short(one.scenario or one.test): one for one in run.results}
    return {name: one for name, one in found.items() if one.outcome is not Outcome.SKIPPED}


def _failed(judged: Mapping[str, Result]) -> dict[str, Result]:
    return {name: one for name, one in judged.items() if one.outcome in BAD}
