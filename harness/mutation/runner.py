"""Runs pytest on the scenarios (:mod:`harness.report.pytest_run`)."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from harness.layout import pytest_command, pytest_folder, scenarios_folder
from harness.matrix import DEFAULT
from harness.reaper import RunFolder
from harness.report import summary
from harness.report.pytest_run import no_result, read_summary, run_pytest
from harness.report.summary import Run

#: pytest's exit codes for a collection: some tests, or none.
_COLLECTED = (0, 5)


def run_scenarios(
    qemu: str,
    selection: Sequence[str],
    artifacts: Path,
    run: RunFolder,
    *,
    alone: bool,
) -> Run:
    """Run scenarios against the QEMU called ``qemu``.

    :param selection: pytest's arguments and options that select the scenarios.
    :param artifacts: the folder for artefacts (pytest's ``--artifacts``).
    :param run: a run folder. Closing it ends the processes that are started here.
    :param alone: nothing else runs meanwhile, so pytest takes as many workers as the machine has room for.
    :raises SetupError: when the run gives no result.
    """
    folder = scenarios_folder()
    into = Path(tempfile.mkdtemp(dir=run.path))
    argv = [*pytest_command(), *selection, "--qemu", qemu, "--summary", str(into)]
    argv += ["-n", "auto" if alone else "0", "-q", "-p", "no:cacheprovider", "--artifacts", str(artifacts)]
    what = f"the scenarios against QEMU {qemu}"
    done = run_pytest(argv, pytest_folder(folder), what=what, environment={**os.environ, **run.environment()})
    return read_summary(what, done, into)


def collected(*options: str) -> tuple[str, ...]:
    """The scenarios that pytest runs with these options, as ``file.py::test[parameters]``.

    pytest collects them, because only the plugin knows which scenarios are left out by default and on which
    machine types each runs.

    :raises SetupError: when the collection fails.
    """
    folder = scenarios_folder()
    argv = [*pytest_command(), str(folder), "--collect-only", "-q", "-p", "no:cacheprovider"]
    what = "the collection of the scenarios"
    done = run_pytest([*argv, *options], pytest_folder(folder), what=what)
    if done.returncode not in _COLLECTED:
        raise no_result(what, done)
    tests = [line for line in done.stdout.splitlines() if "::" in line]
    return tuple(short(summary.scenario_of(test, DEFAULT, DEFAULT)) for test in tests)


def short(scenario: str) -> str:
    """The name of a scenario that pytest ran as faults have it: without the folder of the scenarios."""
    path, _, test = scenario.partition("::")
    return f"{path.rpartition('/')[2]}::{test.removesuffix('[]')}"


def paths(scenarios: Iterable[str]) -> list[str]:
    """pytest's arguments to run files (``file.py``) and tests (``file.py::test``) of the scenarios."""
    folder = scenarios_folder()
    return [str(folder / scenario) for scenario in scenarios]


def files() -> list[Path]:
    """The files of the scenarios that pytest runs."""
    return sorted(scenarios_folder().glob("test_*.py"))
