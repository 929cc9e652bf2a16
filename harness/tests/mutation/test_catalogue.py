"""The catalogue of faults: each is complete, and names scenarios that exist."""

from __future__ import annotations

import ast
import functools
import re

import pytest

from harness.guarantees import GUARANTEES
from harness.layout import scenarios_folder
from harness.mutation.catalogue import Catalogue

CATALOGUE = Catalogue()
FAULTS = {name: CATALOGUE.load(name) for name in CATALOGUE.names()}
#: A commit (12 hex digits, if known), its subject and the first releases that have it; or a CVE or an issue.
FIX = re.compile(
    r"([0-9a-f]{12} |(?![0-9a-f]{7,} ))\S.* \(\d+\.\d+(\.\d+)?(, \d+\.\d+(\.\d+)?)*\)"
    r"|CVE-\d{4}-\d{4,}"
    r"|https://gitlab\.com/qemu-project/qemu/-/issues/\d+"
    r"|issue \d+"
)


@functools.cache
def functions_of(file: str) -> frozenset[str]:
    tree = ast.parse((scenarios_folder() / file).read_text())
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


def exists(scenario: str) -> bool:
    file, _, test = scenario.partition("::")
    return test.partition("[")[0] in functions_of(file)


def test_every_fault_names_scenarios_that_exist() -> None:
    named = [(name, scenario) for name, fault in FAULTS.items() for scenario in fault.caught_by]
    assert [(name, scenario) for name, scenario in named if not exists(scenario)] == []
    assert not exists(f"{named[0][1]}_gone")


def test_the_catalogue_has_faults_of_every_guarantee() -> None:
    assert {fault.guarantee for fault in FAULTS.values()} == set(GUARANTEES)
    assert len(FAULTS) >= 90


def test_each_guarantee_has_one_sample() -> None:
    samples = [fault.guarantee for fault in FAULTS.values() if fault.sample]
    assert len(samples) == len(set(samples)), "more than one"
    assert set(samples) == {fault.guarantee for fault in FAULTS.values()}, "none"


def test_no_two_faults_are_the_same() -> None:
    assert len({fault.key for fault in FAULTS.values()}) == len(FAULTS)


def test_names_are_plain_words_and_titles_are_one_line() -> None:
    for name, fault in FAULTS.items():
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name), name
        assert fault.title == fault.title.strip(), name
        assert "\n" not in fault.title, name


def test_a_real_fault_names_the_fixes_that_it_undoes() -> None:
    """Each is a '<12 hex> subject (release)', a CVE or an issue."""
    fixes = [(name, fix) for name, fault in FAULTS.items() for fix in fault.takes_back]
    assert len(fixes) > 100
    assert [(name, fix) for name, fix in fixes if not FIX.fullmatch(fix)] == []


@pytest.mark.parametrize(
    ("fix", "good"),
    [
        ("0123456789ab 9pfs: fix a leak (7.2)", True),
        ("0123456789ab 9pfs: fix a leak (7.2.16)", True),
        ("0123456789ab 9pfs: fix a leak (10.1.0, 10.0.1, 7.2.18)", True),
        ("hw/9pfs: cap Treaddir allocation (11.1, 10.0.13)", True),
        ("CVE-2023-2861", True),
        ("https://gitlab.com/qemu-project/qemu/-/issues/2337", True),
        ("0123456789abcdef 9pfs: fix a leak (7.2)", False),
        ("0123456789 9pfs: fix a leak (7.2)", False),
        ("0123456789ab 9pfs: fix a leak", False),
        ("a fix", False),
    ],
)
def test_the_form_of_a_fix(fix: str, good: bool) -> None:
    assert (FIX.fullmatch(fix) is not None) is good
