"""Do the scenarios find what is wrong? Each fault's scenarios, run against a QEMU that has it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from harness.errors import SetupError, UsageError
from harness.guarantees import BY_FILE
from harness.provision.faults import Fault
from harness.provision.recipes import recipes_folder
from harness.reaper import RunFolder

Report = Callable[[str], None]
#: The verdicts on a fault; the first is what is wanted.
CAUGHT, ELSEWHERE, MISSED, ALARM, SILENT = (
    "caught",
    "caught by another guarantee",
    "missed",
    "alarm",
    "silent",
)
#: pytest's exit codes for "all passed" and "some failed"; anything else is no result.
_RESULTS = (0, 1)


@dataclass(frozen=True)
class Failure:
    """A scenario that failed: its file, its name with parameters, and the first line of why."""

    file: str
    name: str
    why: str


@dataclass(frozen=True)
class Finding:
    """What came of one fault.

    :ivar fault: its name; empty for a QEMU without one.
    :ivar ran: how many tests ran, skipped ones not counted. :ivar failures: those that failed.
    """

    fault: str
    guarantee: str
    ran: int
    failures: tuple[Failure, ...]

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


def scenarios_folder() -> Path:
    """The scenarios of this checkout.

    :raises UsageError: when the harness was installed without them.
    """
    folder = recipes_folder().parent / "scenarios"
    if not folder.is_dir():
        raise UsageError(f"{folder} does not exist: the scenarios are in a checkout of the project")
    return folder


def look_for(name: str, fault: Fault, qemu: str, artifacts: Path, run: RunFolder) -> Finding:
    """Run a fault's scenarios against the QEMU called ``qemu``, until one fails.

    :raises SetupError: when the run gives no result.
    """
    ran, failures = _run(fault.caught_by, fault.machines, qemu, artifacts, run, ("--maxfail=1",))
    return Finding(name, fault.guarantee, ran, failures)


def control(faults: Iterable[Fault], qemu: str, artifacts: Path, run: RunFolder) -> Finding:
    """Run all scenarios of ``faults`` against a QEMU that has none of them."""
    chosen = list(faults)
    scenarios = list(dict.fromkeys(scenario for fault in chosen for scenario in fault.caught_by))
    machines = list(dict.fromkeys(machine for fault in chosen for machine in fault.machines))
    ran, failures = _run(scenarios, machines, qemu, artifacts, run, ())
    return Finding("", "", ran, failures)


def look_for_all(
    faults: Mapping[str, Fault],
    flavour: str,
    artifacts: Path,
    *,
    at_once: int,
    report: Report,
) -> Iterator[Finding]:
    """The control run, then every fault, ``at_once`` of them at the same time; findings in this order.

    :param flavour: a QEMU that is built from source, such as ``7.2-src``.
    """
    run = RunFolder()
    with ThreadPoolExecutor(at_once) as pool:
        controlled = pool.submit(control, faults.values(), flavour, artifacts / "control", run)
        jobs = [
            pool.submit(look_for, name, fault, f"{flavour}+{name}", artifacts / name, run)
            for name, fault in faults.items()
        ]
        try:
            for job in (controlled, *jobs):
                found = job.result()
                report(f"{found.fault or 'no fault'}: {found.verdict}")
                yield found
        finally:
            # Given up half-way: what still runs is ended, and so the pool has nothing to wait for.
            pool.shutdown(wait=False, cancel_futures=True)
            run.close()


def _run(
    scenarios: list[str],
    machines: list[str],
    qemu: str,
    artifacts: Path,
    run: RunFolder,
    options: tuple[str, ...],
) -> tuple[int, tuple[Failure, ...]]:
    folder = scenarios_folder()
    files = dict.fromkeys(str(folder / scenario.partition("::")[0]) for scenario in scenarios)
    report = Path(tempfile.mkdtemp(dir=run.path)) / "junit.xml"
    argv = [sys.executable, "-m", "pytest", *files, "-k", expression(scenarios), "--qemu", qemu]
    argv += [word for machine in machines for word in ("--machine", machine)]
    argv += ["--thorough", "-n", "0", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
    done = subprocess.run(
        [*argv, "--artifacts", str(artifacts), *options],
        cwd=folder.parent,
        env={**os.environ, **run.environment()},
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode not in _RESULTS or not report.is_file():
        said = (done.stderr.strip() or done.stdout.strip()).splitlines() or ["nothing"]
        raise SetupError(
            f"the scenarios against QEMU {qemu} gave no result (pytest exited with {done.returncode}): "
            f"{said[-1]}",
            details="\n".join(said[-20:]),
        )
    return read(report.read_text())


def expression(scenarios: list[str]) -> str:
    """pytest's ``-k`` for scenarios written ``file.py::test`` or ``file.py::test[parameter]``."""
    terms = []
    for scenario in scenarios:
        test, _, parameter = scenario.partition("::")[2].rstrip("]").partition("[")
        terms.append(f"({test} and {parameter})" if parameter else test)
    return " or ".join(terms)


def read(junit: str) -> tuple[int, tuple[Failure, ...]]:
    """How many tests of a JUnit XML report ran, and which of them failed."""
    ran, failures = 0, []
    for case in ElementTree.fromstring(junit).iter("testcase"):
        if case.find("skipped") is not None:
            continue
        ran += 1
        bad = case.find("failure")
        if bad is None:
            bad = case.find("error")
        if bad is not None:
            file = case.get("classname", "").rpartition(".")[2] + ".py"
            why = bad.get("message", "").splitlines() or ["no reason given"]
            failures.append(Failure(file, case.get("name", ""), why[0]))
    return ran, tuple(failures)
