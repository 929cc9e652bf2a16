from __future__ import annotations

from pathlib import Path

import pytest

from harness.cli import compare
from harness.report import summary
from harness.report.summary import Outcome, Run, Shard
from harness.tests.cli.conftest import Harness
from harness.tests.report.test_summary import result


def _written(folder: Path, run: Run) -> Path:
    summary.write(run, folder)
    return folder


def _shards(tmp_path: Path, outcome: Outcome = Outcome.PASSED) -> list[Path]:
    return [
        _written(
            tmp_path / str(index),
            Run(
                results=(result(f"t{index}", outcome=outcome),),
                shard=Shard(index=index, count=2, collected="x", tests=1),
            ),
        )
        for index in (1, 2)
    ]


def test_shards_are_joined(harness: Harness, tmp_path: Path) -> None:
    ended = harness("merge", *_shards(tmp_path), "--into", tmp_path / "all")
    assert (ended.status, ended.err) == (0, "")
    assert "2 passed" in ended.out
    assert len(summary.read(tmp_path / "all").results) == 2


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.FIXED])
def test_a_failure_in_a_shard_is_a_failure(harness: Harness, tmp_path: Path, outcome: Outcome) -> None:
    assert harness("merge", *_shards(tmp_path, outcome)).status == 1


def test_a_missing_shard_gives_one_line(harness: Harness, tmp_path: Path) -> None:
    ended = harness("merge", _shards(tmp_path)[1])
    assert (ended.status, ended.line) == (2, "harness: shards missing: 1/2")


def test_two_recorded_runs_are_compared(harness: Harness, tmp_path: Path) -> None:
    good = _written(tmp_path / "good", Run(results=(result(scenario="s"),)))
    failed = result(scenario="s", outcome=Outcome.FAILED, why="killed by SIGSEGV")
    bad = _written(tmp_path / "bad", Run(results=(failed,)))
    assert "no difference" in harness("compare", good, good).out
    worse = harness("compare", good, bad)
    assert worse.status == 1
    assert "SIGSEGV" in worse.out
    assert harness("compare", bad, good).status == 0


def test_a_folder_without_a_summary(harness: Harness, tmp_path: Path) -> None:
    ended = harness("compare", tmp_path, tmp_path)
    assert ended.status == 2
    assert "matrix.json: cannot be read" in ended.line


def test_a_folder_of_summaries_is_several_runs(harness: Harness, tmp_path: Path) -> None:
    for side, seconds in (("a", 1.0), ("b", 2.0)):
        for number in range(4):
            timed = result(scenario="s", qemu=side, seconds=seconds + number / 100)
            _written(tmp_path / side / str(number), Run(results=(timed,)))
    ended = harness("compare", tmp_path / "a", tmp_path / "b")
    assert ended.status == 0
    assert "times that differ" in ended.out
    assert "2.0 s" in ended.out
    refused = harness("compare", tmp_path / "a", tmp_path / "b", "--rounds", "2")
    assert (refused.status, "recorded runs" in refused.line) == (2, True)


def test_rounds_alternate(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def run(qemu: str, options: list[str]) -> Run:
        asked.append(qemu)
        return Run(results=(result(scenario="s", qemu=qemu, seconds=1.0),))

    monkeypatch.setattr(compare, "_run", run)
    ended = harness("compare", "7.2", "10.0", "--rounds", "2")
    assert asked == ["7.2", "10.0", "7.2", "10.0"]
    assert "times: 2 runs of each cannot show" in ended.out


def test_the_scenarios_are_run_against_two_qemus(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def run(qemu: str, options: list[str]) -> Run:
        asked.append((qemu, *options))
        return Run(results=(result(scenario="s", qemu=qemu),))

    monkeypatch.setattr(compare, "_run", run)
    ended = harness("compare", "7.2", "10.0", "-k", "blocker", "-n", "2")
    assert ended.status == 0
    assert asked == [(name, "--thorough", "-n", "2", "-k", "blocker") for name in ("7.2", "10.0")]
