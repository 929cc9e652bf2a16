"""Runs and results that the tests make up, in the place of pytest's."""

from __future__ import annotations

from harness.guarantees import of_test
from harness.report.summary import Outcome, Result, Run


def run(**outcomes: Outcome) -> Run:
    """A run of ``test_leak.py`` on ``pc``: the outcome of each test, which took two seconds."""
    return Run(results=tuple(result(f"test_leak.py::{name}[pc]", one) for name, one in outcomes.items()))


def result(scenario: str, outcome: Outcome, seconds: float = 2.0) -> Result:
    """The result of a scenario in ``scenarios/`` on QEMU 7.2."""
    before, _, after = scenario.partition("[")
    return Result(
        test=f"scenarios/{before}[7.2-default-{after}",
        scenario=f"scenarios/{scenario}",
        guarantee=of_test(scenario) or "",
        qemu="7.2",
        outcome=outcome,
        why="leak: fds" if outcome is Outcome.FAILED else "",
        seconds=seconds,
    )
