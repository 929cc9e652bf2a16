"""Faults that a search has to find, and a control in which it must find nothing."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from harness.mutation import exploration
from harness.mutation.catalogue import Catalogue
from harness.mutation.exploration import SAMPLE, Explored, explore_all, sample


def explored(fault: str, failure: str) -> Explored:
    return Explored(fault, "no leak", "7.2-src", "pc", 1.0, 10, failure)


@pytest.mark.parametrize(
    ("fault", "failure", "good"),
    [("tag-kept", "fds +1", True), ("tag-kept", "", False), ("", "fds +1", False), ("", "", True)],
)
def test_a_fault_has_to_be_found_and_a_control_is_silent(fault: str, failure: str, good: bool) -> None:
    found = explored(fault, failure)
    assert (found.good, found.as_json()["good"]) == (good, good)


def test_a_control_without_a_result_is_not_silent() -> None:
    """None of its programs had a result, or the host failed before the time was up."""
    assert not Explored("", "", "7.2-src", "pc", 1.0, 0).good
    assert not Explored("", "", "7.2-src", "pc", 1.0, 9, problem="no memory").good


@pytest.mark.parametrize("count", [1, 29, 30, 44, 45, 159, 160, 1000])
def test_a_sample_is_spread_over_the_names(count: int) -> None:
    names = tuple(f"{number:04}" for number in reversed(range(count)))
    taken = sample(names)
    assert len(set(taken)) == len(taken)
    assert list(taken) == sorted(taken)
    assert min(count, SAMPLE * 2 // 3) <= len(taken) <= SAMPLE * 3 // 2
    gaps = {int(b) - int(a) for a, b in itertools.pairwise(taken)}
    assert len(gaps) <= 1


def test_each_fault_is_explored_on_its_machine_type_then_the_control(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []

    def explore(
        fault: str, guarantee: str, names: object, into: Path, seconds: float, workers: int
    ) -> Explored:
        asked.append((fault, guarantee, str(names), into.name, seconds, workers))
        return explored(fault, "")

    monkeypatch.setattr(exploration, "_explore", explore)
    names = ("blocker-kept", "failed-realize-keeps-path")
    faults = {name: Catalogue().load(name) for name in names}
    lines: list[str] = []
    results = list(explore_all(faults, "7.2-src", tmp_path, seconds=9, workers=2, report=lines.append))
    assert [one.fault for one in results] == [*names, ""]
    assert [(fault, into, "q35-pcie" in cell) for fault, _, cell, into, _, _ in asked] == [
        ("blocker-kept", "blocker-kept", False),
        ("failed-realize-keeps-path", "failed-realize-keeps-path", True),
        ("", "control", False),
    ]
    assert lines[0] == "blocker-kept (1 of 2): not found"
    assert lines[-1] == "no fault: nothing was found (10 programs)"
