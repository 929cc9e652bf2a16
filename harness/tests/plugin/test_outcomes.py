"""The summary of a run, and of its shards."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.plugin import outcomes, sharding
from harness.plugin.outcomes import Collector
from harness.report import summary
from harness.report.summary import Outcome
from harness.tests.plugin import inner
from harness.tests.plugin.conftest import Pytest

_CASES = """
import pytest
from harness.errors import Violation

@pytest.fixture(autouse=True)
def axes(qemu_name, kernel_name, machine_name): pass

def test_passes(testbed): pass
def test_fails(testbed): raise Violation("migrate was accepted\\nmore")
def test_dies(testbed): testbed.dies()
def test_skips(testbed): pytest.skip("no file: URIs")
@pytest.mark.pin_machine("q35-pcie")
def test_pinned(testbed): pass
@pytest.mark.xfail(reason="R1: a bug", strict=True)
def test_known(testbed): assert 0
@pytest.mark.xfail(reason="R3: a bug")
def test_fixed_and_not_strict(testbed): pass
@pytest.mark.xfail(reason="it hangs", run=False)
def test_not_run(testbed): pass
@pytest.mark.xfail(reason="R2: a bug", strict=True)
def test_fixed(testbed): pass
def test_no_such_fixture(testbed, disc): pass
@pytest.fixture
def broken(): raise Violation("never booted")
def test_error(broken): pass
"""


def _cases(folder: Path) -> None:
    (folder / "test_leak.py").write_text(_CASES)
    (folder / "test_other.py").write_text("def test_of_no_guarantee(): pass\n")
    (folder / "conftest.py").write_text(Path(inner.__file__).read_text())


def _name(test: str) -> str:
    return test.partition("::")[2].partition("[")[0]


@pytest.mark.parametrize("workers", ["0", "1"])
def test_every_outcome(run_pytest: Pytest, tmp_path: Path, workers: str) -> None:
    _cases(tmp_path)
    done = run_pytest(tmp_path, "--machine", "pc", "--summary", "out", "-n", workers)
    assert done.returncode == 1, done.stdout + done.stderr
    run = summary.read(tmp_path / "out")
    found = {_name(r.test): (r.outcome, r.why) for r in run.results}
    assert found == {
        "test_passes": (Outcome.PASSED, ""),
        "test_fails": (Outcome.FAILED, "harness.errors.Violation: migrate was accepted"),
        "test_dies": (Outcome.FAILED, found["test_dies"][1]),
        "test_skips": (Outcome.SKIPPED, "no file: URIs"),
        "test_pinned": (Outcome.SKIPPED, "it runs with machine type q35-pcie only"),
        "test_known": (Outcome.KNOWN, "R1: a bug"),
        "test_fixed_and_not_strict": (Outcome.PASSED, ""),
        "test_not_run": (Outcome.SKIPPED, "[NOTRUN] it hangs"),
        "test_fixed": (Outcome.FIXED, "R2: a bug"),
        "test_error": (Outcome.FAILED, "harness.errors.Violation: never booted"),
        "test_no_such_fixture": (Outcome.FAILED, "fixture 'disc' not found"),
    }
    assert "SIGSEGV" in found["test_dies"][1]
    assert {r.guarantee for r in run.results} == {"no leak"}
    passed = next(r for r in run.results if r.outcome is Outcome.PASSED)
    assert (passed.qemu, passed.version, passed.kernel, passed.machine) == ("7.2", "7.2.22", "6.1.0", "pc")
    assert passed.scenario.endswith("::test_passes[pc]")
    assert "guarantees" in done.stdout
    assert "4 new failures" in done.stdout


def test_the_printed_summary_is_whole(run_pytest: Pytest, tmp_path: Path) -> None:
    """The output is 80 columns wide, and the test's name is longer than that."""
    name = "test_a_name_that_is_wider_than_the_terminal_of_eighty_columns_on_which_it_is_printed"
    _cases(tmp_path)
    (tmp_path / "test_crash.py").write_text(f"def {name}(qemu_name, testbed): assert 0, 'it has failed'\n")
    done = run_pytest(tmp_path, "--machine", "pc", "test_crash.py", "test_leak.py")
    table = done.stdout.partition(" guarantees ")[2]
    assert "…" not in table
    assert any(name in line and "it has failed" in line for line in table.splitlines()), table


