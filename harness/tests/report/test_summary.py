"""The summary of a run: its table, its files, and the joining of shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from harness.errors import UsageError
from harness.report import summary
from harness.report.summary import NO_QEMU, Outcome, Result, Run, Shard, Wanted


def result(test: str = "t", **said: Any) -> Result:
    given = {"guarantee": "no leak", "qemu": "7.2", "version": "7.2.22", "kernel": "6.1.0", "machine": "pc"}
    return Result(test=test, **{**given, "outcome": Outcome.PASSED, **said})


def _shown(run: Run) -> str:
    console = Console(width=200, record=True)
    for table in summary.tables(run):
        console.print(table)
    return console.export_text()


def test_one_qemu_is_shown_by_machine_type() -> None:
    run = Run(results=(result("a"), result("b", machine="q35"), result("c", machine="q35")))
    shown = _shown(run)
    assert "7.2 (7.2.22), Linux 6.1.0" in shown
    (row,) = (line for line in shown.splitlines() if "no leak" in line)
    assert row.split("│")[2:4] == [" 1 passed ", " 2 passed "]


def test_several_are_shown_side_by_side() -> None:
    run = Run(results=(result("a"), result("b", qemu="10.0", version="10.0.13")))
    shown = _shown(run)
    assert "7.2 (7.2.22)" in shown
    assert "10.0 (10.0.13)" in shown


def test_a_cell_says_everything_that_happened_in_it() -> None:
    results = (
        result("a"),
        result("b", outcome=Outcome.KNOWN, bug="R1"),
        result("c", outcome=Outcome.KNOWN, bug="R2"),
        result("d", outcome=Outcome.FAILED, why="killed by SIGSEGV [red]"),
        result("e", outcome=Outcome.FIXED, why="R3 is gone"),
        result("f", outcome=Outcome.SKIPPED, why="no file: URIs"),
    )
    shown = _shown(Run(results=results))
    for words in ("1 passed", "2 known bug (R1 R2)", "1 new failure", "1 fixed", "1 skipped"):
        assert words in shown
    assert "killed by SIGSEGV [red]" in shown
    assert "R3 is gone" in shown
    assert "no file: URIs" in shown


def test_what_was_seen_where_the_ledger_knows_nothing_is_a_line() -> None:
    results = (
        result("a", range_unknown="R1"),
        result("b", outcome=Outcome.KNOWN, bug="R2", range_unknown="R1 R2"),
        result("c", outcome=Outcome.FAILED, why="something else", range_unknown="R3"),
        result("d", outcome=Outcome.SKIPPED, why="not here", range_unknown="R3"),
    )
    shown = _shown(Run(results=results))
    assert "R1: not seen on 7.2.22, range unknown" in shown
    assert "R2: seen broken on 7.2.22, range unknown" in shown
    assert shown.count("range unknown") == 2, "what failed otherwise, or was skipped, has seen nothing of it"


def test_what_is_written_can_be_read(tmp_path: Path) -> None:
    run = Run(results=(result(leaks={"fds": 1.0}),), shard=Shard(index=1, count=2, collected="x", tests=1))
    summary.write(run, tmp_path / "new")
    assert summary.read(tmp_path / "new") == run
    assert summary.read(tmp_path / "new" / summary.NAME) == run
    assert "7.2.22" in (tmp_path / "new" / summary.PAGE).read_text()


@pytest.mark.parametrize("content", [None, "{", '{"results": [{}]}'])
def test_what_is_no_summary_is_one_line(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / summary.NAME).write_text(content)
    with pytest.raises(UsageError, match=str(tmp_path / summary.NAME)) as caught:
        summary.read(tmp_path)
    assert "\n" not in caught.value.message


def _shard(index: int, *tests: str, count: int = 2, collected: str = "x", of: int | None = None) -> Run:
    shard = Shard(index=index, count=count, collected=collected, tests=len(tests) if of is None else of)
    return Run(results=tuple(result(test) for test in tests), shard=shard)


def test_shards_become_one_run() -> None:
    joined = summary.merge([("two", _shard(2, "b")), ("one", _shard(1, "a", "c"))])
    assert [result.test for result in joined.results] == ["a", "b", "c"]
    assert joined.shard is None


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        ([_shard(1, "a")], "shards missing: 2/2"),
        ([_shard(1, "a"), _shard(1, "b")], "shard 1/2 is there already: run0"),
        ([_shard(1, "a"), _shard(2, "b", collected="y")], "run1: shard 2/2 is of another run than run0"),
        ([_shard(1, "a"), _shard(2, "b", count=3)], "is of another run"),
        ([_shard(1, "a"), _shard(2, "b", of=3)], "run1: only 1 of its 3 tests ran"),
        ([_shard(1, "a"), Run(results=())], "run1: not a shard"),
        ([Run(results=())], "run0: not a shard"),
    ],
)
def test_anything_else_is_refused(runs: list[Run], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        summary.merge([(f"run{number}", run) for number, run in enumerate(runs)])


@pytest.mark.parametrize(
    ("outcomes", "named"),
    [
        ([Outcome.SKIPPED, Outcome.SKIPPED], True),
        ([Outcome.SKIPPED, Outcome.PASSED], False),
        ([Outcome.SKIPPED, Outcome.FAILED], False),
        ([Outcome.SKIPPED, Outcome.KNOWN], False),
        ([Outcome.SKIPPED, Outcome.FIXED], False),
        ([], False),
    ],
)
def test_a_guarantee_is_asserted_by_one_test_that_was_judged(outcomes: list[Outcome], named: bool) -> None:
    run = Run(results=tuple(result(str(n), outcome=o, why="why") for n, o in enumerate(outcomes)))
    gaps = [str(gap) for gap in run.not_asserted]
    text = "not asserted: no leak on 7.2 (7.2.22), Linux 6.1.0 (why: 2 skipped: why)"
    assert gaps == ([text] if named else [])


def test_a_test_without_a_qemu_is_to_assert_nothing() -> None:
    """Such as a user's own beside the scenarios, which skips."""
    own = result("own", qemu=NO_QEMU, version="", kernel="", outcome=Outcome.SKIPPED, why="not today")
    assert Run(results=(result("a"), own)).not_asserted == ()


def test_it_is_asserted_on_each_qemu_or_named() -> None:
    skipped = result("b", qemu="10.0", version="10.0.13", outcome=Outcome.SKIPPED)
    (gap,) = Run(results=(result("a"), skipped)).not_asserted
    assert gap.on == "10.0 (10.0.13), Linux 6.1.0"
    assert gap.why == "1 skipped: no reason given"


def test_what_was_wanted_and_did_not_run_is_named(tmp_path: Path) -> None:
    refusal = Wanted(guarantee="refusal", qemu="7.2", version="7.2.22", tests=3)
    run = Run(results=(result(),), wanted=(refusal.model_copy(update={"guarantee": "no leak"}), refusal))
    (gap,) = run.not_asserted
    assert str(gap) == "not asserted: refusal on 7.2 (7.2.22) (why: none of 3 ran)"
    summary.write(run, tmp_path)
    assert summary.read(tmp_path).not_asserted == (gap,)
    assert "none of 3 ran" in (tmp_path / summary.PAGE).read_text()


def test_the_summary_of_an_older_run_can_be_read(tmp_path: Path) -> None:
    content = Run(results=(result(),)).model_dump(mode="json", exclude={"wanted", "not_asserted"})
    (tmp_path / summary.NAME).write_text(json.dumps(content))
    assert summary.read(tmp_path).not_asserted == ()
