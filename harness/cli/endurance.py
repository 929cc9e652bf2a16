"""``harness endurance``: many guests, and what stays of them."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from harness import reaper
from harness.bench.endurance import LIMITS, Growth, endure_in_workers
from harness.cli.report import axes, progress
from harness.matrix import Matrix, Selection


@click.command(epilog="Example: harness endurance --guests 500 --workers 4")
@click.option("--guests", default=200, show_default=True, type=click.IntRange(1), help="In all.")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1), help="Processes at once.")
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
    """Start and end many guests, and see whether anything stays in the processes that did it.

    Each guest is restored from a template, answers a command, and ends. Threads, descriptors, files, disk and
    private memory are counted after each; what grows with the guests is a defect of the harness, and makes
    the command fail.
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
    for name in ("process", "", "first", "last", "a guest", "limit", ""):
        shown.add_column(name, justify="left" if not name else "right")
    for row in table:
        numbers = (f"{row.first:g}", f"{row.last:g}", f"{row.per_guest:+g}", f"{LIMITS[row.count]:g}")
        shown.add_row(str(row.worker), row.count, *numbers, "grows" if row.too_much else "")
    Console().print(shown)
