"""Tables for a terminal, a pipe or a page. No cell is cut, so that a name can be copied and searched for.

rich cuts a word that is wider than its column and ends it with "…". Here each column is at least as wide as
its longest word. In a pipe, a table is as wide as its content, so that each row is one line.
"""

from __future__ import annotations

from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.table import Column, Table

#: Characters: wider than any table.
_UNLIMITED = 10_000
#: Characters of prose that a column has in a table that is wider than its terminal.
_READABLE = 40


def show(*tables: Table, stderr: bool = False) -> None:
    """Print tables to stdout or stderr: fitted to a terminal, or as wide as their content in a pipe."""
    console = Console(stderr=stderr, emoji=False)
    if not console.is_terminal:
        console.width = _UNLIMITED
    for table in tables:
        put(table, console)


def put(table: Table, console: Console) -> None:
    """Print a table to ``console``; wider than the console where whole words need more room."""
    before, console.width = console.width, _fit(table, console)
    try:
        console.print(table)
    finally:
        console.width = before


def _fit(table: Table, console: Console) -> int:
    """Set the width of each column of a table; return the width that the console needs for all of them."""
    for column in table.columns:
        column.width = None
    sizes = [_measured(column, console) for column in table.columns]
    border_and_padding = _measure(table, console).maximum - sum(size.maximum for size in sizes)
    widths = _shared(sizes, console.width - border_and_padding)
    for column, width in zip(table.columns, widths, strict=True):
        column.width = width
    return max(console.width, border_and_padding + sum(widths))


def _shared(sizes: list[Measurement], room: int) -> list[int]:
    """Share ``room`` among a table's columns. Where it is too little for the longest words, take more."""
    widths = [size.minimum for size in sizes]
    if sum(widths) > room:
        return [max(size.minimum, min(size.maximum, _READABLE)) for size in sizes]
    room -= sum(widths)
    # The column that lacks least takes its share first, and what it does not need is left for the others.
    order = sorted(range(len(sizes)), key=lambda index: sizes[index].span)
    for done, index in enumerate(order):
        more = min(sizes[index].span, room // (len(order) - done))
        widths[index] += more
        room -= more
    return widths


def _measured(column: Column, console: Console) -> Measurement:
    """The width of a table column's longest word, and of its longest line.

    A line that may not wrap is one word.
    """
    cells = [_measure(cell, console) for cell in (column.header, *column.cells)]
    longest = max(cell.maximum for cell in cells)
    return Measurement(longest if column.no_wrap else max(cell.minimum for cell in cells), longest)


def _measure(what: RenderableType, console: Console) -> Measurement:
    return Measurement.get(console, console.options.update(width=_UNLIMITED), what)
