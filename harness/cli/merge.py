"""``harness merge``: the shards of one run, joined."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console

from harness.errors import SetupError
from harness.report import summary
from harness.report.summary import Outcome


@click.command(epilog="Example: harness merge shard-1 shard-2 --into summary")
@click.argument("shards", metavar="DIR...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--into", type=click.Path(path_type=Path), help="Write the joined summary into this folder.")
@click.option("--strict", is_flag=True, help="A guarantee that nothing asserted on a QEMU is a failure.")
def merge(shards: tuple[Path, ...], into: Path | None, strict: bool) -> None:
    """Join the summaries (pytest --summary DIR --shard I/N) of all shards of a run into one.

    A missing, doubled or incomplete shard is an error, and so is one of another run. Each guarantee that
    nothing asserted on a QEMU is named. Exits with 1 when a test failed, or a known bug is gone.
    """
    run = summary.merge([(str(path), summary.read(path)) for path in shards])
    console = Console()
    for table in summary.tables(run):
        console.print(table)
    for gap in run.not_asserted:
        click.echo(gap)
    if into is not None:
        try:
            summary.write(run, into)
        except OSError as exc:
            raise SetupError(f"cannot write {into}: {exc.strerror}") from exc
    failed = run.counts[Outcome.FAILED] or run.counts[Outcome.FIXED]
    if failed or (strict and run.not_asserted):
        sys.exit(1)
