"""What becomes of a test and of its folder, by what it did and by what its record shows.

All cases run in one pytest of their own, once.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from harness.plugin.attachments import SECTION, attachments
from harness.tests.plugin.conftest import Pytest

_CASES = """
import unittest
import pytest
from harness.errors import GuestError, Unsupported, Violation, WaitTimeout

def test_passes(testbed):
    pass

def test_without_a_testbed():
    pass

def test_qemu_died(testbed):
    testbed.dies()

def test_process_left(testbed):
    testbed.left = ["4711 qemu-system-x86_64"]

def test_two_findings(testbed):
    testbed.left = ["4711 qemu-system-x86_64"]
    testbed.dies()

def test_nobody_looked(testbed):
    testbed.looked = False

def test_nobody_looked_and_a_finding(testbed):
    testbed.looked = False
    testbed.dies()

def test_own_assertion(testbed):
    assert 1 == 2, "the scenario's own"

def test_own_assertion_and_qemu_died(testbed):
    testbed.dies()
    assert 1 == 2, "the scenario's own"

def test_own_assertion_and_something_left(testbed):
    testbed.left = ["4711 qemu-system-x86_64"]
    assert 1 == 2, "the scenario's own"

def test_symptom_and_qemu_died(testbed):
    testbed.dies()
    raise GuestError("ssh: the connection broke")

def test_violation_and_qemu_died(testbed):
    testbed.dies()
    raise Violation("device_del completed while the share was in use")

def test_pytest_fail_and_qemu_died(testbed):
    testbed.dies()
    pytest.fail("the scenario's own")

def test_chained_error(testbed):
    try:
        raise GuestError("the symptom")
    except GuestError as exc:
        raise Violation("the cause", details="more about it") from exc

def test_full_disk(testbed):
    testbed.history.record_write_error(testbed.history.path, OSError(28, "No space left on device"))

def test_full_disk_and_a_symptom(testbed):
    testbed.history.record_write_error(testbed.history.path, OSError(28, "No space left on device"))
    raise WaitTimeout("the guest", last=None, elapsed_s=1.0)

def test_skips(testbed):
    pytest.skip("not on this machine")

def test_skips_before_a_machine(empty_testbed):
    pytest.skip("not on this machine")

def test_skips_before_a_machine_unseen(empty_testbed):
    empty_testbed.looked = False
    raise Unsupported("not on this QEMU")

def test_unsupported(testbed):
    raise Unsupported("file: this QEMU has no such URIs")

def test_skip_and_qemu_died(testbed):
    testbed.dies()
    pytest.skip("not on this machine")

def test_unsupported_and_qemu_died(testbed):
    testbed.dies()
    raise Unsupported("not on this machine")

def test_unittest_skip_and_qemu_died(testbed):
    testbed.dies()
    raise unittest.SkipTest("not on this machine")

def test_xfail_and_qemu_died(testbed):
    testbed.dies()
    pytest.xfail("not on this machine")

def test_skip_and_something_left(testbed):
    testbed.left = ["4711 qemu-system-x86_64"]
    pytest.skip("not on this machine")

def test_skip_and_nobody_looked(testbed):
    testbed.looked = False
    pytest.skip("not on this machine")

def test_skip_in_the_middle_of_a_leak_hunt(testbed):
    testbed.history.note("host", "leak:plan", {"warm_up": 5, "guest": False, "lengths": [5, 10, 15]})
    pytest.skip("not on this machine")

@pytest.fixture
def skips(testbed):
    pytest.skip("not on this machine")

@pytest.fixture
def skips_after_a_death(testbed):
    testbed.dies()
    pytest.skip("not on this machine")

@pytest.fixture
def unsupported_after_a_death(testbed):
    testbed.dies()
    raise Unsupported("not on this machine")

def test_set_up_skips(skips):
    pass

def test_set_up_skip_and_qemu_died(skips_after_a_death):
    pass

def test_set_up_unsupported_and_qemu_died(unsupported_after_a_death):
    pass

@pytest.mark.xfail(strict=True, reason="a known bug")
def test_known_bug_that_a_checker_finds(testbed):
    testbed.dies()

@pytest.mark.xfail(strict=True, reason="a known bug")
def test_known_bug_that_is_gone(testbed):
    pass

@pytest.mark.xfail(strict=True, raises=Violation, reason="a known bug")
def test_known_bug_and_an_inconclusive_record(testbed):
    testbed.looked = False

@pytest.fixture
def broken(testbed):
    raise GuestError("the guest never booted")

@pytest.fixture
def broken_by_a_death(testbed):
    testbed.dies()
    raise GuestError("the guest never booted")

@pytest.fixture
def broken_afterwards(testbed):
    yield
    raise GuestError("the fixture's own end")

def test_set_up_fails(broken):
    pass

