"""``harness merge``: joins the shards of a run."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import click

from harness.cli.recording import opened, record_option
from harness.errors import SetupError, UsageError
from harness.report import summary, tables
from harness.report.nights.recorder import MERGE
from harness.report.page.page import write_run_page
from harness.report.summary import Outcome, Run


@click.command(epilog="Example: harness merge shard-1 shard-2 --into summary --record nights.sqlite")
@click.argument("shards", metavar="DIR...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--into", type=click.Path(path_type=Path), help="Write the joined summary into this folder.")
@record_option
@click.option("--strict", is_flag=True, help="Fail if no test asserted some guarantee on some QEMU.")
def merge(shards: tuple[Path, ...], into: Path | None, record: Path | None, strict: bool) -> None:
    """Join the summaries of all shards of a run (pytest --summary DIR --shard I/N) into one.

    It is an error when a shard is missing, incomplete, given twice, of another run, or on another QEMU of the
    same name; the message says which are to be run again, and the others are not. Each guarantee that no test
    asserted on a QEMU is listed.
    Exits with 1 when a test failed or a known bug is fixed.
    """
    with opened(record) as recorder:
        run = summary.merge(*_read(shards))
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
        status = 1 if failed or (strict and run.not_asserted) else 0
        if recorder is not None:
            recorder.add_run(MERGE, run, status)
    sys.exit(status)


def _read(shards: Iterable[Path]) -> tuple[list[tuple[str, Run]], list[str]]:
    """The shards for ``harness merge``, and why others cannot be read: a dead machine left no summary."""
    runs, unreadable = [], []
    for path in shards:
        try:
            runs.append((str(path), summary.read(path)))
        except UsageError as exc:
            unreadable.append(exc.message)
    return runs, unreadable
