"""How often a failed test is run again, and which are not. ``test_recording`` shows what comes of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.plugin import confirming
from harness.report import summary
from harness.tests.plugin import inner
from harness.tests.plugin.conftest import Pytest


def _config(**given: Any) -> pytest.Config:
    values = {name if name == "usepdb" else f"harness_{name}": value for name, value in given.items()}
    return cast(
        pytest.Config, SimpleNamespace(getoption=lambda name, default=None: values.get(name, default))
    )


@pytest.mark.parametrize(
    ("given", "times"),
    [
        ({}, 0),
        ({"record": "nights.sqlite"}, 3),
        ({"record": "nights.sqlite", "confirm": "0"}, 0),
        ({"confirm": "5"}, 5),
        ({"record": "nights.sqlite", "stay_on_failure": True}, 0),
        ({"record": "nights.sqlite", "usepdb": True}, 0),
    ],
)
def test_the_number_depends_on_the_options(given: dict[str, Any], times: int) -> None:
    assert confirming.times(_config(**given)) == times


@pytest.mark.parametrize("given", ["-1", "often", "1.5", ""])
def test_what_is_no_number_is_refused(given: str) -> None:
    with pytest.raises(pytest.UsageError, match="write a number"):
        confirming.times(_config(confirm=given))


_CASES = """
import pytest
from pathlib import Path

@pytest.fixture(scope="module", autouse=True)
def of_module(): Path("modules").open("a").write("x")

@pytest.fixture(autouse=True)
def axes(qemu_name, kernel_name, machine_name): pass

class TestOfAClass:
    @pytest.mark.parametrize("number", range(3))
    def test_fails(self, testbed, number): assert {"number": number} == {}
@pytest.mark.xfail(strict=True)
def test_fixed(testbed): pass
@pytest.fixture
def broken(): raise ValueError("no guest")
def test_without_a_guest(broken, testbed): pass
def test_not_run_because_of_maxfail(testbed): Path("was_run").touch()
"""


def test_failures_of_each_kind_are_run_again(run_pytest: Pytest, tmp_path: Path) -> None:
    """Also after --maxfail, with a limit, with fixtures made anew, and explained as before."""
    (tmp_path / "test_leak.py").write_text(_CASES)
    limit = "\nfrom harness.plugin import confirming\nconfirming._MOST = 4\n"
    (tmp_path / "conftest.py").write_text(Path(inner.__file__).read_text() + limit)
    done = run_pytest(tmp_path, "--machine", "pc", "--confirm", "2", "--maxfail", "5", "--summary", "out")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "running 4 failed tests again, 2 times each" in done.stdout
    assert "not run again: 1 more tests that failed" in done.stdout
    assert "4 failed, 1 error" in done.stdout, "further runs are not counted"
    assert not (tmp_path / "was_run").exists()
    assert len((tmp_path / "modules").read_text()) == 9, "the module's fixture: once, and for each run"
    found = {result.test.partition("::")[2]: result for result in summary.read(tmp_path / "out").results}
    assert [result.runs for result in found.values()] == ["3 of 3"] * 4 + [""]
    for result in found.values():
        assert {one.signature for one in result.again} <= {result.signature}
