"""``harness bench``: what things take here, measured side by side."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path

import click
from click.core import ParameterSource
from rich.console import Console
from rich.table import Table

from harness import reaper
from harness.bench import Row, race, rows
from harness.bench.benchmarks import BENCHMARKS, profile
from harness.bench.peers import has_labgrid
from harness.bench.suite import run_suite
from harness.cli.report import axes, progress
from harness.layout import scenarios_folder
from harness.matrix import Matrix, Selection
from harness.reaper import RunFolder
from harness.testbed import Cell

#: Those that are no benchmark.
_PROFILE = "profile"
_SUITE = "suite"
_WORKERS = (1, 2, 4)


@click.command(epilog="Example: harness bench start --rounds 9 --json")
@click.argument("benchmark", type=click.Choice([*sorted(BENCHMARKS), _PROFILE, _SUITE]), default="start")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1), help="Turns of each.")
@click.option("-k", "expression", metavar="EXPRESSION", help="suite: pytest's, only these scenarios.")
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
@axes
@click.pass_context
def bench(
    context: click.Context,
    benchmark: str,
    rounds: int,
    expression: str | None,
    as_json: bool,
    qemu: str,
    qemu_data: Path | None,
    machine: str,
    kernel: str,
    accel: str,
) -> None:
    """Measure, side by side in one run.

    start: from nothing to a guest's first answer, by a bare script, by labgrid (where it is installed), by
    our boot, by our restore from a template, and with a guest that was restored beforehand. cycle: plug,
    mount, use, umount and unplug of a share. migrate: an unmounted guest moves to a new QEMU and answers
    there. qmp: a thousand round trips. Compare ratios, not times. profile: where the time of a restored
    guest's start goes. suite: one run of the scenarios each with 1, 2 and 4 workers, and Python's share of
    the processor time; all machine types, unless one is given.
    """
    if benchmark == _SUITE:
        _suite(_given(context, expression), as_json)
        return
    if benchmark == "start" and not has_labgrid():
        progress("labgrid is not installed (pip install 'virtio-9p-harness[bench]'): it takes no part")
    reaper.sweep()
    (cell,) = Matrix(
        Selection((qemu,), (machine,), (kernel,), accel, qemu_data=qemu_data), report=progress
    ).prepare()
    run = RunFolder()
    try:
        table = _profile(cell, run, rounds) if benchmark == _PROFILE else _race(benchmark, cell, run, rounds)
    finally:
        run.close()
    facts = {
        "benchmark": benchmark,
        "qemu": cell.capabilities.banner,
        "machine": cell.machine_type.name,
        "accel": cell.accel.name,
        "cores": len(os.sched_getaffinity(0)),
        "rows": [asdict(row) for row in table],
    }
    if as_json:
        print(json.dumps(facts, indent=2))
    else:
        title = f"{benchmark}: {cell.capabilities.banner}, {cell.machine_type.name}, {cell.accel.name}"
        _print(table, title, shares=benchmark == _PROFILE)


def _given(context: click.Context, expression: str | None) -> list[str]:
    """pytest's options for the axes that the user narrowed."""
    words = ["-k", expression] if expression else []
    for axis in ("qemu", "qemu_data", "machine", "kernel", "accel"):
        if context.get_parameter_source(axis) is not ParameterSource.DEFAULT:
            words += [f"--{axis.replace('_', '-')}", str(context.params[axis])]
    return words


def _suite(options: list[str], as_json: bool) -> None:
    """One run each, and none for warming up: one takes minutes."""
    runs, scenarios = [], scenarios_folder()
    folder = Path(tempfile.mkdtemp(prefix="bench-suite-"))
    for workers in _WORKERS:
        progress(f"the scenarios, with {workers} workers ({folder}/{workers}.log) …")
        runs.append(run_suite(scenarios, workers, options, folder / f"{workers}.log"))
    shutil.rmtree(folder)
    if as_json:
        cores = len(os.sched_getaffinity(0))
        rows = [{**asdict(run), "python_share": run.python_share} for run in runs]
        print(json.dumps({"benchmark": _SUITE, "cores": cores, "rows": rows}, indent=2))
        return
    shown = Table(title="suite: the scenarios as a whole")
    for name in ("workers", "wall", "times faster", "processor", "Python's share"):
        shown.add_column(name, justify="right")
    for run in runs:
        ratio, share = runs[0].wall_s / run.wall_s, 100 * run.python_share
        shown.add_row(
            str(run.workers), f"{run.wall_s:.0f} s", f"{ratio:.1f}", f"{run.cpu_s:.0f} s", f"{share:.0f} %"
        )
    Console().print(shown)


def _race(benchmark: str, cell: Cell, run: RunFolder, rounds: int) -> list[Row]:
    # One turn of each that does not count: templates are made, pages are read.
    turns = BENCHMARKS[benchmark](cell, run)
    progress("warming up …")
    for turn in turns.values():
        turn()
    return race(turns, rounds, progress)


def _profile(cell: Cell, run: RunFolder, rounds: int) -> list[Row]:
    progress("warming up …")
    profile(cell, run)
    taken = [profile(cell, run) for _ in range(rounds)]
    return rows({stage: [one[stage] for one in taken] for stage in taken[0]})


def _print(table: list[Row], title: str, *, shares: bool) -> None:
    """:param shares: the first row is the whole, of which the others are parts."""
    shown = Table(title=title)
    for name in ("", "median", "min", "max", "share" if shares else "times faster"):
        shown.add_column(name, justify="left" if not name else "right")
    for row in table:
        times = (f"{seconds:.3f} s" for seconds in (row.median_s, row.min_s, row.max_s))
        shown.add_row(row.name, *times, f"{100 / row.ratio:.0f} %" if shares else f"{row.ratio:.1f}")
    Console().print(shown)