#: A test file and a plugin of a user's. The names are fields of ours, or none; the values are anything.
_PROPERTIES = """
import pytest

class Odd:
    def __str__(self): raise RuntimeError("no text")

NAMES = ("mykey", "outcome", "qemu", "test", "guarantee", "leaks", "seconds", "bug", "harness_facts", 7)

@pytest.fixture(autouse=True)
def axes(qemu_name, kernel_name, machine_name): pass

@pytest.mark.parametrize("value", [1, None, "text", [1, {2}], object(), Odd(), "\\ud800", b"x"], ids=range(8))
def test_records(testbed, request, record_property, value):
    for name in NAMES:
        if not isinstance(value, Odd):
            record_property(name, value)
        elif hasattr(request.config, "workerinput"):  # pytest's own JUnit report takes the text of it.
            record_property(name, value)

@pytest.mark.of_the_users(object())
def test_marked(testbed): pass

def test_subtests(testbed, subtests):
    with subtests.test("one"):
        pass
"""
_PLUGIN = """

@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item):
    report = yield
    report.user_properties.append(("of-a-plugin", object()))
    return report
"""


@pytest.mark.parametrize("workers", ["0", "1"])
def test_properties_marks_and_plugins_of_the_users(run_pytest: Pytest, tmp_path: Path, workers: str) -> None:
    (tmp_path / "test_leak.py").write_text(_PROPERTIES)
    (tmp_path / "conftest.py").write_text(Path(inner.__file__).read_text() + _PLUGIN)
    junit = ("--junitxml", "junit.xml", "-o", "markers=of_the_users: theirs")
    done = run_pytest(tmp_path, "--machine", "pc", "--summary", "out", "-n", workers, *junit)
    assert done.returncode == 0, done.stdout + done.stderr
    run = summary.read(tmp_path / "out")
    assert len(run.results) == 10
    facts = {(r.outcome, r.qemu, r.version, r.guarantee, r.bug) for r in run.results}
    assert facts == {(Outcome.PASSED, "7.2", "7.2.22", "no leak", "")}
    (case,) = (
        case
        for case in ElementTree.parse(tmp_path / "junit.xml").iter("testcase")
        if case.get("name", "").endswith("pc-2]")
    )
    properties = [(one.get("name"), one.get("value")) for one in case.iter("property")]
    assert ("qemu", "7.2") in properties
    assert ("machine", "pc") in properties
    for name in ("mykey", "qemu", "outcome"):
        assert (name, "text") in properties


def test_a_test_that_is_interrupted_has_not_passed(run_pytest: Pytest, tmp_path: Path) -> None:
    """Although its set-up has."""
    _cases(tmp_path)
    more = "\n\ndef test_interrupted(testbed): raise KeyboardInterrupt\n"
    (tmp_path / "test_leak.py").write_text(_CASES + more)
    chosen = "test_passes or test_interrupted"
    done = run_pytest(tmp_path, "--machine", "pc", "--summary", "out", "-k", chosen)
    assert done.returncode == 2, done.stdout + done.stderr
    run = summary.read(tmp_path / "out")
    assert [(_name(r.test), r.outcome) for r in run.results] == [("test_passes", Outcome.PASSED)]


@pytest.mark.parametrize("outcome", ["rerun", "passed"])
def test_a_test_that_is_to_run_again_has_not_ended(outcome: str) -> None:
    """The outcome is pytest-rerunfailures'."""
    collector = Collector()
    report = _report("call", "", None)
    report.outcome = cast(Any, outcome)
    collector.pytest_runtest_logreport(report)
    assert len(collector.results) == (outcome == "passed")


def test_a_summary_that_is_a_file_is_a_usage_error(run_pytest: Pytest, tmp_path: Path) -> None:
    _cases(tmp_path)
    (tmp_path / "out").write_text("")
    done = run_pytest(tmp_path, "--summary", "out")
    assert done.returncode == 4
    assert "--summary out: is a file" in done.stderr


def test_what_a_test_ran_on_comes_with_its_reports() -> None:
    collector = Collector()
    said: dict[str, Any] = {"qemu": "7.2", "version": "7.2.22", "machine": "pc"}
    for when, longrepr in (("setup", ""), ("call", "boom"), ("teardown", "")):
        more = {} if when == "setup" else {"leaks": {"fds": 1.0}}
        collector.pytest_runtest_logreport(_report(when, longrepr, said | more))
    (found,) = collector.results
    assert (found.qemu, found.version, found.machine, found.leaks) == ("7.2", "7.2.22", "pc", {"fds": 1.0})
    assert (found.outcome, found.seconds) == (Outcome.FAILED, 3.0)


