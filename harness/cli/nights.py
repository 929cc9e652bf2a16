"""``harness nights``: what is new in a history of nights, since when, and what changed."""

from __future__ import annotations

import json
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from harness.cli.common import progress
from harness.errors import UsageError
from harness.report.nights import history, report, rows, runs, text
from harness.report.nights.store import Store
from harness.report.page.page import write_page

_DAYS = re.compile(r"(\d+)d")


@click.command(
    epilog="Examples: harness nights nights.sqlite; harness nights nights.sqlite --since 7d --json; "
    "harness nights nights.sqlite --since 2026-11-20"
)
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.option(
    "--since",
    metavar="DAY|Nd",
    help="What began then or later is new: 2026-11-20, 2026-11-20T18:00, or 7d for seven days before the "
    "newest run. By default, what began in the newest night.",
)
@click.option(
    "--page",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Also write a page for a browser, DIR/index.html, with the failures' files beside it.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def nights(file: Path, since: str | None, page: Path | None, as_json: bool) -> None:
    """Say what is new in FILE, a history that pytest --record FILE wrote.

    Printed are new failures, with the night before and what changed in between; what was fixed; flaky tests;
    times and leak slopes that changed; and what did not run. Tests are compared over nights for each QEMU
    name, kernel and machine type.

    Exits with 0 when there is no new failure, with 1 when there is one, or when no test of the newest night
    passed or failed, and with 2 on bad input.
    """
    with Store(file, read_only=True) as store:
        read = history.load(store)
        if not read.runs:
            if page is not None and store.select(rows.Run):
                progress(f"page: {write_page(store, page)}")
                print(f"{file} has no run of scenarios to compare; the page shows its other runs")
                return
            raise UsageError(
                f"{file}: has no run of scenarios yet; pytest scenarios --record {file} adds one"
            )
        found = report.report(read, _time(since, read.newest) if since else None)
        if page is not None:
            progress(f"page: {write_page(store, page, report=found)}")
    if as_json:
        print(json.dumps(report.as_data(found), indent=2, ensure_ascii=False))
    else:
        print("\n".join(text.lines(found)))
    sys.exit(1 if found.failures.new or found.nothing_judged else 0)


def _time(since: str, newest: datetime) -> datetime:
    """A time that the user of ``harness nights`` gave. :raises UsageError: when it is no time."""
    days = _DAYS.fullmatch(since)
    try:
        return newest - timedelta(days=int(days[1])) if days else runs.time(since).astimezone(UTC)
    except (ValueError, OverflowError):
        raise UsageError(f"--since {since}: write a day (2026-11-20), a time, or days before (7d)") from None
