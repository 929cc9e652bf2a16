"""The ledger's xfail: for the failure that an entry describes alone, and strict where the range is known."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

from harness.report import summary
from harness.tests.plugin import inner
from harness.tests.plugin.conftest import Pytest

_CONFTEST = """
from harness.report import ledger
from harness.report.ledger import Bug, Ledger
from harness.qemu.binary import Capabilities

def _bug(id, scenario, **more):
    return Bug(id=id, guarantee="no leak", title="it leaks", evidence="seen",
               **{"affected": ["<10.0"], "seen_broken": ["7.2.22"], "failure": "leaked|killed by SIGSEGV",
                  "scenarios": [f"test_cases.py::{scenario}"], **more})

_UNKNOWN = {"affected": ["==7.2.20"], "unaffected": ["==7.2.24"], "seen_broken": ["7.2.20"]}

LEDGER = Ledger(bug=[
    _bug("B1", "test_as_described"), _bug("B2", "test_otherwise"), _bug("B3", "test_gone"),
    _bug("B4", "test_other_version", affected=[">=10.0"], unaffected=["<10.0"], seen_broken=["10.0.0"]),
    _bug("B5", "test_other_machine", machines=["q35"]),
    _bug("B6", "test_parameters[small]"), _bug("B7", "test_dies"), _bug("B8", "test_skips"),
    _bug("B10", "test_leaves_a_process"), _bug("B11", "test_leaks_and_dies"),
    _bug("B12", "test_leaks_and_hangs[expected]", guest_kernel="task mount:.* blocked"),
    _bug("B13", "test_leaks_and_hangs[unheard]"),
    _bug("B14", "test_leaks_and_more_than_hangs", guest_kernel="task mount:.* blocked"),
    _bug("B15", "test_leaks_without_a_log"),
    _bug("B9", "test_raises_nothing", failure="DID NOT RAISE .*Violation"),
    _bug("C1", "test_unknown_shows", **_UNKNOWN), _bug("C2", "test_unknown_is_absent", **_UNKNOWN),
    _bug("C3", "test_unknown_and_otherwise", **_UNKNOWN),
    _bug("D1", "test_two_bugs", failure="another"), _bug("D2", "test_two_bugs"),
    _bug("E1", "", scenarios=["test_leak.py::test_shows", "test_leak.py::test_is_absent"], **_UNKNOWN),
    _bug("E2", "", scenarios=["test_leak.py::test_shows"], failure="something else"),
])
ledger.load = lambda path=None: LEDGER
Matrix.qemu = lambda self, name: (None, Capabilities("", (7, 2, 22), frozenset(), frozenset()))
"""
_CASES = """
import pytest
from harness.errors import Violation

pytestmark = pytest.mark.usefixtures("qemu_name", "kernel_name", "machine_name")

@pytest.fixture(scope="session")
def qemu_name(request): return request.param
@pytest.fixture(scope="session")
def kernel_name(request): return request.param
@pytest.fixture(scope="session")
def machine_name(request): return request.param

def leak():
    raise Violation("a fid leaked", details="more")

def test_as_described(testbed): leak()
def test_otherwise(testbed): raise Violation("something else", details="a fid leaked")
def test_gone(testbed): pass
def test_other_version(testbed): leak()
def test_other_machine(testbed): leak()
def test_not_listed(testbed): leak()
def test_dies(testbed): testbed.dies()
def test_skips(testbed): pytest.skip("not here")
def test_leaves_a_process(testbed):
    testbed.left = ["4711 qemu-system-x86_64"]
    leak()
def test_leaks_and_dies(testbed):
    testbed.dies()
    leak()
@pytest.mark.parametrize("how", ["expected", "unheard"])
def test_leaks_and_hangs(testbed, how):
    log = testbed.artifacts.folder / "guest-kernel.log"
    log.write_text("INFO: task mount:9 blocked for more than 10 seconds")
    leak()
def test_leaks_and_more_than_hangs(testbed):
    log = testbed.artifacts.folder / "guest-kernel.log"
    log.write_text("INFO: task mount:9 blocked for more than 10 seconds\\nrefcount_t: underflow\\n")
    leak()
def test_leaks_without_a_log(testbed):
    (testbed.artifacts.folder / "guest-kernel.log").unlink()
    leak()
def test_raises_nothing(testbed):
    with pytest.raises(Violation): pass

