"""The fallbacks of all workers are counted, with the reasons."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.history import Entry, Kind
from harness.plugin.fallbacks import Counted, fallbacks
from harness.tests.plugin import inner
from harness.tests.plugin.conftest import Pytest

_CASES = """
import pytest
from harness.errors import Violation

def note(testbed, f, value):
    testbed.history.note("source", f, value)

@pytest.mark.parametrize("number", range(3))
def test_not_resumed(testbed, number):
    note(testbed, "guest:started", "restored")
    note(testbed, "ssh:resumed", f"nobody listens on /tmp/run{number}/source/guestfwd.sock")

def test_resumed(testbed):
    note(testbed, "guest:started", "restored")
    note(testbed, "ssh:resumed", True)

def test_by_choice(testbed):
    note(testbed, "guest:started", {"cold": "the scenario asks for it"})
    note(testbed, "guest:started", {"cold": "kvm boots a guest in a second"})

def test_fails_and_was_booted(testbed):
    note(testbed, "guest:started", {"cold": "the template was not saved: no space"})
    raise Violation("it leaks")

@pytest.fixture
def broken(testbed):
    note(testbed, "guest:started", {"cold": "the template was not saved: no space"})
    raise Violation("never booted")

def test_set_up_fails(broken): pass
"""


@pytest.mark.parametrize("workers", ["0", "2"])
def test_they_are_reported_at_the_end_of_a_run(run_pytest: Pytest, tmp_path: Path, workers: str) -> None:
    (tmp_path / "conftest.py").write_text(Path(inner.__file__).read_text())
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_cases.py").write_text(_CASES)
    done = run_pytest(tmp_path, "--machine", "pc", "-n", workers)
    lines = done.stdout.splitlines()
    first = lines.index("fallback: guests whose SSH session was not resumed: 3 of 4")
    assert lines[first + 1] == "  3: nobody listens on …/guestfwd.sock"
    first = lines.index("fallback: guests that were booted because there was no template: 2 of 6")
    assert lines[first + 1] == "  2: the template was not saved: no space"
    assert "the scenario asks for it" not in done.stdout
    assert "kvm" not in done.stdout


def test_a_run_without_any_says_nothing(run_pytest: Pytest, tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(Path(inner.__file__).read_text())
    (tmp_path / "test_cases.py").write_text(_CASES)
    done = run_pytest(tmp_path, "--machine", "pc", "-k", "test_resumed or test_by_choice")
    assert done.returncode == 0
    assert "fallback" not in done.stdout


def _counted(*notes: tuple[str, Any]) -> list[str]:
    entries = [Entry(seq=n, t_s=n, kind=Kind.NOTE, actor="a", f=f, value=v) for n, (f, v) in enumerate(notes)]
    counted, report = Counted(), pytest.TestReport("t", ("t", 1, "t"), {}, "passed", None, "call")
    report.harness_fallbacks = list(fallbacks(entries))  # type: ignore[attr-defined]
    counted.pytest_runtest_logreport(report)
    return list(counted.lines())


def test_sessions_that_were_lost_later() -> None:
    assert _counted(
        ("ssh:resumed", True),
        ("ssh:guestfwd-lost", "no answer for 15 s"),
        ("ssh:not-moved", "a command was running"),
        ("ssh:not-moved", "a command was running"),
    ) == [
        "fallback: SSH sessions that fell silent: 1",
        "  1: no answer for 15 s",
        "fallback: SSH sessions that a migration did not keep: 2",
        "  2: a command was running",
    ]


def test_leak_hunts_without_a_heap_profile() -> None:
    """They pass, and their folders go: nobody would read in the verdict that the heap was not looked at."""
    assert _counted(
        ("leak:heap-sites", {"not_profiled": "a script starts this QEMU"}),
        ("leak:heap-sites", {"file": "heap-sites.json", "growing": 0}),
    ) == [
        "fallback: leak hunts that did not profile the heap, and counted the rest: 1",
        "  1: a script starts this QEMU",
    ]


def test_reasons_that_differ_in_what_was_measured_are_one() -> None:
    found = _counted(*[("ssh:resumed", f"waited {n}.5 s for the log-in; last seen: False") for n in range(4)])
    assert found[1:] == ["  4: waited … s for the log-in; last seen: False"]
