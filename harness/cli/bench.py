"""``harness bench``: what things take here, measured side by side."""

from __future__ import annotations

import json
import os
from dataclasses import asdict

import click
from rich.console import Console
from rich.table import Table

from harness import reaper
from harness.bench import Row, race
from harness.bench.contests import CONTESTS
from harness.bench.peers import has_labgrid
from harness.cli.report import axes, progress
from harness.matrix import Matrix, Selection
from harness.reaper import RunFolder


@click.command(epilog="Example: harness bench start --rounds 9 --json")
@click.argument("contest", type=click.Choice(sorted(CONTESTS)), default="start")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1), help="Turns of each.")
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
@axes
def bench(contest: str, rounds: int, as_json: bool, qemu: str, machine: str, kernel: str, accel: str) -> None:
    """Measure, side by side in one run.

    start: from nothing to a guest's first answer, by a bare script, by labgrid (where it is installed), by
    our boot, by our restore from a template. cycle: plug, mount, use, umount and unplug of a share. migrate:
    an unmounted guest moves to a new QEMU and answers there. qmp: a thousand round trips. Compare ratios,
    not times.
    """
    if contest == "start" and not has_labgrid():
        progress("labgrid is not installed (pip install 'virtio-9p-harness[bench]'): it takes no part")
    reaper.sweep()
    (cell,) = Matrix(Selection((qemu,), (machine,), (kernel,), accel), report=progress).prepare()
    run = RunFolder()
    try:
        # One turn of each that does not count: templates are made, pages are read.
        turns = CONTESTS[contest](cell, run)
        progress("warming up …")
        for turn in turns.values():
            turn()
        table = race(turns, rounds, progress)
    finally:
        run.close()
    facts = {
        "contest": contest,
        "qemu": cell.capabilities.banner,
        "machine": cell.machine_type.name,
        "accel": cell.accel.name,
        "cores": len(os.sched_getaffinity(0)),
        "rows": [asdict(row) for row in table],
    }
    if as_json:
        print(json.dumps(facts, indent=2))
    else:
        _print(table, f"{contest}: {cell.capabilities.banner}, {cell.machine_type.name}, {cell.accel.name}")


def _print(rows: list[Row], title: str) -> None:
    table = Table(title=title)
    for name in ("", "median", "min", "max", "times faster"):
        table.add_column(name, justify="left" if not name else "right")
    for row in rows:
        times = (f"{seconds:.2f} s" for seconds in (row.median_s, row.min_s, row.max_s))
        table.add_row(row.name, *times, f"{row.ratio:.1f}")
    Console().print(table)
