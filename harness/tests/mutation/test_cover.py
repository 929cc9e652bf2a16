"""The cheapest set of scenarios that catches every fault."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.mutation import cover
from harness.mutation.cover import cheapest_cover
from harness.mutation.detection import Detection, Measured, OnQemu
from harness.mutation.figures import by_default, figures
from harness.mutation.qtests import QtestResult
from harness.mutation.verdicts import Failure, Finding

Q = "7.2-src"


def found(**scenarios: str) -> dict[str, set[cover.Target]]:
    return {name: {(Q, fault) for fault in faults} for name, faults in scenarios.items()}


@pytest.mark.parametrize(
    ("finds", "costs", "kept", "chosen"),
    [
        # The scenario that catches most per second comes first.
        (found(a="x", b="y", c="xy"), {"a": 1, "b": 1, "c": 1.5}, (), {"c"}),
        (found(a="x", b="y", c="xy"), {"a": 1, "b": 1, "c": 5}, (), {"a", "b"}),
        # Faults that a kept scenario catches are covered.
        (found(a="x", b="y", c="xy"), {"a": 1, "b": 1, "c": 1.5}, ("a",), {"a", "b"}),
        # A scenario that was taken first is dropped when the later ones make it unnecessary.
        (found(a="uvw", b="uvx", c="wyz"), {"a": 1, "b": 1.1, "c": 1.2}, (), {"b", "c"}),
        # Of equal scenarios, the first by name.
        (found(b="x", a="x"), {"a": 1, "b": 1}, (), {"a"}),
        # Two scenarios that take no time are not cheaper than one.
        (found(a="x", b="y", c="xy"), {"a": 0, "b": 0, "c": 0}, (), {"c"}),
        (found(a=""), {"a": 1}, (), set()),
    ],
)
def test_the_cheapest_set_is_chosen(
    finds: dict[str, set[cover.Target]], costs: dict[str, float], kept: tuple[str, ...], chosen: set[str]
) -> None:
    assert cheapest_cover(finds, costs, kept) == chosen


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.frozensets(st.sampled_from("uvwxyz")), max_size=6),
    st.lists(st.floats(0.1, 10), min_size=6, max_size=6),
    st.frozensets(st.sampled_from("abcdef"), max_size=2),
)
def test_the_set_is_complete_minimal_and_near_the_optimum(
    faults: dict[str, frozenset[str]], seconds: list[float], kept: frozenset[str]
) -> None:
    finds = found(**{name: "".join(sorted(caught)) for name, caught in faults.items()})
    costs = dict(zip("abcdef", seconds, strict=True))
    kept = kept & set(finds)
    chosen = cheapest_cover(finds, costs, kept)
    everything = {target for caught in finds.values() for target in caught}

    def covers(names: set[str]) -> bool:
        return {target for name in names for target in finds[name]} == everything

    def cost(names: set[str]) -> float:
        return sum(costs[name] for name in names)

    assert covers(chosen)
    assert kept <= chosen
    assert not any(covers(chosen - {name}) for name in chosen - kept)
    subsets = [set(names) | kept for n in range(7) for names in combinations(finds, n)]
    best = min(cost(names) for names in subsets if covers(names))
    # The bound of greedy set cover: the harmonic number of the largest set, at most six elements.
    assert cost(chosen - kept) <= cost(set(kept)) + best * 2.45 + 1e-6


def data() -> Detection:
    """``a`` and ``b`` catch fault ``x``, ``c`` catches ``y``, none catches ``z``."""
    faults = {
        "x": Measured(key="1", of={"t.py": "h"}, failed={"t.py::a[pc]": 1.0, "t.py::b[pc]": 1.0}),
        "y": Measured(key="2", of={"t.py": "h"}, failed={"t.py::c[pc]": 1.0}),
        "z": Measured(key="3", of={"t.py": "h"}),
    }
    seconds = {"t.py::a[pc]": 8.0, "t.py::b[pc]": 2.0, "t.py::c[pc]": 3.0, "t.py::d[pc]": 4.0}
    return Detection(qemus={Q: OnQemu(of={"t.py": "h"}, scenarios=seconds, at_once=2.0, faults=faults)})


EVERY = tuple(f"t.py::{name}[pc]" for name in ("a", "b", "c", "d", "new", "new_one"))


def test_a_plan_says_which_marks_should_change() -> None:
    default = ("t.py::a[pc]", "t.py::c[pc]", "t.py::d[pc]", "t.py::new[pc]")
    made = cover.plan(data(), EVERY, default, always=("t.py::d[pc]", "t.py::b[pc]"))
    assert made.chosen == ("t.py::b[pc]", "t.py::c[pc]", "t.py::d[pc]", "t.py::new[pc]")
    assert (made.take, made.leave_out) == (("t.py::b[pc]",), ("t.py::a[pc]",))
    assert made.seconds == (2 + 3 + 4) / 2, "two run at once; the new one is not measured"
    assert made.caught == ((Q, "x"), (Q, "y"))
    assert made.never == ((Q, "z"),)


def test_a_scenario_that_has_to_find_an_unmeasured_fault_stays() -> None:
    default = ("t.py::a[pc]", "t.py::c[pc]", "t.py::d[pc]")
    assert cover.plan(data(), EVERY, default, (), needed=("t.py::d",)).leave_out == ("t.py::a[pc]",)
    assert cover.plan(data(), EVERY, default, (), needed=("t.py::a",)).leave_out == ("t.py::d[pc]",)
    assert cover.plan(data(), EVERY, default, ()).leave_out == ("t.py::a[pc]", "t.py::d[pc]")


def test_a_quick_scenario_of_the_default_set_stays() -> None:
    """``b`` is not needed beside ``a``, but takes two seconds only. It is not taken into the set either."""
    default = ("t.py::a[pc]", "t.py::b[pc]", "t.py::c[pc]")
    assert cover.plan(data(), EVERY, default, always=("t.py::a[pc]",)).leave_out == ()
    assert cover.plan(data(), EVERY, ("t.py::a[pc]", "t.py::c[pc]"), always=("t.py::a[pc]",)).take == ()


def test_unmeasured_faults_and_scenarios_are_listed() -> None:
    missing = cover.unmeasured(data(), EVERY, {"x": "1", "y": "changed", "new": "4", "z": "3"})
    assert missing.faults == ("y", "new")
    assert missing.scenarios == ("t.py::new[pc]", "t.py::new_one[pc]")


@pytest.mark.parametrize(
    ("fault", "default", "caught"),
    [
        ("x", ["t.py::b[pc]"], True),
        ("x", ["t.py::b[pc]", "t.py::new[pc]", "other.py::n[pc]"], True),
        ("x", ["t.py::c[pc]"], False),
        ("x", ["t.py::c[pc]", "other.py::n[pc]"], None),
        ("unknown", ["t.py::b[pc]"], None),
    ],
)
def test_whether_a_default_run_catches_a_fault(fault: str, default: list[str], caught: bool | None) -> None:
    assert by_default(data(), default, Q, fault) is caught


def test_real_and_planted_faults_are_counted_separately() -> None:
    failed = (Failure("test_leak.py", "t", "why"),)
    findings = [
        Finding("x", "no leak", Q, 1, failed, real=True, qtests=QtestResult("caught", "t", "why")),
        Finding("y", "lifecycle", Q, 1, failed, qtests=QtestResult("passed")),
        Finding("new", "no leak", Q, 1, (), qtests=QtestResult("not run", why="so")),
        Finding("", "", Q, 1, ()),
    ]
    every, real, planted = figures(findings, data(), ["t.py::b[pc]"])
    assert (every.of, every.faults, every.caught, every.by_guarantee) == ("all", 3, 2, 1)
    assert (every.by_default, every.in_table) == (1, 2)
    assert (every.by_qtests, every.with_qtests) == (1, 2)
    assert (real.of, real.faults, real.by_guarantee, real.by_qtests) == ("real", 1, 1, 1)
    assert (planted.of, planted.faults, planted.by_guarantee, planted.by_qtests) == ("planted", 2, 0, 0)
    assert [one.of for one in figures(findings[1:], data(), [])] == ["all"]
