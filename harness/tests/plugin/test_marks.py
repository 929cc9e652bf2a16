"""``@pytest.mark.guarantee``: tests of other repositories have their row in the summary."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from harness.guarantees import UNNAMED
from harness.plugin.marks import guarantee_of
from harness.report import summary
from harness.report.summary import Outcome
from harness.tests.plugin import inner
from harness.tests.plugin.conftest import Pytest

_BLOCK = "a disk [survives] its unplug"
_CASES = f"""
import pytest
from harness.errors import Violation

@pytest.fixture
def cell(qemu_name, kernel_name, machine_name): pass

@pytest.mark.guarantee("{_BLOCK}")
class TestBlock:
    def test_passes(self, cell, testbed): pass
    def test_known(self, cell, testbed): raise Violation("a request is lost")

@pytest.mark.guarantee("it is never asserted")
def test_skips(cell, testbed): pytest.skip("not here")

@pytest.mark.guarantee("no guest is needed for that")
def test_without_a_guest(): pass
def test_unnamed(cell, testbed): pass
def test_theirs(): pass
"""
_LEDGER = f"""
[[bug]]
id = "B1"
guarantee = "{_BLOCK}"
title = "a request is lost"
affected = ["<=7.2.22"]
seen_broken = ["7.2.22"]
scenarios = ["test_block.py::test_known"]
failure = "a request is lost"
evidence = "seen"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "conftest.py").write_text(Path(inner.__file__).read_text())
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_block.py").write_text(_CASES)
    (tmp_path / "bugs.toml").write_text(_LEDGER)
    return tmp_path


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_guarantee_of_another_repository(folder: Path, run_pytest: Pytest, workers: str) -> None:
    options = ("--machine", "pc", "--known-bugs", "bugs.toml", "--summary", "out", "--junitxml", "junit.xml")
    done = run_pytest(folder, *options, "--strict", "-n", workers)
    assert done.returncode == 1, done.stdout + done.stderr
    run = summary.read(folder / "out")
    found = {
        r.test.partition("::")[2].partition("[")[0]: (r.guarantee, r.outcome, r.bug) for r in run.results
    }
    assert found == {
        "TestBlock::test_passes": (_BLOCK, Outcome.PASSED, ""),
        "TestBlock::test_known": (_BLOCK, Outcome.KNOWN, "B1"),
        "test_skips": ("it is never asserted", Outcome.SKIPPED, ""),
        "test_without_a_guest": ("no guest is needed for that", Outcome.PASSED, ""),
        "test_unnamed": (UNNAMED, Outcome.PASSED, ""),
    }
    assert [gap.guarantee for gap in run.not_asserted] == ["it is never asserted"]
    assert "--strict: 1 not asserted: the run fails" in done.stdout
    assert _BLOCK in done.stdout
    properties = [
        (one.get("name"), one.get("value"))
        for one in ElementTree.parse(folder / "junit.xml").iter("property")
    ]
    assert properties.count(("guarantee", _BLOCK)) == 2


@pytest.mark.parametrize("arguments", [(), ("",), (1,), ("a", "b")])
def test_a_mark_has_one_text(request: pytest.FixtureRequest, arguments: tuple[object, ...]) -> None:
    request.node.add_marker(pytest.mark.guarantee(*arguments))
    with pytest.raises(pytest.UsageError, match=r'write @pytest\.mark\.guarantee\("\.\.\."\), with one text'):
        guarantee_of(request.node)


def test_a_mark_without_one_text_is_a_usage_error(folder: Path, run_pytest: Pytest) -> None:
    (folder / "test_block.py").write_text(
        "import pytest\n@pytest.mark.guarantee\ndef test_it(qemu_name): pass\n"
    )
    done = run_pytest(folder, "--collect-only")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    (error,) = [line for line in done.stderr.splitlines() if line.strip()]
    assert error.endswith('test_it[default]: write @pytest.mark.guarantee("..."), with one text')
