"""``harness check``: judges recorded tests again."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
from rich.table import Table
from rich.text import Text

from harness.artifacts import recorded_tests
from harness.checkers import Judgement, Verdict, judge, worst
from harness.errors import SetupError
from harness.report import tables

_STYLES = {Verdict.VALID: "green", Verdict.UNKNOWN: "yellow", Verdict.INVALID: "red"}


@click.command(epilog="Example: harness check artifacts/")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print every judgement as JSON.")
def check(folder: Path, as_json: bool) -> None:
    """Judge recorded tests again.

    DIR is the folder of one test, or a folder that contains such folders. The verdict.json of each test is
    written again. Exits with 1 unless every verdict is valid.
    """
    judged = {path: _judge(path) for path in recorded_tests(folder)}
    if as_json:
        print(json.dumps({str(path): _plain(found) for path, found in judged.items()}, indent=2))
    else:
        _print(folder, judged)
    verdicts = [judgement.verdict for found in judged.values() for judgement in found]
    if worst(verdicts) is not Verdict.VALID:
        sys.exit(1)


def _judge(path: Path) -> list[Judgement]:
    try:
        return judge(path)
    except OSError as exc:
        raise SetupError(f"cannot write {exc.filename}: {exc.strerror}") from exc


def _plain(found: list[Judgement]) -> list[dict[str, object]]:
    return [{**vars(judgement), "verdict": judgement.verdict.value} for judgement in found]


def _print(folder: Path, judged: dict[Path, list[Judgement]]) -> None:
    table = Table("test", "verdict", "why")
    for path, found in judged.items():
        verdict = worst([judgement.verdict for judgement in found])
        why = [f"{j.checker}: {j.summary}" for j in found if j.verdict is not Verdict.VALID]
        name = str(path.relative_to(folder)) if path != folder else path.name
        # As Text: a quoted message may look like markup.
        table.add_row(Text(name), Text(verdict.value, _STYLES[verdict]), Text("\n".join(why)))
    tables.show(table)
