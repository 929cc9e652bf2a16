"""The summary of a run: its tables, its files, and the joining of shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from harness.errors import UsageError
from harness.report import summary
from harness.report.summary import NO_QEMU, Outcome, Result, Run, Shard, Wanted


def result(test: str = "t", **fields: Any) -> Result:
    given = {"guarantee": "no leak", "qemu": "7.2", "version": "7.2.22", "kernel": "6.1.0", "machine": "pc"}
    return Result(test=test, **{**given, "outcome": Outcome.PASSED, **fields})


def _shown(run: Run) -> str:
    console = Console(width=200, record=True)
    for table in summary.tables(run):
        console.print(table)
    return console.export_text()


def test_one_qemu_has_a_column_for_each_machine_type() -> None:
    run = Run(results=(result("a"), result("b", machine="q35"), result("c", machine="q35")))
    shown = _shown(run)
    assert "7.2 (7.2.22), Linux 6.1.0" in shown
    (row,) = (line for line in shown.splitlines() if "no leak" in line)
    assert row.split("│")[2:4] == [" 1 passed ", " 2 passed "]


def test_several_qemus_have_a_column_each() -> None:
    run = Run(results=(result("a"), result("b", qemu="10.0", version="10.0.13")))
    shown = _shown(run)
    assert "7.2 (7.2.22)" in shown
    assert "10.0 (10.0.13)" in shown


def test_a_cell_counts_every_outcome() -> None:
    results = (
        result("a"),
        result("b", outcome=Outcome.KNOWN, bug="R1"),
        result("c", outcome=Outcome.KNOWN, bug="R2"),
        result("d", outcome=Outcome.FAILED, why="killed by SIGSEGV [red]"),
        result("e", outcome=Outcome.FIXED, why="R3 is gone"),
        result("f", outcome=Outcome.SKIPPED, why="no file: URIs"),
    )
    shown = _shown(Run(results=results))
    for words in ("1 passed", "2 known bugs (R1 R2)", "1 new failure", "1 fixed", "1 skipped"):
        assert words in shown
    assert "killed by SIGSEGV [red]" in shown
    assert "R3 is gone" in shown
    assert "no file: URIs" in shown


def test_a_bug_of_unknown_status_has_a_row() -> None:
    results = (
        result("a", range_unknown="R1"),
        result("b", outcome=Outcome.KNOWN, bug="R2", range_unknown="R1 R2"),
        result("c", outcome=Outcome.FAILED, why="something else", range_unknown="R3"),
        result("d", outcome=Outcome.SKIPPED, why="not here", range_unknown="R3"),
    )
    shown = _shown(Run(results=results))
    assert "R1: not seen on 7.2.22, range unknown" in shown
    assert "R2: seen broken on 7.2.22, range unknown" in shown
    assert shown.count("range unknown") == 2, "a skip and another failure do not show whether it is there"


def test_a_summary_is_read_as_it_was_written(tmp_path: Path) -> None:
    run = Run(results=(result(leaks={"fds": 1.0}),), shard=Shard(index=1, count=2, collected="x", tests=1))
    summary.write(run, tmp_path / "new")
    assert summary.read(tmp_path / "new") == run
    assert summary.read(tmp_path / "new" / summary.NAME) == run


@pytest.mark.parametrize("content", [None, "{", '{"results": [{}]}'])
def test_a_file_that_is_not_a_summary_gives_one_line(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / summary.NAME).write_text(content)
    with pytest.raises(UsageError, match=str(tmp_path / summary.NAME)) as caught:
        summary.read(tmp_path)
    assert "\n" not in caught.value.message


def _shard(index: int, *tests: str, count: int = 2, collected: str = "x", of: int | None = None) -> Run:
    shard = Shard(index=index, count=count, collected=collected, tests=len(tests) if of is None else of)
    return Run(results=tuple(result(test) for test in tests), shard=shard)


def test_shards_are_joined_to_one_run() -> None:
    joined = summary.merge([("two", _shard(2, "b")), ("one", _shard(1, "a", "c"))])
    assert [result.test for result in joined.results] == ["a", "b", "c"]
    assert joined.shard is None


def test_a_shard_whose_machine_died_is_the_only_one_to_run_again() -> None:
    runs = [(f"part{index}", _shard(index, f"t{index}", count=64)) for index in range(1, 65) if index != 17]
    with pytest.raises(UsageError) as refused:
        summary.merge(runs, ["part17/matrix.json: cannot be read: No such file or directory"])
    assert refused.value.message == (
        "shards missing: 17/64 (part17/matrix.json: cannot be read: No such file or directory; run again "
        "with --shard 17/64; the other shards need not run again)"
    )
    again = ("again", _shard(17, "t17", count=64))
    assert len(summary.merge([*runs, again]).results) == 64


def test_nothing_that_can_be_read_is_no_run() -> None:
    with pytest.raises(UsageError, match="a: cannot be read; b: cannot be read"):
        summary.merge([], ["a: cannot be read", "b: cannot be read"])


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        ([_shard(1, "a")], "shards missing: 2/2"),
        ([_shard(1, "a"), _shard(1, "b")], "shard 1/2 was already given: run0"),
        ([_shard(1, "a"), _shard(2, "b", collected="y")], "run1: shard 2/2 is of another run than run0"),
        ([_shard(1, "a"), _shard(2, "b", count=3)], "is of another run"),
        (
            [_shard(1, "a"), _shard(2, "b", of=3)],
            "shards missing: 2/2 .run1: only 1 of its 3 tests ran; run again",
        ),
        ([_shard(1, "a"), Run(results=())], "run1: not a shard"),
        ([Run(results=())], "run0: not a shard"),
    ],
)
def test_shards_that_are_not_one_run_are_refused(runs: list[Run], words: str) -> None:
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
def test_one_test_that_is_not_skipped_asserts_a_guarantee(outcomes: list[Outcome], named: bool) -> None:
    run = Run(results=tuple(result(str(n), outcome=o, why="why") for n, o in enumerate(outcomes)))
    gaps = [str(gap) for gap in run.not_asserted]
    text = "not asserted: no leak on 7.2 (7.2.22), Linux 6.1.0 (why: 2 skipped: why)"
    assert gaps == ([text] if named else [])


def test_a_test_without_a_qemu_does_not_count() -> None:
    """Such as a user's test beside the scenarios, which is skipped."""
    own = result("own", qemu=NO_QEMU, version="", kernel="", outcome=Outcome.SKIPPED, why="not today")
    assert Run(results=(result("a"), own)).not_asserted == ()


