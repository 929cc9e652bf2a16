from __future__ import annotations

from rich.console import Console

from harness.report import comparison
from harness.report.summary import Outcome, Result, Run
from harness.tests.report.test_summary import result


def _run(*results: Result) -> Run:
    return Run(results=results)


def _on(qemu: str, scenario: str, **fields: object) -> Result:
    return result(f"{scenario}[{qemu}]", scenario=scenario, qemu=qemu, version=qemu, **fields)


def test_two_qemus_are_compared_scenario_by_scenario() -> None:
    a, b = _run(_on("7.2", "s"), _on("7.2", "gone")), _run(_on("10.0", "s"), _on("10.0", "new"))
    found = {pair.scenario: pair for pair in comparison.pairs(a, b)}
    assert list(found) == ["s", "gone", "new"]
    assert not found["s"].changed
    assert found["gone"].changed
    assert found["gone"].b is None
    assert found["new"].a is None
    assert not any(pair.worse for pair in found.values())


def test_each_of_several_qemus_is_compared_with_itself() -> None:
    run = _run(_on("7.2", "s"), _on("10.0", "s", outcome=Outcome.FAILED))
    found = comparison.pairs(run, run)
    assert len(found) == 2
    assert not any(pair.changed for pair in found)


def test_a_failure_only_on_b_is_worse() -> None:
    failed = _on("B", "s", outcome=Outcome.FAILED, why="killed by SIGSEGV")
    (pair,) = comparison.pairs(_run(_on("A", "s")), _run(failed))
    assert pair.worse
    assert pair.changed
    (back,) = comparison.pairs(_run(failed), _run(_on("A", "s")))
    assert not back.worse
    (both,) = comparison.pairs(_run(failed), _run(failed))
    assert not both.worse


def test_another_known_bug_is_a_change() -> None:
    (pair,) = comparison.pairs(
        _run(_on("A", "s", outcome=Outcome.KNOWN, bug="R1")),
        _run(_on("B", "s", outcome=Outcome.KNOWN, bug="R2")),
    )
    assert pair.changed


def test_slower_means_more_than_the_usual_variation() -> None:
    def slower(a: float, b: float) -> bool:
        (pair,) = comparison.pairs(_run(_on("A", "s", seconds=a)), _run(_on("B", "s", seconds=b)))
        return pair.slower

    assert slower(4.0, 8.0)
    assert not slower(8.0, 4.0)
    assert not slower(0.5, 1.5), "less than two seconds"
    assert not slower(30.0, 35.0), "less than half as long again"


def test_the_tables_list_only_differences() -> None:
    a = _run(
        _on("A", "same"), _on("A", "leaky", leaks={"fds": 0.0, "threads": 0.01}), _on("A", "slow", seconds=1)
    )
    b = _run(
        _on("B", "same"),
        _on("B", "leaky", leaks={"fds": 1.0, "threads": 0.02}),
        _on("B", "slow", seconds=9),
        _on("B", "new", outcome=Outcome.FAILED, why="a [bold]reason"),
    )
    console = Console(width=160, record=True)
    for table in comparison.tables(comparison.pairs(a, b), "A", "B"):
        console.print(table)
    shown = console.export_text()
    assert "same" not in shown
    assert "threads" not in shown
    assert "+1.00" in shown
    assert "9.0 s" in shown
    assert "a [bold]reason" in shown
    assert comparison.tables(comparison.pairs(a, a), "A", "A") == []
