"""``harness merge``: joins the shards of a run."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from harness.errors import SetupError
from harness.report import summary, tables
from harness.report.page import write_run_page
from harness.report.summary import Outcome


@click.command(epilog="Example: harness merge shard-1 shard-2 --into summary")
@click.argument("shards", metavar="DIR...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--into", type=click.Path(path_type=Path), help="Write the joined summary into this folder.")
@click.option("--strict", is_flag=True, help="Fail if no test asserted some guarantee on some QEMU.")
def merge(shards: tuple[Path, ...], into: Path | None, strict: bool) -> None:
    """Join the summaries of all shards of a run (pytest --summary DIR --shard I/N) into one.

    It is an error when a shard is missing, incomplete, given twice, or of another run. Each guarantee that
    no test asserted on a QEMU is listed. Exits with 1 when a test failed or a known bug is fixed.
    """
    run = summary.merge([(str(path), summary.read(path)) for path in shards])
    tables.show(*summary.tables(run))
    for gap in run.not_asserted:
        click.echo(gap)
    if into is not None:
        try:
            summary.write(run, into)
            write_run_page(run, into)
        except OSError as exc:
            raise SetupError(f"cannot write {into}: {exc.strerror}") from exc
    failed = run.counts[Outcome.FAILED] or run.counts[Outcome.FIXED]
    if failed or (strict and run.not_asserted):
        sys.exit(1)