def test_a_worker_that_died_says_no_more_than_the_tests_name() -> None:
    collector = Collector()
    collector.pytest_runtest_logreport(_report("???", "worker 'gw0' crashed", None))
    (found,) = collector.results
    assert (found.guarantee, found.qemu, found.outcome) == ("no leak", "?", Outcome.FAILED)


def _report(when: str, longrepr: str, said: dict[str, Any] | None) -> pytest.TestReport:
    outcome: Any = "failed" if longrepr else "passed"
    where = ("scenarios/test_leak.py", 1, "t")
    report = pytest.TestReport(
        "scenarios/test_leak.py::t", where, {}, outcome, longrepr or None, cast(Any, when), (), 1.0
    )
    if said is not None:
        setattr(report, outcomes.FACTS, said)
    return report


@pytest.mark.parametrize(
    ("test", "scenario"),
    [
        ("a.py::t[7.2-6.1-pc]", "a.py::t[pc]"),
        ("a.py::t[7.2-src+no-blocker-default-pc-plain]", "a.py::t[pc-plain]"),
        ("a.py::t[one_fsdev-7.2-src+no-blocker-default-pc]", "a.py::t[one_fsdev-pc]"),
    ],
)
def test_a_scenario_is_the_same_on_any_qemu(test: str, scenario: str) -> None:
    qemu, kernel = ("7.2", "6.1") if "6.1" in test else ("7.2-src+no-blocker", "default")
    assert summary.scenario_of(test, qemu, kernel) == scenario


@given(
    st.dictionaries(st.text(min_size=1), st.floats(0, 100), max_size=40),
    st.integers(min_value=1, max_value=5),
)
def test_each_test_is_in_exactly_one_part(costs: dict[str, float], count: int) -> None:
    parts = sharding.parts(costs, count)
    assert len(parts) == count
    assert sorted(test for part in parts for test in part) == sorted(costs)
    sums = [sum(max(costs[test], 0.01) for test in part) for part in parts]
    assert max(sums) - min(sums) <= max(costs.values(), default=0) + 0.01 + 1e-6


@pytest.mark.parametrize("workers", ["0", "1"])
def test_the_shards_of_a_run_are_the_run(run_pytest: Pytest, tmp_path: Path, workers: str) -> None:
    _cases(tmp_path)
    run_pytest(tmp_path, "--machine", "pc", "--summary", "whole")
    # The durations of one run are in the cache for the next: all parts have to go by the same.
    for index in (1, 2):
        shard = ("--shard", f"{index}/2", "--durations-from", "whole")
        run_pytest(tmp_path, "--machine", "pc", *shard, "--summary", f"part{index}", "-n", workers)
    parts = [(str(index), summary.read(tmp_path / f"part{index}")) for index in (1, 2)]
    assert all(run.results for _, run in parts)
    joined = [(r.test, r.outcome) for r in summary.merge(parts).results]
    whole = [(r.test, r.outcome) for r in summary.read(tmp_path / "whole").results]
    assert sorted(joined) == sorted(whole)


def test_durations_from_nowhere(run_pytest: Pytest, tmp_path: Path) -> None:
    _cases(tmp_path)
    done = run_pytest(tmp_path, "--durations-from", "none")
    assert done.returncode == 4
    assert "--durations-from none: " in done.stderr


@pytest.mark.parametrize("given_", ["0/2", "3/2", "1", "a/b", "1/0"])
def test_a_shard_that_is_none(given_: str) -> None:
    config = SimpleNamespace(getoption=lambda *_: given_)
    with pytest.raises(pytest.UsageError, match=f"^--shard {given_}: write I/N"):
        sharding.pytest_configure(cast(Any, config))


def test_a_shard_that_is_none_is_a_usage_error(run_pytest: Pytest, tmp_path: Path) -> None:
    _cases(tmp_path)
    done = run_pytest(tmp_path, "--shard", "3/2")
    assert done.returncode == 4
    assert "--shard 3/2: write I/N" in done.stderr
