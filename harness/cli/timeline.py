"""``harness timeline``: draws what happened in a recorded test."""

from __future__ import annotations

from pathlib import Path

import click

from harness.artifacts import recorded_tests
from harness.cli.common import progress
from harness.report.timeline import files
from harness.report.timeline.reading import timeline_of


@click.command(epilog="Example: harness timeline artifacts/latest/TEST --into /tmp/timeline")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--into",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write there instead of into each test's folder; with several tests, into a folder for each.",
)
def timeline(folder: Path, into: Path | None) -> None:
    """Draw the timeline of recorded tests.

    DIR is the folder of one test, or a folder that contains such folders. The timeline has a lane for the
    host, for holds, for each machine's QMP and events and for each guest, the counters that the test
    observed, and an arrow from each device_del to its events. For each test it writes timeline.svg, for a
    browser, and timeline.trace.json, for https://ui.perfetto.dev ("Open trace file"). Prints the paths.
    """
    for path in recorded_tests(folder):
        made = timeline_of(path)
        for remark in made.remarks:
            progress(f"{path}: {remark}")
        target = path if into is None else into / path.relative_to(folder)
        for file in files.write(made, target):
            click.echo(file)
