from __future__ import annotations

import ast
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.qemu.machine_types import MACHINE_TYPES
from harness.report import ledger
from harness.report.ledger import Bug, Ledger, Status

ENTRY = """
[[bug]]
id = "X1"
guarantee = "no leak"
title = "something leaks"
affected = ["<=7.2.22", ">=8,<10.0.13", ">=10.1,<=10.2.2"]
unaffected = [">=10.0.13,<10.1", ">=11.1"]
seen_broken = ["7.2.22"]
seen_fixed = ["10.0.13"]
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
    ("scenario", "parameters", "machine", "expected"),
    [
        ("test_leak.py::test_one", [], "pc", True),
        ("test_leak.py::test_one", ["small"], "pc", True),
        ("test_leak.py::test_one", [], "q35", False),
        ("test_leak.py::test_two", ["small"], "pc", True),
        ("test_leak.py::test_two", ["large"], "pc", False),
        ("test_leak.py::test_three", [], "pc", False),
    ],
)
def test_the_scenarios_and_machine_types_of_an_entry(
    path: Path, scenario: str, parameters: list[str], machine: str, expected: bool
) -> None:
    assert bug(path).concerns(scenario, parameters, machine) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("test_it.py::test_one", True),
        ("sub/test_it.py::test_one", True),
        ("./exp/sub/test_it.py::test_one", True),
        ("../exp/sub/test_it.py::test_one", True),
        ("other/test_it.py::test_one", False),
        ("b/test_it.py::test_one", False),
        ("it.py::test_one", False),
        ("test_it.py::TestClass::test_one", True),
        ("test_it.py::TestOther::test_one", False),
        ("sub/test_it.py::test_one[small]", True),
        ("sub/test_it.py::TestClass::test_one[7.2-6.1-pc-small]", True),
        ("test_it.py::test_one[11.1-6.1-pc-small]", False),
        ("test_it.py::test_one[large]", False),
    ],
)
def test_a_scenario_may_have_folders_and_classes_as_in_a_node_id(text: str, expected: bool) -> None:
    parameters = ["7.2-6.1-pc-small", "7.2", "6.1", "pc", "small"]
    scenario = "/home/me/exp/sub/test_it.py::TestClass::test_one"
    assert ledger.is_named(text, scenario, parameters) is expected


@pytest.mark.parametrize(
    ("version", "status"),
    [
        ("2.5.0", Status.AFFECTED),
        ("7.2.22", Status.AFFECTED),
        ("7.2.23", Status.UNKNOWN),
        ("10.0.12", Status.AFFECTED),
        ("10.0.13", Status.UNAFFECTED),
        ("10.1.0", Status.AFFECTED),
        ("10.2.3", Status.UNKNOWN),
        ("11.0.0", Status.UNKNOWN),
        ("11.1.0", Status.UNAFFECTED),
    ],
)
def test_a_version_outside_all_ranges_is_unknown(path: Path, version: str, status: Status) -> None:
    """A stable branch has a fix that newer releases lack."""
    assert bug(path).status(version) is status
    expected = ledger.load(path).expected("test_leak.py::test_one", [], version, "pc")
    assert bool(expected) is (status is not Status.UNAFFECTED)


def test_the_pattern_matches_only_the_first_line(path: Path) -> None:
    assert bug(path).explains("QEMU leaked 12 bytes\nand more")
    assert not bug(path).explains("QEMU died\nleaked 12 bytes")


@pytest.mark.parametrize(
    ("before", "after", "complaint"),
    [
        ("title", "titel", "unknown key 'titel'|title: Field required"),
        ('"<=7.2.22"', '"before ten"', r":6: affected: .*before ten"),
        ('">=11.1"', '">=eleven"', r":7: unaffected: .*eleven"),
        ('"<=7.2.22"', '"<=7.2.22", ">=9,<8"', r":6: affected: .*the range '>=9,<8' contains no version"),
        ('">=11.1"', '">=11.1", ""', r":7: unaffected: .*the range '' contains no version"),
        ('"pc"', '"arm"', ":11: machines: .*unknown machine types: arm"),
        ("test_leak.py::test_one", "test_one", r":10: scenarios: .*write FILE.py::TEST .*not 'test_one'"),
        ("test_leak.py::test_one", "test_leak::test_one", r":10: scenarios: .*write FILE.py::TEST"),
        ('title = "something leaks"', 'Title = ""', "title: Field required"),
        ("failure =", 'failed = "x" #', "failure: Field required"),
        ("[[bug]]", '[[bug]]\nfix = "x"', r":3: unknown key 'fix'; allowed: id, guarantee, title, affected,"),
        ("leaked ", "leaked (", ":12: failure: .*not a regular expression"),
        ("leaked ", "|leaked ", r":12: failure: .*'\|leaked \\\\d\+ bytes' matches every text"),
        ("leaked \\\\d+ bytes", ".*", r":12: failure: .*matches every text"),
        ("evidence", 'in_program = "("\nevidence', r":13: in_program: .*not a regular expression"),
        ("[[bug]]", "[[bug]", ":2: not TOML"),
        ('">=10.0.13,<10.1"', '">=10.0.12,<10.1"', "X1: 'affected' and 'unaffected' overlap at 10.0.12"),
        ('">=11.1"', '">10.2.1"', "X1: 'affected' and 'unaffected' overlap at 10.2.2"),
        ('"<=7.2.22"', '"<=7.2.22", ">=11"', "X1: 'affected' and 'unaffected' overlap at 11.1"),
        ('"<=7.2.22"', '"<7.2.22"', "X1: seen_broken has 7.2.22, which 'affected' does not contain"),
        ('"10.0.13"]', '"10.0.13", "10.2.3"]', "X1: seen_fixed has 10.2.3, which 'unaffected' does not"),
    ],
)
def test_an_invalid_entry_is_reported_with_its_line(
    path: Path, before: str, after: str, complaint: str
) -> None:
    path.write_text(ENTRY.replace(before, after))
    with pytest.raises(UsageError, match=complaint):
        ledger.load(path)


def test_all_keys_that_an_entry_lacks_are_named_at_once(path: Path) -> None:
    path.write_text('[[bug]]\nid = "X1"\nguarantee = "no leak"\nscenarios = ["test_a.py::test_b"]\n')
    with pytest.raises(UsageError) as error:
        ledger.load(path)
    lacking = "title, affected, seen_broken, failure, evidence"
    assert error.value.message == f"{path}:1: {lacking}: Field required"


def test_an_invalid_second_entry_is_reported_with_its_line(path: Path) -> None:
    second = ENTRY.replace("X1", "X2").replace("no leak", "no luck")
    path.write_text(ENTRY + second)
    with pytest.raises(UsageError, match=r":17: guarantee: .*no such guarantee"):
        ledger.load(path)


_DIED = "QEMU 'source' was killed by"
_TIMER = "qemu-system-x86_64: util/throttle.c:248: throttle_timer_destroy: Assertion `*timer != NULL' failed."
_LATER_TIMER = "qemu-system-x86_64: util/throttle.c:443: throttle_schedule_timer: Assertion `timer' failed."
_OTHER = "qemu-system-x86_64: ../../qom/object.c:1: object_unref: Assertion `obj->ref > 0' failed."
_IN_PROGRESS = "QEMU 'source' refused migrate: There's a migration process in progress"


@pytest.mark.parametrize(
    ("bug", "seen", "another"),
    [
        ("R1", f"{_DIED} SIGSEGV while qmp:qom-list was in flight", f"{_DIED} SIGABRT after qmp:x: {_OTHER}"),
        ("R2", "leak: fds: +3.00 a cycle (53 to 110); also leaks of v9fs_co_opendir, v9fs_co_open2", ""),
        ("R2", "leak: fds: +3.00 a cycle (47 to 227)", "leak: fds: +0.12 a cycle (16 to 19)"),
        (
            "R2",
            "leak: fds: +3.00 a cycle (47 to 227)",
            "leak: fds: +3.00 a cycle (1 to 9); also leaks of fsdev_a",
        ),
        (
            "R2",
            "QEMU 'source' refused migrate: Migration is disabled when VirtFS export path '/t' is mounted",
            "migrate was refused, but the migration status went from None to failed",
        ),
        ("R2", "migration of source: blocked with nothing mounted: ['Migration is disabled']", _IN_PROGRESS),
        ("R3", f"{_DIED} SIGABRT after qmp:device_del: {_TIMER}", f"{_DIED} SIGABRT after qmp:x: {_OTHER}"),
        (
            "R3",
            f"{_DIED} SIGABRT (last QMP command: qom-list): {_LATER_TIMER}",
            f"{_DIED} SIGABRT after qmp:x",
        ),
        (
            "R8",
            "QEMU 'destination-1' exited with 1 while qmp:query-status was in flight: qemu-system-x86_64: "
            "load of migration failed: Invalid argument: error while loading state for instance 0x0 of "
            "device '0000:00:08.0/virtio-net': Failed to load element of type virtio for virtio",
            f"{_DIED} SIGABRT after qmp:cont: hw/net/virtio-net.c:1: Assertion `n' failed.",
        ),
        (
            "R8",
            "QEMU 'destination-1' refused loadvm crossing: VQ 0 vring.num 1024 exceeds allocated max 256",
            "Missing section footer for 0000:00:08.0/virtio-net",
        ),
        ("R60", f"{_DIED} SIGSEGV after qmp:qom-list", f"{_DIED} SIGABRT after qmp:x: {_OTHER}"),
    ],
)
def test_an_entry_explains_what_was_seen_and_nothing_else(bug: str, seen: str, another: str) -> None:
    (entry,) = (one for one in ledger.load().bug if one.id == bug)
    assert entry.explains(seen)
    assert not entry.explains(another)


def test_two_entries_with_one_id_are_refused(path: Path) -> None:
    path.write_text(ENTRY + ENTRY)
    with pytest.raises(UsageError, match=r"bug: .*two entries with the id X1"):
        ledger.load(path)


def test_bugs_of_unknown_status_come_last(path: Path) -> None:
    unknown = ENTRY.replace("X1", "X2").replace('"<=7.2.22", ', "").replace("7.2.22", "9.0.0")
    path.write_text(unknown + ENTRY)
    expected = ledger.load(path).expected("test_leak.py::test_one", [], "7.2.22", "pc")
    assert [bug.id for bug in expected] == ["X1", "X2"]


def test_every_scenario_of_the_projects_own_ledger_exists() -> None:
    own = ledger.load()
    assert isinstance(own, Ledger)
    assert own.bug
    for entry in own.bug:
        for scenario in entry.scenarios:
            file, _, test = scenario.partition("::")
            assert test.partition("[")[0] in _functions(file), f"{entry.id}: no {scenario}"


@cache
def _functions(file: str) -> set[str]:
    tree = ast.parse((Path(__file__).parents[3] / "scenarios" / file).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_a_fix_that_a_stable_branch_has_before_newer_releases() -> None:
    """R1, R2 and R9 are fixed in 10.0.13 and 11.1, not in 10.0.2 and 10.2.2, and unknown in 11.0.3."""
    fixed = {entry.id: entry for entry in ledger.load().bug if entry.id in ("R1", "R2", "R9")}
    assert len(fixed) == 3
    for entry in fixed.values():
        for version in ("7.2.22", "9.2.4", "10.0.2", "10.1.0", "10.2.2", "11.0.0", "11.0.2"):
            assert entry.status(version) is Status.AFFECTED, (entry.id, version)
        for version in ("10.0.13", "11.1.0", "11.1.3"):
            assert entry.status(version) is Status.UNAFFECTED, (entry.id, version)
        for version in ("7.2.23", "10.2.3", "11.0.3"):
            assert entry.status(version) is Status.UNKNOWN, (entry.id, version)


def test_bugs_of_one_scenario_have_different_patterns() -> None:
    bugs = ledger.load().bug
    versions = {version for bug in bugs for version in (*bug.seen_broken, *bug.seen_fixed)}
    scenarios = {scenario.partition("[") for bug in bugs for scenario in bug.scenarios}
    named = Counter(test for bug in bugs for test in {name.partition("[")[0] for name in bug.scenarios})
    several = [parts for parts in scenarios if named[parts[0]] > 1]
    assert several
    for scenario, _, parameter in several:
        for machine in MACHINE_TYPES:
            for version in versions:
                listed = ledger.load().expected(scenario, [parameter.rstrip("]")], version, machine)
                patterns = [entry.failure for entry in listed]
                assert len(set(patterns)) == len(patterns), (
                    scenario,
                    version,
                    [entry.id for entry in listed],
                )


def test_another_ledger_is_added_with_guarantees_of_its_own(path: Path) -> None:
    path.write_text(ENTRY.replace("no leak", "disks survive"))
    found = ledger.load_all([path])
    assert found.bug[:-1] == ledger.load().bug
    assert (found.bug[-1].id, found.bug[-1].guarantee) == ("X1", "disks survive")
    with pytest.raises(UsageError, match="no such guarantee"):
        ledger.load(path)


def test_an_added_entry_has_an_id_of_its_own(path: Path) -> None:
    path.write_text(ENTRY.replace("X1", "R1"))
    with pytest.raises(UsageError) as error:
        ledger.load_all([path])
    assert error.value.message == f"{path}: the id R1 is another known bug's"
