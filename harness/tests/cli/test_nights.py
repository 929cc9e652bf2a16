from __future__ import annotations

from pathlib import Path

import pytest

from harness.report.nights.circumstances import about
from harness.report.nights.recorder import EXPLORE, Recorder
from harness.report.nights.store import Store
from harness.tests.cli.conftest import Harness
from harness.tests.report.nights.generator import CAUSE, Plan, write


@pytest.fixture(scope="module")
def regressed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A history of ten nights; in the last two, three tests fail."""
    path = tmp_path_factory.mktemp("history") / "nights.sqlite"
    write(path, Plan(regression=8), nights=10)
    return path


def test_nights_without_a_new_failure_exit_with_0(harness: Harness, tmp_path: Path) -> None:
    write(tmp_path / "nights.sqlite", nights=5)
    ended = harness("nights", tmp_path / "nights.sqlite")
    assert (ended.status, ended.err) == (0, "")
    assert "NEW FAILURES: none" in ended.out
    assert "TRENDS: not known yet: 58 series of up to 5 nights; a change can be shown from" in ended.out


def test_a_new_failure_exits_with_1(harness: Harness, regressed: Path) -> None:
    assert harness("nights", regressed).status == 0, "it began before the newest night"
    for since in ("2d", "2026-10-08", "2026-10-08T01:00"):
        ended = harness("nights", regressed, "--since", since)
        assert ended.status == 1
        assert f"1. {CAUSE}" in ended.out
        assert "harness bisect scenarios/test_crash.py::test_crash_0 --machine pc --releases" in ended.out
    assert harness("nights", regressed, "--since", "2026-10-09").status == 0


def test_the_page(harness: Harness, regressed: Path, tmp_path: Path) -> None:
    ended = harness("nights", regressed, "--since", "2d", "--page", tmp_path / "page")
    assert (ended.status, ended.line) == (1, f"harness: page: {tmp_path}/page/index.html")
    assert CAUSE in (tmp_path / "page" / "index.html").read_text()


def test_the_page_of_explorations_alone(harness: Harness, tmp_path: Path) -> None:
    path = tmp_path / "nights.sqlite"
    with Recorder(path) as recorder:
        recorder.begin(EXPLORE, about(["--seconds", "9"]))
        recorder.find("finding", "qemu_alive | killed by SIGSEGV", "failed")
        recorder.end(0)
    ended = harness("nights", path, "--page", tmp_path / "page")
    assert (ended.status, ended.line) == (0, f"harness: page: {tmp_path}/page/index.html")
    assert "no run of scenarios" in ended.out
    assert "killed by SIGSEGV" in (tmp_path / "page" / "index.html").read_text()
    assert harness("nights", path).status == 2, "there is nothing to compare"


def test_the_report_as_json(harness: Harness, regressed: Path) -> None:
    ended = harness("nights", regressed, "--since", "2d", "--json")
    assert ended.status == 1
    (new,) = ended.json["new"]
    assert (new["cause"], len(new["tests"]), new["bad_nights"]) == (CAUSE, 3, 2)
    assert ended.json["since"] == "2026-10-07T02:00:00+00:00"


def test_bad_input_is_one_line(harness: Harness, regressed: Path, tmp_path: Path) -> None:
    with Store(tmp_path / "empty.sqlite"):
        pass
    for words, said in (
        ((regressed, "--since", "yesterday"), "--since yesterday: write a day (2026-11-20), a time, or days"),
        ((tmp_path / "empty.sqlite",), "has no run of scenarios yet"),
        ((tmp_path / "none.sqlite",), "does not exist"),
    ):
        ended = harness("nights", *words)
        assert ended.status == 2
        assert said in ended.line
