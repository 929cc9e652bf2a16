from __future__ import annotations

import ast
from pathlib import Path

import pytest

from harness import ledger
from harness.errors import UsageError
from harness.ledger import Bug, Ledger
from harness.qemu.spec import MACHINE_TYPES

ENTRY = """
[[bug]]
id = "X1"
guarantee = "no leak"
title = "something leaks"
qemu = "<10.0"
seen_broken = ["7.2.22"]
scenarios = ["test_leak.py::test_one", "test_leak.py::test_two[small]"]
machines = ["pc"]
failure = "leaked \\\\d+ bytes"
evidence = "seen"
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "known-bugs.toml"


def bug(path: Path) -> Bug:
    path.write_text(ENTRY)
    (only,) = ledger.load(path).bug
    return only


@pytest.mark.parametrize(
    ("scenario", "parameters", "version", "machine", "expected"),
    [
        ("test_leak.py::test_one", [], "7.2.22", "pc", True),
        ("test_leak.py::test_one", ["small"], "9.2.4", "pc", True),
        ("test_leak.py::test_one", [], "10.0.13", "pc", False),
        ("test_leak.py::test_one", [], "7.2.22", "q35", False),
        ("test_leak.py::test_two", ["small"], "7.2.22", "pc", True),
        ("test_leak.py::test_two", ["large"], "7.2.22", "pc", False),
        ("test_leak.py::test_three", [], "7.2.22", "pc", False),
    ],
)
def test_where_an_entry_applies(
    path: Path, scenario: str, parameters: list[str], version: str, machine: str, expected: bool
) -> None:
    assert bug(path).applies(scenario, parameters, version, machine) is expected


def test_an_entry_explains_the_first_line_only(path: Path) -> None:
    assert bug(path).explains("QEMU leaked 12 bytes\nand more")
    assert not bug(path).explains("QEMU died\nleaked 12 bytes")


@pytest.mark.parametrize(
    ("before", "after", "complaint"),
    [
        ("title", "titel", "unknown key 'titel'|title: Field required"),
        ('"<10.0"', '"before ten"', r":6: qemu: .*before ten"),
        ('"pc"', '"arm"', ":9: machines: .*unknown machine types: arm"),
        ("leaked ", "leaked (", ":10: failure: .*not a regular expression"),
        ("[[bug]]", "[[bug]", ":2: not TOML"),
    ],
)
def test_a_bad_entry_is_told_with_its_line(path: Path, before: str, after: str, complaint: str) -> None:
    path.write_text(ENTRY.replace(before, after))
    with pytest.raises(UsageError, match=complaint):
        ledger.load(path)


def test_two_entries_for_one_place_are_refused(path: Path) -> None:
    path.write_text(ENTRY + ENTRY.replace("X1", "X2"))
    with pytest.raises(UsageError, match="X1, X2 all claim"):
        ledger.load(path).expected("test_leak.py::test_one", [], "7.2.22", "pc")


def test_every_scenario_of_the_projects_own_ledger_exists() -> None:
    own = ledger.load()
    assert isinstance(own, Ledger)
    assert own.bug
    scenarios = Path(__file__).parents[2] / "scenarios"
    for entry in own.bug:
        for scenario in entry.scenarios:
            file, _, test = scenario.partition("::")
            tree = ast.parse((scenarios / file).read_text())
            names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
            assert test.partition("[")[0] in names, f"{entry.id}: no {scenario}"


def test_no_two_bugs_claim_the_same_test() -> None:
    """On any machine type of any version that one of them was seen on."""
    bugs = ledger.load().bug
    versions = {version for bug in bugs for version in (*bug.seen_broken, *bug.seen_fixed)}
    scenarios = {scenario.partition("[") for bug in bugs for scenario in bug.scenarios}
    for scenario, _, parameter in scenarios:
        for machine in MACHINE_TYPES:
            for version in versions:
                ledger.load().expected(scenario, [parameter.rstrip("]")], version, machine)
