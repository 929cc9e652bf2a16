"""``harness endurance``: starts and ends many guests, and finds resources that are not released."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click
from rich.table import Table

from harness import reaper
from harness.bench.endurance import LIMITS, Growth, endure_in_workers
from harness.cli.common import axes, progress
from harness.matrix import Matrix, Selection
from harness.report import tables


@click.command(epilog="Example: harness endurance --guests 500 --workers 4")
@click.option(
    "--guests",
    default=200,
    show_default=True,
    type=click.IntRange(1),
    help="Guests in all processes together.",
)
@click.option(
    "--workers",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    help="Processes that run at the same time.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
@axes
def endurance(
    guests: int,
    workers: int,
    as_json: bool,
    qemu: str,
    qemu_data: Path | None,
    machine: str,
    kernel: str,
    accel: str,
) -> None:
    """Start and end many guests, and check that the harness releases their resources.

    Each guest is restored from a template, answers a command and ends. After each guest the process counts
    its threads, file descriptors and private memory, and the files and disk space of the run. Exits with 1
    when one of these grows with the number of guests.
    """
    reaper.sweep()
    selection = Selection((qemu,), (machine,), (kernel,), accel, qemu_data=qemu_data)
    Matrix(selection, report=progress).prepare()
    guests -= guests % workers
    table = endure_in_workers(selection, guests, workers, progress)
    if as_json:
        rows = [{**asdict(row), "limit": LIMITS[row.count], "too_much": row.too_much} for row in table]
        print(json.dumps({"guests": guests, "workers": workers, "rows": rows}, indent=2))
    else:
        _print(table, f"{guests} guests from {workers} processes")
    sys.exit(any(row.too_much for row in table))


def _print(table: list[Growth], title: str) -> None:
    shown = Table(title=title)
    for name in ("process", "resource", "first", "last", "per guest", "limit", ""):
        shown.add_column(name, justify="left" if name in ("resource", "") else "right")
    for row in table:
        numbers = (f"{row.first:g}", f"{row.last:g}", f"{row.per_guest:+g}", f"{LIMITS[row.count]:g}")
        shown.add_row(str(row.worker), row.count, *numbers, "grows" if row.too_much else "")
    tables.show(shown)
