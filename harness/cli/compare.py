"""``harness compare``: compares two QEMUs, or two recorded runs."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click

from harness.cli.report import progress
from harness.errors import SetupError
from harness.layout import pytest_command, pytest_folder, scenarios_folder
from harness.report import comparison, summary, tables
from harness.report.pytest_run import run_pytest
from harness.report.summary import Run

#: pytest's exit codes for "all passed" and "some failed"; anything else is no result.
_RESULTS = (0, 1)


@click.command(epilog="Example: harness compare 7.2 10.0 -k blocker")
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option("-k", "expression", metavar="EXPRESSION", help="Run only these scenarios (pytest's -k).")
@click.option("-n", "workers", default="auto", show_default=True, help="Workers (pytest-xdist's -n).")
def compare(a: str, b: str, expression: str | None, workers: str) -> None:
    """List the outcomes that changed from A to B, the scenarios that got slower, and leak slopes that differ.

    A and B are folders written by pytest --summary, or QEMUs (provisioned names or paths). The scenarios are
    run against a QEMU. Exits with 1 when a scenario fails on B and does not fail on A.
    """
    options = ["--thorough", "-n", workers, *(["-k", expression] if expression else [])]
    runs = [_recorded(name) or _run(name, options) for name in (a, b)]
    found = comparison.pairs(*runs)
    different = comparison.tables(found, a, b)
    tables.show(*different)
    if not different:
        click.echo(f"{len(found)} scenarios, no difference")
    sys.exit(1 if any(pair.worse for pair in found) else 0)


def _recorded(name: str) -> Run | None:
    path = Path(name)
    return summary.read(path) if path.is_dir() or path.suffix == ".json" else None


def _run(qemu: str, options: list[str]) -> Run:
    folder = scenarios_folder()
    with tempfile.TemporaryDirectory(prefix="harness-compare-") as into:
        progress(f"running the scenarios against QEMU {qemu} …")
        argv = [*pytest_command(), str(folder), "--qemu", qemu, "--summary", into, *options]
        argv += ["--color=yes"] if sys.stderr.isatty() else []
        what = f"the scenarios against QEMU {qemu}"
        done = run_pytest(argv, pytest_folder(folder), what=what, show=sys.stderr.buffer)
        if done.returncode not in _RESULTS:
            raise SetupError(f"the scenarios against QEMU {qemu} gave no result (pytest: {done.returncode})")
        return summary.read(Path(into))
