"""Fills the table: every chosen fault against every chosen scenario, over as many sittings as it takes.

What the table knows, in the state that fault and scenarios are in now, is not run again; what is found is
written at once. So a run that is interrupted goes on where it was, with the fault that it was at.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.deadline import Deadline
from harness.errors import SetupError
from harness.guarantees import BY_FILE
from harness.mutation import runner, table
from harness.mutation.catalogue import Fault
from harness.mutation.table import Detection, Measured, OnQemu
from harness.mutation.verdicts import BAD, Finding, Report, failure
from harness.reaper import RunFolder
from harness.report.summary import Outcome, Result, Run

#: How much of the scenarios is run against a fault: the tests that have to find it; with the files of the
#: guarantee that it breaks; all.
SCOPES = ("caught-by", "guarantee", "all")
#: No time limit: this deadline is a clock.
_NEVER = float("inf")


def units(fault: Fault, scope: str, files: Iterable[str]) -> tuple[str, ...]:
    """The files (``file.py``) and tests (``file.py::test``) that a scope means, of the ``files`` there are.

    A test is one with all its parameters and machine types.
    """
    known = sorted(files)
    if scope == "all":
        return tuple(known)
    own = [name for name in known if scope == "guarantee" and BY_FILE[name] == fault.guarantee]
    tests = dict.fromkeys(scenario.partition("[")[0] for scenario in fault.caught_by)
    return (*own, *(test for test in tests if test.partition("::")[0] not in own))


@dataclass(frozen=True)
class Measurement:
    """One table, one QEMU that is built from source, and the state of the scenarios now."""

    data: Detection
    path: Path
    flavour: str
    artifacts: Path
    report: Report
    hashes: Mapping[str, str]

    @property
    def known(self) -> OnQemu:
        """What the table has of that QEMU."""
        return self.data.on(self.flavour)

    def measure(self, faults: Mapping[str, Fault], scope: str) -> Iterator[Finding]:
        """The QEMU without a fault, then each fault; what the table knows is not run again.

        :raises SetupError: when the run without a fault gives no result; at the end, when one with a fault
            gave none.
        """
        wanted = {name: units(fault, scope, self.hashes) for name, fault in faults.items()}
        silent: list[str] = []
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
                    silent.append(name)
        finally:
            run.close()
        if silent:
            raise SetupError(f"no result, and nothing in the table, of: {', '.join(silent)}")

    def _control(self, run: RunFolder) -> None:
        """Every scenario, whatever the scope: the default set depends on what each of them takes."""
        missing = self._missing(sorted(self.hashes), self.known.of)
        if not missing:
            return
        self.report(f"no fault: running {len(missing)} files of scenarios …")
        clock = Deadline.after(_NEVER)
        judged = _judged(self._run(self.flavour, missing, self.artifacts / "control", run))
        took_s, known, bad = clock.elapsed_s, self.known, _failed(judged)
        good = {name: round(one.seconds, 1) for name, one in judged.items() if name not in bad}
        known.scenarios = table.replace(known.scenarios, missing, good)
        known.alarms = table.replace(known.alarms, missing, {name: one.why for name, one in bad.items()})
        known.of = table.replace(known.of, missing, self._now(missing))
        known.at_once = round(max(1.0, sum(one.seconds for one in judged.values()) / took_s), 1)
        table.write(self.data, self.path)
        for name, one in bad.items():
            self.report(f"no fault: alarm: {name}: {one.why}")

    def _fault(self, name: str, fault: Fault, wanted: Sequence[str], where: str, run: RunFolder) -> Finding:
        measured = self.known.faults.get(name)
        if measured is None or measured.key != fault.key:
            measured = Measured(key=fault.key)
        missing = self._missing(wanted, measured.of)
        if missing:
            judged = _judged(self._run(f"{self.flavour}+{name}", missing, self.artifacts / name, run))
            failed = {scenario: round(one.seconds, 1) for scenario, one in _failed(judged).items()}
            measured.failed = table.replace(measured.failed, missing, failed)
            measured.of = table.replace(measured.of, missing, self._now(missing))
            self.known.faults[name] = measured
            table.write(self.data, self.path)
        found = self._finding(name, fault, measured)
        self.report(f"{where}: {found.verdict}, {len(found.failures)} scenarios fail")
        return found

    def _finding(self, name: str, fault: Fault, measured: Measured) -> Finding:
        """What the table says of a fault."""
        caught = sorted(self.known.catches(name))
        failures = [failure(one, f"failed after {measured.failed[one]} s") for one in caught]
        ran = sum(table.is_of(scenario, measured.of) for scenario in self.known.scenarios)
        return Finding(name, fault.guarantee, self.flavour, ran, tuple(failures), bool(fault.takes_back))

    def _without_a_fault(self) -> Finding:
        """What the table says of the run without a fault."""
        failures = [failure(name, why) for name, why in sorted(self.known.alarms.items())]
        ran = len(self.known.scenarios) + len(failures)
        return Finding("", "", self.flavour, ran, tuple(failures))

    def _missing(self, wanted: Iterable[str], measured: Mapping[str, str]) -> list[str]:
        return [
            unit for unit in wanted if not table.covers(measured, unit, self.hashes[unit.partition("::")[0]])
        ]

    def _now(self, measured: Iterable[str]) -> dict[str, str]:
        return {unit: self.hashes[unit.partition("::")[0]] for unit in measured}

    def _run(self, qemu: str, of: Sequence[str], artifacts: Path, run: RunFolder) -> Run:
        selection = [*runner.paths(of), "--thorough"]
        return runner.run_scenarios(qemu, selection, artifacts, run, alone=True)


def _judged(run: Run) -> dict[str, Result]:
    """What was not skipped, by the scenario's name."""
    found = {runner.short(one.scenario or one.test): one for one in run.results}
    return {name: one for name, one in found.items() if one.outcome is not Outcome.SKIPPED}


def _failed(judged: Mapping[str, Result]) -> dict[str, Result]:
    return {name: one for name, one in judged.items() if one.outcome in BAD}