def test_set_up_fails_of_a_death(broken_by_a_death):
    pass

def test_tear_down_fails(broken_afterwards):
    pass

def test_not_closed(testbed):
    testbed.not_closed = "the socket"

def test_not_closed_and_qemu_died(testbed):
    testbed.not_closed = "the socket"
    testbed.dies()

def test_own_assertion_and_not_closed(testbed):
    testbed.not_closed = "the socket"
    assert 1 == 2, "the scenario's own"

def test_skip_and_not_closed(testbed):
    testbed.not_closed = "the socket"
    pytest.skip("not on this machine")

@pytest.fixture
def broken_and_not_closed(testbed):
    testbed.not_closed = "the socket"
    raise GuestError("the guest never booted")

def test_set_up_fails_and_not_closed(broken_and_not_closed):
    pass

@pytest.mark.parametrize("value", ["a/b", "a b"])
def test_parametrized(testbed, value):
    assert False
"""


@dataclass
class Outcome:
    phases: dict[str, str]
    first: str
    text: str
    sections: dict[str, str]


@dataclass
class Ran:
    outcomes: dict[str, Outcome]
    folder: Path
    stdout: str
    returncode: int

    def __getitem__(self, name: str) -> Outcome:
        return self.outcomes[f"test_{name}"]

    def kept(self, name: str) -> bool:
        return (self.folder / f"test_cases.test_{name}").exists()


def _ran(tmp: Path, run_pytest: Pytest, *options: str, cases: str = _CASES) -> Ran:
    (tmp / "conftest.py").write_text(Path(__file__).with_name("inner.py").read_text())
    (tmp / "pytest.ini").write_text("[pytest]\n")
    (tmp / "test_cases.py").write_text(cases)
    done = run_pytest(tmp, "--artifacts", "out", *options)
    assert (tmp / "outcomes.json").exists(), done.stdout + done.stderr
    outcomes: dict[str, Any] = json.loads((tmp / "outcomes.json").read_text())
    return Ran(
        {name: Outcome(**seen) for name, seen in outcomes.items()},
        tmp / "out",
        done.stdout,
        done.returncode,
    )


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, run_pytest: Pytest) -> Ran:
    junit = ("--junitxml", "junit.xml", "-o", "junit_logging=system-out")
    return _ran(tmp_path_factory.mktemp("cases"), run_pytest, *junit)


_DIED = "harness.errors.Violation: QEMU 'source' was killed by SIGSEGV after qmp:device_del"


def test_a_valid_record_lets_a_test_pass(ran: Ran) -> None:
    assert ran["passes"].phases == {"setup": "passed", "call": "passed", "teardown": "passed"}
    assert not ran.kept("passes")


def test_a_test_without_machines_is_not_judged(ran: Ran) -> None:
    assert ran["without_a_testbed"].phases["call"] == "passed"


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("qemu_died", _DIED),
        ("process_left", "harness.errors.Violation: left behind: processes: 4711 qemu-system-x86_64"),
        ("two_findings", _DIED),
        ("nobody_looked_and_a_finding", _DIED),
        (
            "nobody_looked",
            "harness.errors.HarnessError: inconclusive: nothing_left_behind: "
            "the test ended without a check for what it left behind",
        ),
    ],
)
def test_a_passing_test_fails_by_its_record(ran: Ran, name: str, first: str) -> None:
    assert ran[name].phases == {"setup": "passed", "call": "failed", "teardown": "passed"}
    assert ran[name].first == first
    assert ran.kept(name)


def test_every_finding_is_listed_under_the_worst(ran: Ran) -> None:
    assert "nothing_left_behind: left behind: processes: 4711" in ran["two_findings"].text
    listed = ran["two_findings"].sections["checkers"].splitlines()
    assert [line.split()[:2] for line in listed] == [
        ["invalid", "qemu_alive:"],
        ["invalid", "nothing_left_behind:"],
    ]


def test_a_scenarios_own_failure_comes_first(ran: Ran) -> None:
    assert ran["own_assertion"].first == "AssertionError: the scenario's own"
    assert ran["own_assertion_and_something_left"].first == "AssertionError: the scenario's own"
    assert "left behind" in ran["own_assertion_and_something_left"].sections["checkers"]


@pytest.mark.parametrize(
    ("name", "symptom"),
    [
        ("own_assertion_and_qemu_died", "the scenario's own"),
        ("symptom_and_qemu_died", "ssh: the connection broke"),
        ("pytest_fail_and_qemu_died", "the scenario's own"),
    ],
)
def test_a_dead_qemu_comes_before_its_symptoms(ran: Ran, name: str, symptom: str) -> None:
    assert ran[name].phases["call"] == "failed"
    assert ran[name].first == _DIED
    assert symptom in ran[name].text
    assert f"test_{name}" in ran[name].text, "the scenario's own line is still shown"


def test_a_full_disk_is_the_cause_of_whatever_else_went_wrong(ran: Ran) -> None:
    for name in ("full_disk", "full_disk_and_a_symptom"):
        outcome = ran[name]
        assert outcome.phases["call"] == "failed"
        assert "cannot write" in outcome.first
        assert "No space left on device; free some space, or give --artifacts another folder" in outcome.text
    assert "seen as: waited 1.0 s for the guest" in ran["full_disk_and_a_symptom"].text


def test_what_accuses_the_product_already_stays(ran: Ran) -> None:
    first = ran["violation_and_qemu_died"].first
    assert first == "harness.errors.Violation: device_del completed while the share was in use"
    assert "killed by SIGSEGV" in ran["violation_and_qemu_died"].sections["checkers"]


def test_a_cause_is_shown_before_its_symptom(ran: Ran) -> None:
    assert ran["chained_error"].first == "harness.errors.Violation: the cause"
    assert "more about it" in ran["chained_error"].text
    assert "the symptom" in ran["chained_error"].text


@pytest.mark.parametrize(
    "name",
    [
        "skips",
        "skips_before_a_machine",
        "skips_before_a_machine_unseen",
        "skip_in_the_middle_of_a_leak_hunt",
        "set_up_skips",
    ],
)
def test_a_skip_with_nothing_to_hide_stays_one(ran: Ran, name: str) -> None:
    """Without a machine there is no record to judge; a hunt that was broken off has too few samples."""
    assert "skipped" in ran[name].phases.values()
    assert "failed" not in ran[name].phases.values()
    assert not ran.kept(name)


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("skip_and_qemu_died", _DIED),
        ("unsupported_and_qemu_died", _DIED),
        ("unittest_skip_and_qemu_died", _DIED),
        ("xfail_and_qemu_died", _DIED),
        ("set_up_skip_and_qemu_died", _DIED),
        ("set_up_unsupported_and_qemu_died", _DIED),
        (
            "skip_and_something_left",
            "harness.errors.Violation: left behind: processes: 4711 qemu-system-x86_64",
        ),
        (
            "skip_and_nobody_looked",
            "harness.errors.HarnessError: inconclusive: nothing_left_behind: "
            "the test ended without a check for what it left behind",
        ),
    ],
)
def test_a_skip_hides_nothing_and_keeps_its_folder(ran: Ran, name: str, first: str) -> None:
    assert "failed" in ran[name].phases.values()
    assert "skipped" not in ran[name].phases.values()
    assert ran[name].first == first
    assert "the test would have been skipped: not on this machine" in ran[name].text
    assert ran.kept(name)


@pytest.mark.parametrize(
    ("body", "returncode", "said"),
    [
        ("testbed.dies()", 1, "Exit: enough; QEMU 'source' was killed by SIGSEGV after qmp:device_del"),
        ("testbed.left = ['4711 qemu']", 1, "Exit: enough; left behind: processes: 4711 qemu"),
        ("pass", 0, "Exit: enough"),
    ],
)
def test_an_exit_ends_the_run_and_is_no_success_beside_a_finding(
    run_pytest: Pytest, tmp_path: Path, body: str, returncode: int, said: str
) -> None:
    cases = f"import pytest\ndef test_exits(testbed):\n    {body}\n    pytest.exit('enough', returncode=0)\n"
    ran = _ran(tmp_path, run_pytest, cases=f"{cases}def test_comes_later(testbed): pass\n")
    assert ran.returncode == returncode
    assert f" _pytest.outcomes.{said} !" in ran.stdout
    assert "test_comes_later" not in ran.outcomes


def test_what_a_qemu_cannot_do_skips_and_says_so(ran: Ran) -> None:
    assert ran["unsupported"].phases["call"] == "skipped"
    assert (
        "file: this QEMU has no such URIs" in ran["unsupported"].first + ran["unsupported"].text + ran.stdout
    )
    assert not ran.kept("unsupported")


def test_a_known_bug_may_be_what_a_checker_finds(ran: Ran) -> None:
    assert ran["known_bug_that_a_checker_finds"].phases["call"] == "xfailed"
    assert ran.kept("known_bug_that_a_checker_finds"), "the evidence of a known bug is wanted"


def test_a_known_bug_that_is_gone_fails(ran: Ran) -> None:
    assert ran["known_bug_that_is_gone"].phases["call"] == "failed"
    assert "XPASS(strict)" in ran["known_bug_that_is_gone"].text


def test_an_inconclusive_record_is_no_known_bug(ran: Ran) -> None:
    assert ran["known_bug_and_an_inconclusive_record"].phases["call"] == "failed"
    assert "inconclusive" in ran["known_bug_and_an_inconclusive_record"].first


def test_a_set_up_that_fails_is_judged_and_kept(ran: Ran) -> None:
    assert ran["set_up_fails"].phases == {"setup": "failed", "teardown": "passed"}
    assert ran["set_up_fails"].first == "harness.errors.GuestError: the guest never booted"
    assert ran["set_up_fails_of_a_death"].first == _DIED
    for name in ("set_up_fails", "set_up_fails_of_a_death"):
        verdict = json.loads((ran.folder / f"test_cases.test_{name}" / "verdict.json").read_text())
        assert verdict["verdict"] == ("valid" if name == "set_up_fails" else "invalid")


def test_what_is_raised_when_a_testbed_is_closed_hides_no_failure(ran: Ran) -> None:
    first = {
        "not_closed": "ValueError: the socket",
        "not_closed_and_qemu_died": _DIED,
        "own_assertion_and_not_closed": "AssertionError: the scenario's own",
        "skip_and_not_closed": "ValueError: the socket",
        "set_up_fails_and_not_closed": "harness.errors.GuestError: the guest never booted",
    }
    for name, expected in first.items():
        assert ran[name].first == expected
        assert "ValueError: the socket" in ran[name].text or name == "not_closed_and_qemu_died"
        assert list(ran[name].phases.values()).count("failed") == 1
        assert ran.kept(name)
    assert "seen as: the socket" in ran["not_closed_and_qemu_died"].text
    assert "the test itself: Skipped: not on this machine" in ran["skip_and_not_closed"].text


def test_a_tear_down_that_fails_keeps_the_folder(ran: Ran) -> None:
    assert ran["tear_down_fails"].phases == {"setup": "passed", "call": "passed", "teardown": "failed"}
    assert ran.kept("tear_down_fails")


def test_a_failure_names_its_folder(ran: Ran) -> None:
    folder = ran.folder / "test_cases.test_qemu_died"
    assert ran["qemu_died"].sections["artefacts"] == str(folder)
    assert str(folder) in ran.stdout
    assert "Linux version 6.1.0" in ran["qemu_died"].sections["last kernel lines"]
    assert (folder / "history.ndjson").read_text().count('"closed"') == 1
    assert f"artefacts of what failed: {ran.folder}" in ran.stdout


def test_the_files_of_a_failure_are_attachments_of_its_junit_test_case(ran: Ran) -> None:
    start = ran.folder.parent
    cases = {case.get("name"): case for case in ElementTree.parse(start / "junit.xml").iter("testcase")}
    attached = re.findall(
        r"^\[\[ATTACHMENT\|(.+)\]\]$", cases["test_qemu_died"].findtext("system-out", ""), re.MULTILINE
    )
    assert attached[0] == "out/test_cases.test_qemu_died/history.ndjson"
    assert "out/test_cases.test_qemu_died/verdict.json" in attached
    assert all((start / path).stat().st_size for path in attached)
    assert "ATTACHMENT" not in (cases["test_passes"].findtext("system-out") or "")
    assert ran.stdout.count(SECTION) == 1, "the terminal shows it where the teardown fails, and only there"


def test_an_attachment_outside_of_the_current_folder_has_an_absolute_path(tmp_path: Path) -> None:
    for name, content in (("qmp.ndjson", "{}"), ("history.ndjson", "{}"), ("qemu.log", "")):
        (tmp_path / name).write_text(content)
    (tmp_path / "destination-1").mkdir()
    (tmp_path / "destination-1" / "backtrace.txt").write_text("#0")
    names = ("destination-1/backtrace.txt", "history.ndjson", "qmp.ndjson")
    assert attachments(tmp_path, tmp_path / "elsewhere") == [f"[[ATTACHMENT|{tmp_path / n}]]" for n in names]


def test_parametrized_tests_have_folders_of_their_own(ran: Ran) -> None:
    folders = {path.name for path in ran.folder.iterdir() if "parametrized" in path.name}
    assert len(folders) == 2


def test_the_failed_ones_alone_are_kept(ran: Ran) -> None:
    kept = {path.name for path in ran.folder.iterdir()}
    gone = {"passes", "skips", "unsupported", "without_a_testbed", "set_up_skips"}
    gone |= {"skips_before_a_machine", "skips_before_a_machine_unseen", "skip_in_the_middle_of_a_leak_hunt"}
    assert not {f"test_cases.test_{name}" for name in gone} & kept
    assert len(kept) == len(ran.outcomes) - len(gone)
    assert ran.returncode == 1


def test_keep_artifacts_keeps_all(tmp_path: Path, run_pytest: Pytest) -> None:
    ran = _ran(tmp_path, run_pytest, "--keep-artifacts", "-k", "test_passes or test_skips")
    assert (ran.kept("passes"), ran.kept("skips")) == (True, True)
    verdict = json.loads((ran.folder / "test_cases.test_passes" / "verdict.json").read_text())
    assert verdict["verdict"] == "valid"