def test_unknown_shows(testbed): leak()
def test_unknown_is_absent(testbed): pass
def test_unknown_and_otherwise(testbed): raise Violation("something else")
def test_two_bugs(testbed): leak()

@pytest.mark.parametrize("size", ["small", "large"])
def test_parameters(testbed, size): leak()
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory, run_pytest: Pytest) -> dict[str, tuple[str, str]]:
    folder = tmp_path_factory.mktemp("known-bugs")
    (folder / "conftest.py").write_text(Path(inner.__file__).read_text() + _CONFTEST)
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "test_cases.py").write_text(_CASES)
    done = run_pytest(folder, "--machine", "pc", "--artifacts", "out", "test_cases.py")
    assert (folder / "outcomes.json").exists(), done.stdout + done.stderr
    found = json.loads((folder / "outcomes.json").read_text())
    return {_short(name): (seen["phases"].get("call", "none"), seen["text"]) for name, seen in found.items()}


def _short(name: str) -> str:
    """Without the axes."""
    return re.sub("-?default-default-pc-?", "", name).replace("[]", "")


@pytest.mark.parametrize(
    ("test", "outcome", "text"),
    [
        ("as_described", "xfailed", ""),
        ("dies", "xfailed", ""),
        ("raises_nothing", "xfailed", ""),
        ("parameters[small]", "xfailed", ""),
        ("leaks_and_dies", "xfailed", ""),
        ("leaks_and_hangs[expected]", "xfailed", ""),
        ("leaks_and_hangs[unheard]", "failed", "beside the known bug B13: the guest's kernel"),
        ("leaks_and_more_than_hangs", "failed", "the guest's kernel of 'source': refcount_t: underflow"),
        ("leaks_without_a_log", "failed", "beside the known bug B15: there is no kernel log of 'source'"),
        ("leaves_a_process", "failed", "beside the known bug B10: left behind: processes: 4711"),
        ("otherwise", "failed", "something else"),
        ("otherwise", "failed", "known bug B2 expects /leaked|killed by SIGSEGV/ in the first line"),
        ("gone", "failed", "XPASS(strict)] B3: it leaks (seen in 7.2.22)"),
        ("other_version", "failed", "a fid leaked"),
        ("other_machine", "failed", "a fid leaked"),
        ("not_listed", "failed", "a fid leaked"),
        ("parameters[large]", "failed", "a fid leaked"),
        ("skips", "skipped", "not here"),
        ("unknown_shows", "xfailed", ""),
        ("unknown_is_absent", "passed", ""),
        ("unknown_and_otherwise", "failed", "something else"),
        ("two_bugs", "xfailed", ""),
    ],
)
def test_the_outcome(outcomes: dict[str, tuple[str, str]], test: str, outcome: str, text: str) -> None:
    seen, said = outcomes[f"test_{test}"]
    assert seen == outcome
    assert text in said


@pytest.mark.parametrize("workers", ["0", "1"])
def test_the_summary_says_what_was_seen_where_the_range_is_unknown(
    run_pytest: Pytest, tmp_path: Path, workers: str
) -> None:
    (tmp_path / "conftest.py").write_text(Path(inner.__file__).read_text() + _CONFTEST)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    head = _CASES.partition("def test_as_described")[0]
    (tmp_path / "test_leak.py").write_text(
        f"{head}\ndef test_shows(testbed): leak()\ndef test_is_absent(testbed): pass\n"
    )
    done = run_pytest(tmp_path, "--machine", "pc", "--summary", "out", "-n", workers, "test_leak.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "E1: seen broken on 7.2.22, range unknown" in done.stdout
    assert "E1: not seen on 7.2.22, range unknown" in done.stdout
    run = summary.read(tmp_path / "out")
    assert {(_short(r.test), str(r.outcome), r.bug, r.range_unknown) for r in run.results} == {
        ("test_leak.py::test_shows", "known bug", "E1", "E1"),
        ("test_leak.py::test_is_absent", "passed", "", "E1"),
    }
    (shows,) = (r for r in run.results if r.bug)
    assert "range unknown: seen broken on 7.2.22: E1: a fid leaked" in shows.why


_ADDED = """
[[bug]]
id = "{id}"
guarantee = "{guarantee}"
title = "it is lost"
affected = [">=0"]
seen_broken = ["7.2.22"]
scenarios = [{scenarios}]
failure = "it is lost"
evidence = "seen"
"""
_MINE = (
    _CASES.partition("def test_as_described")[0]
    + """
@pytest.mark.guarantee("nothing is lost")
def test_lost(testbed): raise Violation("it was lost")

@pytest.mark.guarantee("another")
def test_passes(testbed): pass

@pytest.mark.guarantee("nothing is lost")
@pytest.mark.parametrize("size", ["small", "large"])
def test_sizes(testbed, size): pass

@pytest.mark.guarantee("another")
class TestClass:
    def test_in_a_class(self, testbed): raise Violation("it is lost")
"""
)


def _bug(scenarios: str, guarantee: str = "nothing is lost", id: str = "MY1") -> str:
    return _ADDED.format(scenarios=scenarios, guarantee=guarantee, id=id)


def _added(
    folder: Path, run_pytest: Pytest, bugs: Iterable[str], *options: str
) -> subprocess.CompletedProcess[str]:
    (folder / "conftest.py").write_text(Path(inner.__file__).read_text())
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "sub").mkdir()
    (folder / "sub/test_mine.py").write_text(_MINE)
    (folder / "bugs.toml").write_text("".join(bugs))
    return run_pytest(folder, "--machine", "pc", "--known-bugs", "bugs.toml", *options)


