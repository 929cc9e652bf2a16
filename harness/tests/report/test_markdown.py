"""Tables as Markdown are read back by a parser of Markdown: each cell has to say what it said."""

from __future__ import annotations

import html
import re

from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.markup import escape
from rich.table import Table

from harness.report import markdown

_PARSER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
_ROWS = st.lists(st.tuples(st.text(max_size=20), st.text(max_size=20)), max_size=4)


def _cells(text: str) -> list[str]:
    """The text of each cell, as a browser shows it."""
    page = _PARSER.render(text)
    assert not re.search(r"<(?!/?(table|thead|tbody|tr|th|td|h3)>|br>)", page), page
    found = re.findall(r"<t[hd]>(.*?)</t[hd]>", page, re.DOTALL)
    return [html.unescape(cell.replace("<br>", "\n")) for cell in found]


def _as_shown(text: str) -> str:
    """Markdown drops white space at the ends of a cell, and knows no other line ends than "\\n"."""
    return "\n".join(text.splitlines()).strip()


def test_a_table_has_its_title_as_a_heading() -> None:
    table = Table("test", "why", title="failures [dim](2)[/]")
    table.add_row("[red]t[/]", "a | b")
    assert markdown.of_table(table) == "### failures (2)\n\n| test | why |\n| --- | --- |\n| t | a \\| b |\n"


@given(_ROWS)
def test_a_cell_says_what_it_said(rows: list[tuple[str, str]]) -> None:
    printable = [tuple(re.sub(r"[^ -~\n]", "x", cell) for cell in row) for row in rows]
    table = Table("a", "b")
    for row in printable:
        table.add_row(*map(escape, row))
    wanted = [_as_shown(cell) for row in printable for cell in row]
    assert [cell.strip() for cell in _cells(markdown.of_table(table))] == ["a", "b", *wanted]
