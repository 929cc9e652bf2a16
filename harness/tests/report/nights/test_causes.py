"""Failures that began together are one cause, and what is said of it is said once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from harness.artifacts import HISTORY
from harness.report.nights import text
from harness.report.nights.causes import Cause, causes
from harness.report.nights.history import Entry
from harness.report.nights.regressions import failures
from harness.report.nights.report import as_data, report
from harness.tests.report.nights.stories import PLACE, again, history, story, with_new_qemu

DIED = "qemu_alive | QEMU was killed by SIGSEGV"


def failing(name: str, signature: str, guarantee: str = "no leak", outcomes: str = "pppF") -> list[Entry]:
    """A test that fails in its last night, on a new build of QEMU, each time that it is run."""
    entries = story(outcomes, {len(outcomes) - 1: with_new_qemu}, replace(PLACE, test=f"t.py::{name}"))
    last = entries[-1]
    result = replace(last.result, signature=signature, cause=f"it broke: {name}", guarantees=(guarantee,))
    entries[-1] = again(replace(last, result=result), "FFF")
    return entries


def found(*stories: Sequence[Entry]) -> tuple[Cause, ...]:
    return causes(failures(history(*stories), None).new)


def names(of: Sequence[Cause]) -> list[list[str]]:
    return [[entry.place.test.removeprefix("t.py::") for entry in one.entries] for one in of]


def test_other_messages_of_one_guarantee_and_one_night_are_one_cause() -> None:
    seen = found(failing("a", "no leak | x"), failing("b", "no leak | y"), failing("c", "no leak | y"))
    assert names(seen) == [["b", "c", "a"]], "the most certain first"
    (one,) = seen
    assert [len(way.entries) for way in one.ways] == [2, 1]
    assert (one.reliability.failures, one.reliability.attempts, one.is_confirmed) == (12, 12, True)
    assert one.guarantees == ("no leak",)


@pytest.mark.parametrize(
    "other",
    [
        failing("b", "no harm | y", guarantee="no harm"),
        failing("b", f"{DIED} | v9fs_clunk"),
        failing("b", "no leak | y", outcomes="ppsF"),
        [replace(one, place=replace(one.place, qemu="10.0")) for one in failing("b", "no leak | y")],
        [*failing("b", "no leak | y")[:-1], again(failing("b", "no leak | y")[-1], "pFp")],
    ],
    ids=["guarantee", "crash", "last good night", "QEMU", "only sometimes"],
)
def test_what_differs_otherwise_is_another_cause(other: Sequence[Entry]) -> None:
    assert len(found(failing("a", "no leak | x"), other)) == 2


def test_an_error_of_the_host_is_another_cause_and_comes_last() -> None:
    host = failing("b", "no leak | y")
    error = replace(host[-1].result, cause="SetupError: no space left on device")
    host[-1] = replace(host[-1], result=error)
    assert names(found(host, failing("a", "no leak | x"))) == [["a"], ["b"]]


def test_one_backtrace_is_one_cause_whatever_the_tests_assert() -> None:
    frames = "v9fs_device_unrealize_common | virtio_9p_device_unrealize"
    stop, reset = f"{DIED} (last QMP command: stop)", f"{DIED} (last QMP command: system_reset)"
    first = failing("a", f"{stop} | {frames}")
    second = failing("b", f"{reset} | {frames}", guarantee="no harm")
    assert names(found(first, second)) == [["a", "b"]]
    assert len(found(first, failing("b", f"{stop} | v9fs_reset", guarantee="no harm"))) == 2


def test_more_tests_are_more_certain() -> None:
    """Of two causes that each come every time, the one that more runs have shown is first."""
    few = failing("a", "no harm | x", guarantee="no harm")
    many = [failing(name, f"no leak | {name}") for name in "bc"]
    assert names(found(few, *many)) == [["b", "c"], ["a"]]


def test_the_text_has_the_evidence_once_a_cause(tmp_path: Path) -> None:
    stories = [failing(f"test_{number}", f"no leak | {number}") for number in range(7)]
    kept = stories[3][-1]
    (tmp_path / HISTORY).touch()
    stories[3][-1] = replace(kept, result=replace(kept.result, artefacts=str(tmp_path)))
    lines = list(text.lines(report(history(*stories))))
    assert "NEW FAILURES: 7 tests, probably 1 cause" in lines
    labels = [line.split()[0] for line in lines if line.startswith("     ") and line[5] != " "]
    once = ("guarantee", "certainty", "first", "last", "changed", "on", "tests", "otherwise", "bisect")
    assert labels == [*once[:-1], "artefacts", "timeline", "replay", "bisect"]
    assert f"     timeline    harness timeline {tmp_path}" in lines, "of the test whose folder exists"
    assert any(line.endswith("it broke: test_2  (1 test)") for line in lines)
    assert any(line.endswith("and 2 other messages") for line in lines)


def test_the_data_has_each_message_of_a_cause() -> None:
    data = as_data(report(history(failing("a", "no leak | x"), failing("b", "no leak | y"))))
    (one,) = data["new"]
    assert [way["signature"] for way in one["ways"]] == ["no leak | x", "no leak | y"]
    assert (len(one["tests"]), one["guarantees"]) == (2, ["no leak"])
    assert one["again"]["attempts"] == 8


def test_failures_that_ended_together_are_one_report() -> None:
    ended = [
        [*failing(name, f"no leak | {name}"), *story("ppppp", {}, replace(PLACE, test=f"t.py::{name}"))[4:]]
        for name in "ab"
    ]
    (one,) = failures(history(*ended), None).ended
    assert (len(one.entries), one.signatures) == (2, ("no leak | a", "no leak | b"))
    shown = list(text.lines(report(history(*ended))))
    assert "FIXED: 2 tests" in shown
    assert "     otherwise   1 other message" in shown
