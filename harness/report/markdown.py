"""Tables in GitHub's dialect of Markdown, for the summary of a CI job or for a comment."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

#: Characters that have a meaning within a line, also those of a formula. html.escape() takes the others.
_SPECIAL = re.compile(r"([\\`*_\[\]|~$])")


def of_table(table: Table) -> str:
    """A table as Markdown, with its title as a heading.

    What a cell says is shown as it is, without its style.
    """
    heading = [f"### {_shown(table.title)}", ""] if table.title else []
    head = _row(column.header for column in table.columns)
    rows = map(_row, zip(*(column.cells for column in table.columns), strict=True))
    return "\n".join([*heading, head, f"|{' --- |' * len(table.columns)}", *rows, ""])


def _row(cells: Iterable[RenderableType]) -> str:
    return f"| {' | '.join(_shown(cell) for cell in cells)} |"


def _shown(cell: RenderableType) -> str:
    text = cell if isinstance(cell, Text) else Text.from_markup(str(cell))
    escaped = _SPECIAL.sub(r"\\\1", html.escape(text.plain, quote=False))
    return "<br>".join(escaped.splitlines())