def test_a_guarantee_has_to_be_asserted_on_each_qemu() -> None:
    skipped = result("b", qemu="10.0", version="10.0.13", outcome=Outcome.SKIPPED)
    (gap,) = Run(results=(result("a"), skipped)).not_asserted
    assert gap.on == "10.0 (10.0.13), Linux 6.1.0"
    assert gap.why == "1 skipped: no reason given"


def test_a_selected_guarantee_that_did_not_run_is_not_asserted(tmp_path: Path) -> None:
    refusal = Wanted(guarantee="refusal", qemu="7.2", version="7.2.22", tests=3)
    run = Run(results=(result(),), wanted=(refusal.model_copy(update={"guarantee": "no leak"}), refusal))
    (gap,) = run.not_asserted
    assert str(gap) == "not asserted: refusal on 7.2 (7.2.22) (why: none of 3 ran)"
    summary.write(run, tmp_path)
    assert summary.read(tmp_path).not_asserted == (gap,)


def test_the_summary_of_an_older_run_can_be_read(tmp_path: Path) -> None:
    content = Run(results=(result(),)).model_dump(mode="json", exclude={"wanted", "not_asserted"})
    (tmp_path / summary.NAME).write_text(json.dumps(content))
    assert summary.read(tmp_path).not_asserted == ()


def test_a_failure_that_was_run_again_says_how_often_it_was_seen() -> None:
    def again(outcome: Outcome, signature: str) -> summary.Again:
        return summary.Again(outcome=outcome, signature=signature, seconds=2.0, load=0.5)

    failed = Result(
        test="t", guarantee="g", qemu="7.2", outcome=Outcome.FAILED, signature="a", seconds=1.0, load=9.0
    )
    same = failed.model_copy(update={"again": (again(Outcome.FAILED, "a"),) * 3})
    flaky = failed.model_copy(update={"again": (again(Outcome.PASSED, ""), again(Outcome.FAILED, "b"))})
    assert (failed.runs, same.runs, flaky.runs) == ("", "4 of 4", "2 of 3")
    assert [one.flaky for one in (failed, same, flaky)] == [False, False, True]
    assert summary.differences(flaky) == (
        "outcomes: new failure, passed, new failure; load: 9.0, 0.5, 0.5; seconds: 1.0, 2.0, 2.0; "
        "signatures: a; b"
    )
