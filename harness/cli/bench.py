"""``harness bench``: times the harness and its alternatives side by side."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import click
from click.core import ParameterSource
from rich.table import Table

from harness import reaper
from harness.artifacts import of_command
from harness.bench.baselines import has_labgrid
from harness.bench.benchmarks import BENCHMARKS, profile
from harness.bench.suite import run_suite
from harness.bench.timing import Row, measure, rows
from harness.cli.common import axes, progress
from harness.cli.recording import begin, record_option, recording
from harness.layout import scenarios_folder
from harness.matrix import Matrix, Selection
from harness.reaper import RunFolder
from harness.report import tables
from harness.report.nights.circumstances import load
from harness.report.nights.recorder import BENCH, Lenient
from harness.report.summary import NO_QEMU, Measured, Outcome, Result
from harness.testbed import Cell

#: The names that are not in BENCHMARKS.
_PROFILE = "profile"
_SUITE = "suite"
_WORKERS = (1, 2, 4)


@click.command(epilog="Example: harness bench start --rounds 9 --json")
@click.argument("benchmark", type=click.Choice([*sorted(BENCHMARKS), _PROFILE, _SUITE]), default="start")
@click.option(
    "--rounds", default=5, show_default=True, type=click.IntRange(1), help="How often each candidate runs."
)
@click.option("-k", "expression", metavar="EXPRESSION", help="suite: only these scenarios (pytest's -k).")
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
@record_option
@axes
@click.pass_context
def bench(
    context: click.Context,
    benchmark: str,
    rounds: int,
    expression: str | None,
    as_json: bool,
    record: Path | None,
    qemu: str,
    qemu_data: Path | None,
    machine: str,
    kernel: str,
    accel: str,
) -> None:
    """Time several ways of doing the same, side by side in one run.

    \b
    start    from no QEMU to a guest's first answer: a bare script, labgrid (if installed),
             a boot by the harness, and a restore from a template
    cycle    plug, mount, use, unmount and unplug a share
    migrate  migrate a guest with an unmounted share until it answers on the destination
    qmp      a thousand round trips over QMP
    profile  the stages of the start of a restored guest
    suite    the scenarios with 1, 2 and 4 workers, and Python's share of the processor
             time; on all machine types, unless --machine is given

    Compare the ratios, not the times.
    """
    history = recording(record)
    if benchmark == _SUITE:
        begin(history, BENCH)
        _suite(_given(context, expression), as_json, history)
        history.write(lambda recorder: recorder.end(0))
        return
    if benchmark == "start" and not has_labgrid():
        progress("labgrid is not installed (pip install 'virtio-9p-harness[bench]'): it is not measured")
    reaper.sweep()
    (cell,) = Matrix(
        Selection((qemu,), (machine,), (kernel,), accel, qemu_data=qemu_data), report=progress
    ).prepare()
    begin(history, BENCH, [cell])
    run = RunFolder()
    try:
        table = (
            _profile(cell, run, rounds) if benchmark == _PROFILE else _measure(benchmark, cell, run, rounds)
        )
    finally:
        run.close()
    for row in table:
        times = {"median": row.median_s, "min": row.min_s, "max": row.max_s}
        _record(history, benchmark, row.name, times, cell)
    history.write(lambda recorder: recorder.end(0))
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
    """pytest's options of ``harness bench suite``: ``-k`` and the axes that were given."""
    words = ["-k", expression] if expression else []
    for axis in ("qemu", "qemu_data", "machine", "kernel", "accel"):
        if context.get_parameter_source(axis) is not ParameterSource.DEFAULT:
            words += [f"--{axis.replace('_', '-')}", str(context.params[axis])]
    return words


def _record(
    history: Lenient, benchmark: str, row: str, seconds: dict[str, float], cell: Cell | None = None
) -> None:
    """``harness bench --record``: a row is the result of a test, ``bench/BENCHMARK::ROW``."""
    result = Result(
        test=f"bench/{benchmark}::{row}",
        guarantee="bench",
        qemu=cell.qemu.name if cell else NO_QEMU,
        version=cell.capabilities.version_text if cell else "",
        kernel=cell.image.kernel_version if cell else "",
        kernel_name=cell.image.name if cell else "",
        machine=cell.machine_type.name if cell else "",
        outcome=Outcome.PASSED,
        seconds=next(iter(seconds.values())),
        load=load(),
        measurements={name: Measured(value=value, unit="s") for name, value in seconds.items()},
    )
    history.write(lambda recorder: recorder.add(result))


def _suite(options: list[str], as_json: bool, history: Lenient) -> None:
    """``harness bench suite``: run it once with each number of workers.

    There is no warm-up, because a run takes minutes.
    """
    runs, scenarios = [], scenarios_folder()
    with of_command("bench-suite") as folder:
        for workers in _WORKERS:
            progress(f"running the scenarios with {workers} workers (log: {folder}/{workers}.log) …")
            runs.append(run_suite(scenarios, workers, options, folder / f"{workers}.log"))
            times = {"wall": runs[-1].wall_s, "processor": runs[-1].cpu_s, "python": runs[-1].python_s}
            _record(history, _SUITE, f"{workers} workers", times)
        shutil.rmtree(folder)
    if as_json:
        cores = len(os.sched_getaffinity(0))
        rows = [{**asdict(run), "python_share": run.python_share} for run in runs]
        print(json.dumps({"benchmark": _SUITE, "cores": cores, "rows": rows}, indent=2))
        return
    shown = Table(title="suite: a run of all selected scenarios")
    for name in ("workers", "time", "times faster", "processor time", "Python's share"):
        shown.add_column(name, justify="right")
    for run in runs:
        ratio, share = runs[0].wall_s / run.wall_s, 100 * run.python_share
        shown.add_row(
            str(run.workers), f"{run.wall_s:.0f} s", f"{ratio:.1f}", f"{run.cpu_s:.0f} s", f"{share:.0f} %"
        )
    tables.show(shown)


def _measure(benchmark: str, cell: Cell, run: RunFolder, rounds: int) -> list[Row]:
    # The first turn of each is not counted: it makes templates and fills the page cache.
    turns = BENCHMARKS[benchmark](cell, run)
    progress("warming up …")
    for turn in turns.values():
        turn()
    return measure(turns, rounds, progress)


def _profile(cell: Cell, run: RunFolder, rounds: int) -> list[Row]:
    progress("warming up …")
    profile(cell, run)
    taken = [profile(cell, run) for _ in range(rounds)]
    return rows({stage: [one[stage] for one in taken] for stage in taken[0]})


def _print(table: list[Row], title: str, *, shares: bool) -> None:
    """Print the table of ``harness bench``.

    :param shares: the first row is the sum of the others: print the share of each instead of the ratio.
    """
    shown = Table(title=title)
    for name in ("", "median", "min", "max", "share" if shares else "times faster"):
        shown.add_column(name, justify="left" if not name else "right")
    for row in table:
        times = (f"{seconds:.3f} s" for seconds in (row.median_s, row.min_s, row.max_s))
        shown.add_row(row.name, *times, f"{100 / row.ratio:.0f} %" if shares else f"{row.ratio:.1f}")
    tables.show(shown)
