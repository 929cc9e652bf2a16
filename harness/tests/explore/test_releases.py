"""Bisection over releases: the table, the changes, and the ranges for the ledger."""

from __future__ import annotations

import tomllib

import pytest

from harness.errors import UsageError
from harness.explore.candidate import Verdict
from harness.explore.observations import Answer, Observation
from harness.explore.releases import run_all
from harness.report.ledger import Bug

VERSIONS = {"7.2": "7.2.22", "5.2": "5.2.0", "11.1": "11.1.3", "10.0": "10.0.13", "10.0.2": "10.0.2"}
ENTRY = {
    "id": "R0",
    "guarantee": "no leak",
    "title": "a title",
    "failure": "leak",
    "evidence": "seen",
    "scenarios": ["test_leak.py::test_plug"],
}


def fails_on(*names: str) -> dict[str, list[Observation]]:
    return {name: [Observation(Answer.BAD, "leak")] for name in names}


def test_the_oldest_is_first_and_the_ranges_are_those_that_were_run() -> None:
    answers = fails_on("7.2", "10.0.2")
    found = run_all(VERSIONS, lambda name: answers.get(name, [Observation(Answer.GOOD)])[0])
    assert [str(one) for one in found.results] == [
        *("5.2 (5.2.0)", "7.2 (7.2.22)", "10.0.2", "10.0 (10.0.13)", "11.1 (11.1.3)"),
    ]
    assert [(one.name, other.name) for one, other in found.changes()] == [("5.2", "7.2"), ("10.0.2", "10.0")]
    assert found.signature == "leak"
    assert found.confidence > 0.95
    entry = tomllib.loads(found.ledger())
    assert entry == {
        "affected": [">=7.2.22,<=10.0.2"],
        "unaffected": ["==5.2.0", ">=10.0.13,<=11.1.3"],
        "seen_broken": ["7.2.22", "10.0.2"],
        "seen_fixed": ["5.2.0", "10.0.13", "11.1.3"],
    }
    Bug.model_validate({**ENTRY, **entry})


def test_a_flaky_program_gets_more_runs_where_it_passes() -> None:
    runs: dict[str, int] = {}

    def ask(name: str) -> Observation:
        runs[name] = runs.get(name, 0) + 1
        return (
            Observation(Answer.BAD, "leak") if name == "7.2" and runs[name] % 2 else Observation(Answer.GOOD)
        )

    found = run_all(VERSIONS, ask)
    assert [one.verdict for one in found.results].count(Verdict.BAD) == 1
    assert runs["7.2"] == 10
    assert runs["11.1"] > 6
    assert found.confidence > 0.95


def test_what_cannot_be_judged_is_skipped() -> None:
    answers = {
        **fails_on("7.2"),
        "5.2": [Observation(Answer.SKIP, "no property")],
        "11.1": [Observation(Answer.BAD, "another")],
    }
    found = run_all(VERSIONS, lambda name: answers.get(name, [Observation(Answer.GOOD)])[0])
    verdicts = {one.name: (one.verdict, one.tally.skip) for one in found.results}
    assert verdicts["5.2"] == (Verdict.SKIPPED, "no property")
    assert verdicts["11.1"] == (Verdict.SKIPPED, "fails otherwise: another")
    assert [(one.name, other.name) for one, other in found.changes()] == [("7.2", "10.0.2")]
    assert tomllib.loads(found.ledger())["unaffected"] == [">=10.0.2,<=10.0.13"]


def test_where_none_can_be_judged_nothing_is_good() -> None:
    """Otherwise it would be said to fail on none of them."""
    with pytest.raises(
        UsageError, match=r"^none of these QEMUs can be judged; 11\.1 \(11\.1\.3\): no property$"
    ):
        run_all(VERSIONS, lambda name: Observation(Answer.SKIP, "no property"))


def test_a_program_that_fails_nowhere() -> None:
    found = run_all(VERSIONS, lambda name: Observation(Answer.GOOD))
    assert {one.tally.passed for one in found.results} == {10}
    assert (list(found.changes()), found.signature) == ([], "")
