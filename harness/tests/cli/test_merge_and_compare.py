from __future__ import annotations

from pathlib import Path

import pytest

from harness.cli import compare
from harness.errors import SetupError
from harness.report import summary
from harness.report.nights import rows
from harness.report.nights.store import Store
from harness.report.summary import About, Measured, OfCell, OfQemu, Outcome, Run, Shard
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
    shard = _shards(tmp_path)[1]
    ended = harness("merge", tmp_path / "none", shard)
    assert ended.status == 2
    assert ended.line.startswith(f"harness: shards missing: 1/2 ({tmp_path / 'none'}")
    assert "run again with --shard 1/2; the other shards need not run again" in ended.line


def _about(host: str) -> About:
    return About(
        begun="2026-11-29T02:00:00.000000+00:00",
        ended="2026-11-29T02:10:00.000000+00:00",
        host=host,
        cores=2,
        load_begin=0.5,
        load_end=1.5,
        harness_version="0.1.0",
        qemus=(OfQemu(name="7.2", version="7.2.22", build_id="ab"),),
        cells=(
            OfCell(
                qemu="7.2",
                arch="x86_64",
                kernel="6.1",
                kernel_version="6.1.0",
                machine="pc",
                accelerator="tcg",
            ),
        ),
    )


def _recorded_shards(tmp_path: Path, count: int, tests: int) -> list[Path]:
    """A run in parts, as pytest writes them."""
    found = []
    for index in range(1, count + 1):
        results = tuple(
            result(
                f"scenarios/test_leak.py::t{number}[default-default-pc]",
                scenario=f"scenarios/test_leak.py::t{number}[pc]",
                kernel="6.1.0",
                kernel_name="6.1",
                machine="pc",
                begun="2026-11-29T02:00:01.000000+00:00",
                outcome=Outcome.FAILED if number == 0 else Outcome.PASSED,
                signature="s" if number == 0 else "",
                measurements={"start.restore": Measured(value=0.1, unit="s")},
            )
            for number in range(index - 1, tests, count)
        )
        shard = Shard(index=index, count=count, collected="x", tests=len(results))
        run = Run(results=results, shard=shard, about=(_about(f"h{index}"),))
        (tmp_path / str(index)).mkdir()
        (tmp_path / str(index) / summary.NAME).write_text(run.model_dump_json())
        found.append(tmp_path / str(index))
    return found


@pytest.mark.parametrize("change", [{"build_id": "cd"}, {"version": "7.2.23"}])
def test_shards_on_different_qemus_of_one_name_are_refused(
    harness: Harness, tmp_path: Path, change: dict[str, str]
) -> None:
    """Each of them would be asserted in parts, and the table would have one column."""
    shards = _recorded_shards(tmp_path, 2, 4)
    second = summary.read(shards[1])
    (about,) = second.about
    other = about.model_copy(update={"qemus": (about.qemus[0].model_copy(update=change),)})
    _written(shards[1], second.model_copy(update={"about": (other,)}))
    ended = harness("merge", *shards)
    assert ended.status == 2
    assert (
        f"{shards[1]}: its QEMU 7.2 is {other.qemus[0].version} (build-id {other.qemus[0].build_id})"
        in ended.line
    )


def test_the_qemus_of_two_architectures_have_one_name(harness: Harness, tmp_path: Path) -> None:
    shards = _recorded_shards(tmp_path, 2, 4)
    second = summary.read(shards[1])
    (about,) = second.about
    of_s390x = OfQemu(name="7.2", version="7.2.22", build_id="ef", path="/usr/bin/qemu-system-s390x")
    both = about.model_copy(update={"qemus": (*about.qemus, of_s390x)})
    _written(shards[1], second.model_copy(update={"about": (both,)}))
    assert harness("merge", *shards).status == 1, "a test has failed"


def test_a_merged_run_is_recorded_as_one(harness: Harness, tmp_path: Path) -> None:
    shards, history = _recorded_shards(tmp_path, 4, 100), tmp_path / "nights.sqlite"
    ended = harness("merge", *shards, "--record", history)
    assert ended.status == 1, ended.err
    with Store(history, read_only=True) as read:
        (run,) = read.select(rows.Run)
        assert (run.kind, run.host, run.cores, run.expected) == ("merge", "h1, h2, h3, h4", 8, 100)
        assert (run.complete, run.exit_code, run.load_end) == (True, 1, 1.5)
        (qemu,) = read.select(rows.Qemu)
        (cell,) = read.select(rows.Cell)
        assert (qemu.build_id, cell.accelerator, cell.qemu_id) == ("ab", "tcg", qemu.id)
        results = read.select(rows.Result)
        assert {one.test for one in results} == {f"scenarios/test_leak.py::t{n}" for n in range(100)}
        assert {one.cell_id for one in results} == {cell.id}
        assert len(read.select(rows.Measurement)) == 100


def test_a_merge_that_is_refused_records_nothing(harness: Harness, tmp_path: Path) -> None:
    shards, history = _recorded_shards(tmp_path, 2, 4), tmp_path / "nights.sqlite"
    assert harness("merge", shards[0], "--record", history).status == 2
    with Store(history, read_only=True) as read:
        assert read.select(rows.Run) == []


def test_a_merged_run_is_recorded_wholly_or_not_at_all(
    harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is one transaction: a reader never sees a part of it."""
    shards, history = _recorded_shards(tmp_path, 2, 4), tmp_path / "nights.sqlite"

    def fails(*_: object, **__: object) -> None:
        raise SetupError("the disk is full")

    monkeypatch.setattr(Store, "end_run", fails)
    assert harness("merge", *shards, "--record", history).status == 3
    with Store(history, read_only=True) as read:
        assert read.select(rows.Run) == []
        assert read.select(rows.Result) == []


def test_summaries_of_an_older_harness_cannot_be_recorded(harness: Harness, tmp_path: Path) -> None:
    ended = harness("merge", *_shards(tmp_path), "--record", tmp_path / "nights.sqlite")
    assert ended.status == 2
    assert "do not say when and where they were made" in ended.line


def test_two_recorded_runs_are_compared(harness: Harness, tmp_path: Path) -> None:
    good = _written(tmp_path / "good", Run(results=(result(scenario="s"),)))
    failed = result(scenario="s", outcome=Outcome.FAILED, why="killed by SIGSEGV")
    bad = _written(tmp_path / "bad", Run(results=(failed,)))
    assert "no difference" in harness("compare", good, good).out
    worse = harness("compare", good, bad)
    assert worse.status == 1
    assert "SIGSEGV" in worse.out
    assert harness("compare", bad, good).status == 0


def test_runs_without_a_common_scenario_are_not_compared(harness: Harness, tmp_path: Path) -> None:
    """There would be no difference, or only scenarios that did not run on one side: exit status 0."""
    empty = _written(tmp_path / "empty", Run(results=()))
    one = _written(tmp_path / "one", Run(results=(result(scenario="s"),)))
    other = _written(tmp_path / "other", Run(results=(result(scenario="t", outcome=Outcome.PASSED),)))
    for a, b in ((empty, empty), (one, empty), (one, other)):
        ended = harness("compare", a, b)
        assert ended.status == 2
        assert ended.line.startswith(f"harness: {a} and {b} have no scenario in common")


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