def test_a_failure_that_is_not_the_known_bugs_names_what_is_expected(
    run_pytest: Pytest, tmp_path: Path
) -> None:
    bug = _bug('"sub/test_mine.py::test_lost"')
    done = _added(tmp_path, run_pytest, [bug], "--tb=no", "-k", "test_lost")
    assert "it was lost; known bug MY1 expects /it is lost/ in the first line" in re.sub(
        r"[│\s]+", " ", done.stdout
    )


#: The scenarios and the guarantee of an added entry, and what is said about it.
_COMPARED = [
    ('"test_mine.py::test_lots"', "nothing is lost", "sub/test_mine.py has no test test_lots"),
    ('"sub/test_mine.py::test_lots[pc]"', "nothing is lost", "sub/test_mine.py has no test test_lots"),
    ('"test_mine.py::TestX::test_in_a_class"', "another", "has no test TestX::test_in_a_class"),
    (
        '"test_mine.py::test_lost"',
        "no loss",
        "its guarantee is 'no loss', that of its scenarios 'nothing is lost'",
    ),
    (
        '"test_mine.py::test_sizes[smal]"',
        "nothing is lost",
        "test_mine.py::test_sizes[smal]: no such parameter; test_sizes has large, small",
    ),
    ('"test_mine.py::test_sizes[small]"', "nothing is lost", ""),
    ('"test_mine.py::test_sizes[q35]"', "nothing is lost", ""),
    ('"test_mine.py::test_lost[9.9]"', "nothing is lost", ""),
    ('"test_mine.py::TestClass::test_in_a_class"', "another", ""),
    ('"test_mine.py::test_in_a_class", "test_mine.py::test_lost"', "another", ""),
    ('"sub/test_mine.py::test_lost"', "nothing is lost", ""),
    ('"other/test_mine.py::test_lots"', "nothing is lost", ""),
    ('"test_of_another_run.py::test_lots"', "nothing is lost", ""),
]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, run_pytest: Pytest) -> list[str]:
    """What one run with all entries prints; entry N of the list is MYN."""
    bugs = [_bug(scenarios, text, f"MY{number}") for number, (scenarios, text, _) in enumerate(_COMPARED)]
    done = _added(tmp_path_factory.mktemp("compared"), run_pytest, bugs, "--collect-only", "-q")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("number", range(len(_COMPARED)))
def test_an_added_entry_is_compared_with_the_collected_tests(compared: list[str], number: int) -> None:
    said = _COMPARED[number][2]
    lines = [line for line in compared if line.startswith(f"known bug MY{number}: ")]
    assert [said in line for line in lines] == ([True] if said else [])


@pytest.mark.parametrize(("workers", "strict"), [("0", True), ("0", False), ("2", True)])
def test_with_strict_a_wrong_entry_fails_the_run(
    run_pytest: Pytest, tmp_path: Path, workers: str, strict: bool
) -> None:
    options = ["-n", workers, "-k", "test_passes", *(["--strict"] if strict else [])]
    done = _added(tmp_path, run_pytest, [_bug('"test_mine.py::test_lots"')], *options)
    assert "1 passed" in done.stdout
    assert done.stdout.count("sub/test_mine.py has no test test_lots") == 1
    assert done.returncode == int(strict)
