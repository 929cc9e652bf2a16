"""A whole run of the scenarios: how long it takes with so many workers, and what of it is Python's work."""

from __future__ import annotations

import contextlib
import resource
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from harness.errors import SetupError
from harness.layout import pytest_command, pytest_folder

#: What a process has used is looked at so often; of its last moments nothing is seen.
_LOOK_EVERY_S = 0.25


@dataclass(frozen=True)
class SuiteRun:
    """One run: seconds on the wall, and seconds of processor time, of all processes and of Python's."""

    workers: int
    wall_s: float
    cpu_s: float
    python_s: float

    @property
    def python_share(self) -> float:
        """What of the processor time Python took, 0 to 1."""
        return self.python_s / self.cpu_s if self.cpu_s else 0.0


def run_suite(folder: Path, workers: int, options: Sequence[str], log: Path) -> SuiteRun:
    """Run the scenarios in ``folder`` with pytest and ``options``, as a user would.

    :param log: where its output goes.
    :raises SetupError: when a scenario failed, or none ran: the time of such a run says nothing.
    """
    argv = [*pytest_command(), str(folder), "-n", str(workers), "-p", "no:cacheprovider"]
    before, began = _reaped_s(), time.monotonic()
    with log.open("wb") as output:
        process = psutil.Popen(
            [*argv, *options],
            cwd=pytest_folder(folder),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            python_s = _watch(process)
        finally:
            if process.poll() is None:  # Given up half-way: as with Ctrl-C, pytest ends its guests.
                process.send_signal(signal.SIGINT)
                process.wait()
    if process.returncode != 0:
        last = (log.read_text(errors="replace").strip().splitlines() or ["nothing"])[-1]
        raise SetupError(f"with -n {workers}, pytest exited with {process.returncode}: {last} (all: {log})")
    return SuiteRun(workers, time.monotonic() - began, _reaped_s() - before, python_s)


def _reaped_s() -> float:
    """Processor seconds of all children that have ended, and of theirs (``man 2 getrusage``)."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _watch(process: psutil.Popen) -> float:
    """Wait for the end of ``process``; what Python used, in it and in its descendants."""
    used: dict[int, float] = {}
    while True:
        with contextlib.suppress(psutil.NoSuchProcess):
            for one in (process, *process.children(recursive=True)):
                _look(one, used)
        with contextlib.suppress(psutil.TimeoutExpired):
            process.wait(timeout=_LOOK_EVERY_S)
            return sum(used.values())


def _look(process: psutil.Process, used: dict[int, float]) -> None:
    with contextlib.suppress(psutil.Error):
        if process.name().startswith(("python", "pytest")):
            times = process.cpu_times()
            used[process.pid] = times.user + times.system
