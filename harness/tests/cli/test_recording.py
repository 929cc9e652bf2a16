"""What the commands leave in a history. ``test_merge_and_compare`` has that of ``harness merge``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.bench.suite import SuiteRun
from harness.cli import bench, explore, faults
from harness.errors import SetupError
from harness.explore.attempt import Failure as Broken
from harness.explore.finding import Finding as Found
from harness.mutation import runner
from harness.mutation.catalogue import Catalogue
from harness.mutation.verdicts import Failure, Finding
from harness.report.nights import rows
from harness.report.nights.circumstances import about
from harness.report.nights.recorder import EXPLORE, Lenient, Recorder
from harness.report.nights.store import Store
from harness.tests.cli.conftest import Harness
from harness.tests.explore.fakes import program


@pytest.fixture
def history(tmp_path: Path) -> Path:
    return tmp_path / "nights.sqlite"


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """The verdicts of ``harness faults run`` are given: neither QEMU nor pytest is started."""
    failed = (Failure("test_leak.py", "test_a[pc]", "leak"),)
    findings = [
        Finding("", "", "7.2-src", 3, ()),
        Finding("tag-kept", "no leak", "7.2-src", 1, failed),
        Finding("missed", "no leak", "7.2-src", 1, ()),
    ]
    monkeypatch.setattr(faults, "run_all", lambda *_, **__: findings)
    monkeypatch.setattr(faults, "_chosen", lambda *_: {"tag-kept": Catalogue().load("tag-kept")})
    monkeypatch.setattr(faults, "_build", lambda *_: {})
    monkeypatch.setattr(runner, "collected", lambda *_: ())


@pytest.mark.usefixtures("judged")
def test_the_verdicts_on_faults_are_recorded(harness: Harness, history: Path) -> None:
    words = ("--fault", "tag-kept", "--fault", "missed", "--table", history.parent / "none")
    ended = harness("faults", "run", *words, "--record", history)
    assert ended.status == 1
    with Store(history, read_only=True) as read:
        (run,) = read.select(rows.Run)
        assert (run.kind, run.complete, run.exit_code) == ("faults", True, 1)
        assert run.options == ("--fault=tag-kept", "--fault=missed", f"--table={history.parent / 'none'}")
        found = [(one.kind, one.name, one.outcome, one.detail) for one in read.select(rows.Finding)]
    assert found == [
        ("control", "7.2-src", "passed", None),
        ("fault", "7.2-src+tag-kept", "caught", "test_a[pc]: leak"),
        ("fault", "7.2-src+missed", "missed", None),
    ]


@pytest.mark.usefixtures("judged")
def test_a_full_disk_changes_no_verdict_and_is_said_once(
    harness: Harness, history: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise SetupError("nights.sqlite: cannot write the history: database or disk is full")

    monkeypatch.setattr(Recorder, "find", full)
    ended = harness("faults", "run", "--table", history.parent / "none", "--record", history, "--json")
    assert ended.status == 1
    assert len(ended.json["findings"]) == 3
    assert ended.err.count("the history lacks what this run found") == 1
    with Store(history, read_only=True) as read:
        assert [run.complete for run in read.select(rows.Run)] == [False]


@pytest.mark.parametrize(
    "words",
    [("faults", "run"), ("explore",), ("bench", "qmp"), ("merge", "part-1")],
    ids=lambda words: words[0],
)
def test_what_cannot_be_a_history_is_refused_first(
    harness: Harness, tmp_path: Path, words: tuple[str, ...], cache_root: Path
) -> None:
    text = tmp_path / "text"
    text.write_text("no database, however long it is" * 100)
    ended = harness(*words, "--record", text)
    assert ended.status == 2
    assert "not a SQLite file" in ended.line
    assert not cache_root.exists(), "nothing was fetched or built"


def test_the_rows_of_a_benchmark_are_results(
    harness: Harness, history: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        bench, "run_suite", lambda _folder, n, _options, _log: SuiteRun(n, 100.0 / n, 50.0, 10.0)
    )
    assert harness("bench", "suite", "--record", history).status == 0
    with Store(history, read_only=True) as read:
        (run,) = read.select(rows.Run)
        assert (run.kind, run.complete) == ("bench", True)
        results = {one.test: one for one in read.select(rows.Result)}
        assert {name: one.seconds for name, one in results.items()} == {
            "bench/suite::1 workers": 100.0,
            "bench/suite::2 workers": 50.0,
            "bench/suite::4 workers": 25.0,
        }
        of_one = read.select(
            rows.Measurement, "result_id = ?", [results["bench/suite::1 workers"].id], order="name"
        )
        assert [(one.name, one.value) for one in of_one] == [
            ("processor", 50.0),
            ("python", 10.0),
            ("wall", 100.0),
        ]


def test_the_findings_and_the_coverage_of_an_exploration_are_recorded(history: Path) -> None:
    shown = program("plug:0 unplug:0", shares=1)
    found = Found(shown, shown, Broken("qemu_alive", "QEMU was killed by SIGSEGV"), "7.2.22")
    known = Found(shown, shown, Broken("blocked_reasons", "a blocker stays"), "7.2.22", "R2")
    explorer: Any = SimpleNamespace(
        new=[
            SimpleNamespace(finding=found, folder=Path("/f/1")),
            SimpleNamespace(finding=known, folder=None),
        ],
        tallies={"raw": Counter()},
        coverage=SimpleNamespace(
            counts=lambda name: f"12 of 40 pairs of {name}",
            pairs=lambda name: {("", "plug"): 2, ("plug", "unplug"): 1, ("plug", "stop"): 0},
        ),
    )
    with Recorder(history) as recorder:
        recorder.begin(EXPLORE, about(["--seed=1"]))
        explore._record(recorder, cast(Any, explorer))
        recorder.end(1)
    with Store(history, read_only=True) as read:
        rows_found = read.select(rows.Finding)
        assert [(one.kind, one.name, one.artefacts) for one in rows_found] == [
            ("finding", "qemu_alive | QEMU was killed by SIGSEGV", "/f/1"),
            ("known bug", "blocked_reasons | a blocker stays", None),
            ("coverage", "raw", None),
        ]
        assert rows_found[1].detail == "R2 plug(0); unplug(0)"
        assert rows_found[2].outcome == "12 of 40 pairs of raw"
        pairs = [(one.alphabet, one.first, one.next, one.times) for one in read.select(rows.StepPair)]
        assert pairs == [
            ("raw", "", "plug", 2),
            ("raw", "plug", "stop", 0),
            ("raw", "plug", "unplug", 1),
        ]


def test_after_a_write_that_failed_nothing_more_is_tried() -> None:
    tried = []

    def write(recorder: Recorder) -> None:
        tried.append(recorder)
        raise SetupError("full")

    lenient = Lenient(cast(Recorder, object()))
    lenient.write(write)
    lenient.write(write)
    assert (len(tried), lenient.failed) == (1, "full")
    Lenient(None).write(write)
    assert len(tried) == 1
