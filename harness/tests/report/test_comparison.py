from __future__ import annotations

import random

from rich.console import Console

from harness.report import comparison
from harness.report.summary import Outcome, Result, Run
from harness.tests.report.test_summary import result


def _run(*results: Result) -> Run:
    return Run(results=results)


def _pairs(a: Run, b: Run) -> list[comparison.Pair]:
    return comparison.pairs([a], [b])


def _on(qemu: str, scenario: str, **fields: object) -> Result:
    return result(f"{scenario}[{qemu}]", scenario=scenario, qemu=qemu, version=qemu, **fields)


def test_two_qemus_are_compared_scenario_by_scenario() -> None:
    a, b = _run(_on("7.2", "s"), _on("7.2", "gone")), _run(_on("10.0", "s"), _on("10.0", "new"))
    found = {pair.scenario: pair for pair in _pairs(a, b)}
    assert list(found) == ["s", "gone", "new"]
    assert not found["s"].changed
    assert found["gone"].changed
    assert found["gone"].b == ()
    assert found["new"].a == ()
    assert not any(pair.worse for pair in found.values())


def test_each_of_several_qemus_is_compared_with_itself() -> None:
    run = _run(_on("7.2", "s"), _on("10.0", "s", outcome=Outcome.FAILED))
    found = _pairs(run, run)
    assert len(found) == 2
    assert not any(pair.changed for pair in found)


def test_a_failure_only_on_b_is_worse() -> None:
    failed = _on("B", "s", outcome=Outcome.FAILED, why="killed by SIGSEGV")
    (pair,) = _pairs(_run(_on("A", "s")), _run(failed))
    assert pair.worse
    assert pair.changed
    (back,) = _pairs(_run(failed), _run(_on("A", "s")))
    assert not back.worse
    (both,) = _pairs(_run(failed), _run(failed))
    assert not both.worse


def test_another_known_bug_is_a_change() -> None:
    (pair,) = _pairs(
        _run(_on("A", "s", outcome=Outcome.KNOWN, bug="R1")),
        _run(_on("B", "s", outcome=Outcome.KNOWN, bug="R2")),
    )
    assert pair.changed


def _timed(qemu: str, rounds: int, factor: float = 1.0, tests: int = 20) -> list[Run]:
    """Runs of some tests, of which the first takes ``factor`` times as long."""
    rng = random.Random(qemu)
    return [
        _run(
            *(
                _on(
                    qemu,
                    f"s{test}",
                    seconds=(1 + test % 5) * (factor if test == 0 else 1) * rng.lognormvariate(0, 0.1),
                )
                for test in range(tests)
            )
        )
        for _ in range(rounds)
    ]


def test_with_enough_runs_a_test_decides_whose_time_differs() -> None:
    found = comparison.pairs(_timed("A", 7), _timed("B", 7, 1.5))
    seen = comparison.times(found)
    assert (seen.tests, seen.runs, seen.needed) == (20, 7, 6)
    assert [one.scenario for one in seen.different] == ["s0"]
    assert seen.untested == ()
    assert len(list(seen.lines("A", "B"))) == 1
    same = comparison.times(comparison.pairs(_timed("A", 7), _timed("B", 7)))
    assert same.different == ()
    assert same.p > 0.05
    assert "may be chance" in next(same.lines("A", "B"))


def test_one_run_each_says_what_it_cannot_know() -> None:
    seen = comparison.times(comparison.pairs(_timed("A", 1), _timed("B", 1, 9.0)))
    assert seen.different == ()
    assert [one.scenario for one in seen.untested] == ["s0"]
    _, line = seen.lines("A", "B")
    assert line == (
        "times: one run of each cannot show that a single scenario differs; "
        "for 20 scenarios it takes 6 (--rounds 6)"
    )


def test_one_run_each_shows_that_all_together_are_slower() -> None:
    slower = [_on("B", f"s{n}", seconds=1.3 * (n + 1) * (1 + n % 3 / 50)) for n in range(20)]
    seen = comparison.times(
        _pairs(_run(*(_on("A", f"s{n}", seconds=n + 1.0) for n in range(20))), _run(*slower))
    )
    assert seen.p < 0.001
    line, _ = seen.lines("A", "B")
    assert line.startswith(
        "times: the median of 20 scenarios takes 1.33 times as long on B as on A (p = 1.9e-06"
    )


def test_without_a_scenario_that_passed_on_both_sides_times_say_nothing() -> None:
    seen = comparison.times(_pairs(_run(_on("A", "s")), _run()))
    assert list(seen.lines("A", "B")) == ["times: no scenario passed on both sides"]


def test_outcomes_of_several_runs_are_counted() -> None:
    good, bad = _run(_on("B", "s")), _run(_on("B", "s", outcome=Outcome.FAILED, why="it broke"))
    (pair,) = comparison.pairs([_run(_on("A", "s"))], [good, bad, good])
    assert pair.worse
    assert pair.changed
    console = Console(width=160, record=True)
    console.print(comparison.tables([pair], "A", "B")[0])
    shown = console.export_text()
    assert "2 passed, 1 new failure" in shown
    assert "it broke" in shown


def test_slopes_of_several_runs_are_tested() -> None:
    def leaky(qemu: str, slope: float) -> list[Run]:
        return [_run(_on(qemu, "s", leaks={"fds": slope + n / 1000})) for n in range(5)]

    (one,) = comparison.slopes(comparison.pairs(leaky("A", 0.0), leaky("B", 0.03)))
    assert one.name == "fds", "less than 0.05, but in each of five runs"
    assert comparison.slopes(comparison.pairs(leaky("A", 0.0), leaky("B", 0.0))) == []
    assert comparison.slopes(comparison.pairs(leaky("A", 0.0)[:1], leaky("B", 0.03)[:1])) == []


def test_the_tables_list_only_differences() -> None:
    a = _run(_on("A", "same"), _on("A", "leaky", leaks={"fds": 0.0, "threads": 0.01}))
    b = _run(
        _on("B", "same"),
        _on("B", "leaky", leaks={"fds": 1.0, "threads": 0.02}),
        _on("B", "new", outcome=Outcome.FAILED, why="a [bold]reason"),
    )
    console = Console(width=160, record=True)
    for table in comparison.tables(_pairs(a, b), "A", "B"):
        console.print(table)
    shown = console.export_text()
    assert "same" not in shown
    assert "threads" not in shown
    assert "+1.00" in shown
    assert "a [bold]reason" in shown
    assert comparison.tables(_pairs(a, a), "A", "A") == []
