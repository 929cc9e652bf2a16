"""Runs of pytest in forked processes: what is forked, and what a run and its workers have of their own."""

from __future__ import annotations

import json
import os
from pathlib import Path

import psutil
import pytest

from harness.deadline import wait_until
from harness.tests import forked

_TESTS = """
import json, os, signal, sys
from pathlib import Path
import pytest

def _facts():
    words = Path("/proc/self/cmdline").read_bytes().split(b"\\0")
    return {
        "pid": os.getpid(),
        "fresh": b"sys.stdin.readline" in b" ".join(words),
        "folder": os.getcwd(),
        "given": os.environ.get("GIVEN"),
        "by_the_run": os.environ.get("BY_THE_RUN"),
        "foreign": sorted(name for name in sys.modules if name.startswith("conftest_of")),
    }

def test_dies():
    if os.environ.get("DIES"):
        os.kill(os.getpid(), signal.SIGKILL)

@pytest.mark.parametrize("number", range(4))
def test_it(number):
    Path(f"{number}.json").write_text(json.dumps(_facts()))
"""
#: Runs before there are workers: in the run's own process alone.
_CONFTEST = """
import os, sys
def pytest_configure(config):
    if not hasattr(config, "workerinput"):
        os.environ["BY_THE_RUN"] = "yes"
        sys.modules["conftest_of_the_run"] = sys
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "test_facts.py").write_text(_TESTS)
    (tmp_path / "conftest.py").write_text(_CONFTEST)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    return tmp_path


def _run(folder: Path, *options: str, **environment: str) -> tuple[int, str, list[dict[str, object]]]:
    given = {"PATH": os.environ["PATH"], "HOME": str(folder), **environment}
    words = ("-p", "no:cacheprovider", *options)
    done = forked.run(forked.run_pytest, words, folder=folder, environment=given, limit_s=120)
    facts = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return done.returncode, done.stdout, facts


def _in(folder: Path) -> list[psutil.Process]:
    """The processes in a folder."""
    return [one for one in psutil.process_iter(["cwd"]) if one.info["cwd"] == str(folder)]


def test_workers_are_forked_before_the_run_begins(folder: Path) -> None:
    status, out, facts = _run(folder, "-n", "2", "--dist", "loadscope", "-k", "test_it", GIVEN="this")
    assert (status, len(facts)) == (0, 4), out
    assert "2 workers" in out
    for fact in facts:
        assert (fact["folder"], fact["given"], fact["by_the_run"]) == (str(folder), "this", "yes")
        assert (fact["fresh"], fact["foreign"]) == (False, [])


def test_a_worker_that_died_is_replaced_by_a_fresh_one(folder: Path) -> None:
    status, out, facts = _run(folder, "-n", "1", "-k", "test_dies or test_it", "--dist", "load", DIES="1")
    assert (status, len(facts)) == (1, 4), out
    assert "worker 'gw0' crashed" in out
    assert [fact["fresh"] for fact in facts] == [True] * 4


def test_workers_that_are_not_used_end_with_the_run(folder: Path) -> None:
    status, out, _ = _run(folder, "-n", "2", "--no-such-option")
    assert (status, out) == (4, "")
    wait_until(lambda: not _in(folder), what="the end of the workers", timeout_s=10)


def test_the_processes_of_a_run_are_seen(folder: Path) -> None:
    """What the test before looks for is there while a run is."""
    (folder / "conftest.py").write_text(
        "import os, psutil\nfrom pathlib import Path\nfrom harness.tests.test_forked import _in\n"
        "def pytest_configure():\n"
        "    Path('0.json').write_text('{\"seen\": %d}' % len(_in(Path.cwd())))\n"
    )
    _, _, facts = _run(folder, "-n", "2", "--collect-only")
    assert facts == [{"seen": 3}]
