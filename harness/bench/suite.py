"""Times a whole run of the scenarios, and measures Python's share of its processor time."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from harness.deadline import Deadline
from harness.errors import SetupError
from harness.layout import pytest_command, pytest_folder
from harness.report.pytest_run import SILENCE_S, run_pytest

#: Seconds between two samples of the processes. What a process uses after its last sample is not seen.
_SAMPLE_EVERY_S = 0.25


@dataclass(frozen=True)
class SuiteRun:
    """One run: its duration, and the processor time of all processes and of Python's, in seconds."""

    workers: int
    wall_s: float
    cpu_s: float
    python_s: float

    @property
    def python_share(self) -> float:
        """Python's share of the processor time of the suite, 0 to 1."""
        return self.python_s / self.cpu_s if self.cpu_s else 0.0


def run_suite(
    folder: Path, workers: int, options: Sequence[str], log: Path, *, silence_s: float = SILENCE_S
) -> SuiteRun:
    """Time the suite: run the scenarios in ``folder`` with pytest and ``options``, as a user would.

    :param log: the file for pytest's output. :param silence_s: the longest time without output, in seconds.
    :raises SetupError: when a scenario failed or none ran, because the time of such a run means nothing; when
        pytest printed nothing for ``silence_s``.
    """
    argv = [*pytest_command(), str(folder), "-n", str(workers), "-p", "no:cacheprovider"]
    before, clock, python = _reaped_s(), Deadline.after(0), _PythonTime()
    with log.open("wb") as output:
        done = run_pytest(
            [*argv, *options],
            pytest_folder(folder),
            what=f"the scenarios with -n {workers}",
            show=output,
            silence_s=silence_s,
            observe=python.sample,
            interval_s=_SAMPLE_EVERY_S,
        )
    wall_s = clock.elapsed_s
    if done.returncode != 0:
        last = ((done.stderr.strip() or done.stdout.strip()).splitlines() or ["no output"])[-1]
        raise SetupError(f"with -n {workers}, pytest exited with {done.returncode}: {last} (log: {log})")
    return SuiteRun(workers, wall_s, _reaped_s() - before, python.total_s)


def _reaped_s() -> float:
    """Processor seconds of all children of the timed suite that have ended, and of their children.

    Source: ``man 2 getrusage``.
    """
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@dataclass
class _PythonTime:
    """Samples the processor time of the Python processes of a run."""

    by_pid: dict[int, float] = field(default_factory=dict)

    @property
    def total_s(self) -> float:
        """Processor seconds of all Python processes of the suite, by the last sample of each."""
        return sum(self.by_pid.values())

    def sample(self, pid: int) -> None:
        """Sample a process of the suite and its descendants."""
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            for one in (process, *process.children(recursive=True)):
                self._sample(one)

    def _sample(self, process: psutil.Process) -> None:
        with contextlib.suppress(psutil.Error):
            if process.name().startswith(("python", "pytest")):
                times = process.cpu_times()
                self.by_pid[process.pid] = times.user + times.system
