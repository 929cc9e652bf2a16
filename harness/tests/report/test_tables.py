"""Tables are printed whole: in a pipe, on a narrow terminal, and where they fit."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from harness.report import comparison, summary, tables
from harness.report.summary import Outcome, Run
from harness.tests.report.test_summary import result

NAME = "test_hostile_guest.py::test_a_forced_eject_with_a_request_in_flight[q35-pcie]"
PROSE = "the guest ejects the slot while the worker thread of QEMU still waits in preadv"


def table(*rows: tuple[str, str]) -> Table:
    made = Table("name", "why", title="findings")
    for row in rows or [(NAME, PROSE), ("short", "漢字 too")]:
        made.add_row(*map(escape, row))
    return made


def lines(shown: Table, width: int) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=width)
    tables.put(shown, console)
    assert console.width == width
    return out.getvalue().splitlines()


def words(shown: list[str], column: int) -> list[str]:
    """The words in a column, from top to bottom."""
    rows = [line.split("│") for line in shown if line.startswith("│")]
    return [word for row in rows for word in row[column].split()]


@pytest.mark.parametrize("width", [1, 40, 100, 130, 1000])
def test_no_word_is_cut_at_any_width(width: int) -> None:
    shown = lines(table(), width)
    assert words(shown, 1) == [NAME, "short"]
    assert words(shown, 2) == [*PROSE.split(), "漢字", "too"]


@pytest.mark.parametrize("width", [100, 110, 120, 130])
def test_a_table_that_fits_is_not_wider_than_the_terminal(width: int) -> None:
    assert max(map(cell_len, lines(table(), width))) <= width


def test_prose_stays_readable_where_a_name_is_wider_than_the_terminal() -> None:
    rows = [line for line in lines(table((NAME, PROSE)), 60) if line.startswith("│")]
    assert len(rows) == 3, "of 40 characters each"


def test_a_column_that_does_not_wrap_stays_on_one_line() -> None:
    made = Table(Column("seen", no_wrap=True), "test")
    made.add_row("R1: seen broken on 10.2.3, range unknown", escape(NAME))
    assert "R1: seen broken on 10.2.3, range unknown" in "\n".join(lines(made, 60))


def test_a_table_can_be_printed_at_two_widths() -> None:
    made = table()
    lines(made, 40)
    assert lines(made, 300) == lines(table(), 300)


def test_in_a_pipe_each_row_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    tables.show(table(), table(("a :bug: b", "c")))
    out = capsys.readouterr().out
    (line,) = (line for line in out.splitlines() if NAME in line)
    assert PROSE in line
    assert "a :bug: b" in out, "an emoji code is not replaced"


def test_a_table_goes_to_stderr_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    tables.show(table(), stderr=True)
    captured = capsys.readouterr()
    assert (captured.out, NAME in captured.err) == ("", True)


def _timed(seconds: float) -> Run:
    return Run(results=(result(NAME, seconds=seconds, leaks={"fds": seconds}),))


def every_table() -> Iterator[Table]:
    results = [
        result(NAME, outcome=outcome, why=PROSE, bug="R1", range_unknown="R1") for outcome in list(Outcome)
    ]
    a, b = Run(results=tuple(results)), Run(results=(result(NAME, seconds=20.0, leaks={"fds": 1.0}),))
    runs = [[_timed(start + number) for number in range(4)] for start in (20.0, 50.0)]
    yield from summary.tables(a)
    yield from comparison.tables(comparison.pairs([a], [b]), NAME, "10.0")
    yield from comparison.tables(comparison.pairs(*runs), NAME, "10.0")


@pytest.mark.parametrize("width", [40, 80, 160])
def test_the_summary_and_the_comparison_are_whole(width: int) -> None:
    titles = []
    for shown in every_table():
        text = "\n".join(lines(shown, width))
        titles.append(shown.title)
        assert "…" not in text
        if shown.title not in ("7.2 (7.2.22), Linux 6.1.0", "skipped"):
            assert NAME in text, shown.title
    assert len(titles) == 7
