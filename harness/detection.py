"""Do the scenarios find what is wrong? Each fault's scenarios, run against a QEMU that has it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from xml.etree import ElementTree

from harness.deadline import Deadline, wait_until
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
#: Seconds without a word after which a run of pytest hangs. It has one for each test that ends, and one
#: before whatever it provisions; the longest of both (a leak hunt, QEMU's build) take some minutes on a busy
#: machine.
SILENCE_S = 1800.0
#: Seconds for pytest to end its guests when it is interrupted.
_END_S = 60.0


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
    done = run_pytest(
        [*argv, "--artifacts", str(artifacts), *options],
        folder.parent,
        what=f"the scenarios against QEMU {qemu}",
        environment={**os.environ, **run.environment()},
    )
    if done.returncode not in _RESULTS or not report.is_file():
        said = (done.stderr.strip() or done.stdout.strip()).splitlines() or ["nothing"]
        raise SetupError(
            f"the scenarios against QEMU {qemu} gave no result (pytest exited with {done.returncode}): "
            f"{said[-1]}",
            details="\n".join(said[-20:]),
        )
    return read(report.read_text())


def run_pytest(
    argv: list[str],
    folder: Path,
    *,
    what: str,
    environment: Mapping[str, str] | None = None,
    show: IO[bytes] | None = None,
    silence_s: float = SILENCE_S,
) -> subprocess.CompletedProcess[str]:
    """Run pytest in ``folder``, in a process group of its own; end it when it says nothing for too long.

    How long a whole run takes depends on the scenarios, the machine and what else runs there; how long it is
    silent does not.

    :param what: is run, for the error. :param show: where its output goes as well, as it comes.
    :param silence_s: seconds.
    :raises SetupError: when it was silent for so long; nothing of it is left then.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            argv,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
        heard = _Heard((out, err), show)
        silent = Deadline.after(silence_s)

        def watch() -> None:
            nonlocal silent
            if heard.more():
                silent = Deadline.after(silence_s)
            if silent.expired:
                text = heard.text(out) + heard.text(err)
                raise SetupError(
                    f"{what}: pytest said nothing for {silence_s:g} s, and was ended",
                    details="\n".join(text.splitlines()[-20:]),
                )

        try:
            forever = float("inf")
            wait_until(
                lambda: process.poll() is not None, what=what, timeout_s=forever, watch=watch, interval_s=0.1
            )
        finally:
            _end(process)
        heard.more()
        return subprocess.CompletedProcess(argv, process.returncode, heard.text(out), heard.text(err))


class _Heard:
    """What a process has written to its files."""

    def __init__(self, files: tuple[IO[bytes], ...], show: IO[bytes] | None) -> None:
        self._sizes, self._show = dict.fromkeys(files, 0), show

    def more(self) -> bool:
        """Whether there is more than last time; it is shown."""
        grown = False
        for file, before in self._sizes.items():
            # At a place of its own: the process writes where the file's one position is.
            said = os.pread(file.fileno(), os.fstat(file.fileno()).st_size - before, before)
            self._sizes[file] += len(said)
            grown = grown or bool(said)
            if said and self._show is not None:
                self._show.write(said)
                self._show.flush()
        return grown

    def text(self, file: IO[bytes]) -> str:
        """All of it."""
        return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode("utf-8", "replace")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process that still runs, and its group: as with Ctrl-C at first, so that it ends its guests."""
    for number in (signal.SIGINT, signal.SIGKILL):
        if process.poll() is not None and number != signal.SIGKILL:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_S)


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
