"""``harness merge``: the shards of one run, joined."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console

from harness import summary
from harness.errors import SetupError
from harness.summary import Outcome


@click.command(epilog="Example: harness merge shard-1 shard-2 --into summary")
@click.argument("shards", metavar="DIR...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--into", type=click.Path(path_type=Path), help="Write the joined summary into this folder.")
def merge(shards: tuple[Path, ...], into: Path | None) -> None:
    """Join the summaries (pytest --summary DIR --shard I/N) of all shards of a run into one.

    A missing, doubled or incomplete shard is an error, and so is one of another run. Exits with 1 when a test
    failed, or a known bug is gone.
    """
    run = summary.merge([(str(path), summary.read(path)) for path in shards])
    console = Console()
    for table in summary.tables(run):
        console.print(table)
    if into is not None:
        try:
            summary.write(run, into)
        except OSError as exc:
            raise SetupError(f"cannot write {into}: {exc.strerror}") from exc
    if run.counts[Outcome.FAILED] or run.counts[Outcome.FIXED]:
        sys.exit(1)
