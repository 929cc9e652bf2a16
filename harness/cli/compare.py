"""``harness compare``: compares two QEMUs, or two sets of recorded runs."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click

from harness.cli.common import progress
from harness.errors import SetupError, UsageError
from harness.layout import pytest_command, pytest_folder, scenarios_folder
from harness.report import comparison, summary, tables
from harness.report.pytest_run import run_pytest
from harness.report.summary import Run

#: pytest's exit codes for "all passed" and "some failed"; anything else is no result.
_RESULTS = (0, 1)


@click.command(
    epilog="Examples: harness compare 7.2 10.0 -k blocker --rounds 6; "
    "harness compare summary-of-monday summary-of-tuesday"
)
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option("-k", "expression", metavar="EXPRESSION", help="Run only these scenarios (pytest's -k).")
@click.option("-n", "workers", default="auto", show_default=True, help="Workers (pytest-xdist's -n).")
@click.option(
    "--rounds",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Run the scenarios so often against each QEMU, by turns, so that times can be tested.",
)
def compare(a: str, b: str, expression: str | None, workers: str, rounds: int) -> None:
    """List the outcomes that changed from A to B, and the times and leak slopes that differ.

    A and B are QEMUs (provisioned names or paths), against which the scenarios are run, or folders written by
    pytest --summary, or folders of such folders: several runs. Whether a time differs is decided by a
    permutation test; what the runs are too few for is said. Exits with 1 when a scenario fails on B and does
    not fail on A.
    """
    options = ["--thorough", "-n", workers, *(["-k", expression] if expression else [])]
    runs = {name: _recorded(name) for name in (a, b)}
    if rounds > 1 and all(runs.values()):
        raise UsageError(f"--rounds {rounds}: only for a QEMU; {a} and {b} are recorded runs")
    sides: dict[str, list[Run]] = {"a": list(runs[a]), "b": list(runs[b])}
    for number in range(rounds):
        for side, name in (("a", a), ("b", b)):
            if not runs[name]:
                if rounds > 1:
                    progress(f"round {number + 1} of {rounds}, QEMU {name}")
                sides[side].append(_run(name, options))
    found = comparison.pairs(sides["a"], sides["b"])
    if not any(pair.a and pair.b for pair in found):
        raise UsageError(
            f"{a} and {b} have no scenario in common, so they cannot be compared (where a run is of several "
            "QEMUs or kernels, each is compared with the same one of the other)"
        )
    different = comparison.tables(found, a, b)
    tables.show(*different)
    if not different:
        click.echo(f"{len(found)} scenarios, no difference")
    for line in comparison.times(found).lines(a, b):
        click.echo(line)
    sys.exit(1 if any(pair.worse for pair in found) else 0)


def _recorded(name: str) -> list[Run]:
    """The runs for ``harness compare`` in a summary, or in a folder's summaries; none for a QEMU."""
    path = Path(name)
    if path.is_dir() and not (path / summary.NAME).exists():
        several = sorted(path.glob(f"*/{summary.NAME}"))
        if several:
            return [summary.read(one) for one in several]
    return [summary.read(path)] if path.is_dir() or path.suffix == ".json" else []


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
