"""What is one night, what is compared with what, and what is missed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from harness.report.nights import history as reading
from harness.report.nights import rows, text
from harness.report.nights.history import Entry, History, Place
from harness.report.nights.missing import missing
from harness.report.nights.recorder import MERGE, Recorder
from harness.report.nights.regressions import failures
from harness.report.nights.report import report
from harness.report.nights.runs import by_night, time
from harness.report.nights.store import Store
from harness.report.nights.trends import trends
from harness.report.summary import About, Outcome, Result, Run, Shard
from harness.tests.report.nights.stories import PLACE, history, night, story


def other(name: str) -> Place:
    return replace(PLACE, test=name)


def with_options(entry: Entry, *options: str) -> Entry:
    """The same of another run with these options, an hour later."""
    later = (time(entry.run.begun) + timedelta(hours=1)).isoformat()
    run_id, uuid = entry.run.id + 1000 * len(options), f"{entry.run.uuid} {' '.join(options)}"
    return replace(entry, run=replace(entry.run, id=run_id, uuid=uuid, begun=later, options=options))


def part(entries: Sequence[Entry], index: int) -> list[Entry]:
    """The same as part ``index`` of a run that was split into two, which begin a minute apart."""
    found = []
    for entry in entries:
        begun = (time(entry.run.begun) + timedelta(minutes=index)).isoformat()
        run = replace(entry.run, id=2 * entry.run.id + index, shard=f"{index}/2", begun=begun)
        found.append(replace(entry, run=run))
    return found


def test_the_parts_of_a_split_run_are_one_night() -> None:
    both = part(story("ppF", place=other("a")), 1), part(story("ppF", place=other("b")), 2)
    (one,) = failures(history(*both), None).new
    assert len(one.entries) == 2


def test_parts_and_the_run_that_they_were_merged_into_are_not_counted_twice(tmp_path: Path) -> None:
    begun = "2026-11-29T02:00:00.000000+00:00"
    about = About(begun=begun, host="h", cores=2, load_begin=0.0, harness_version="1")
    result = Result(test="t", guarantee="no leak", qemu="?", outcome=Outcome.PASSED, begun=begun, seconds=1.5)
    shard = Shard(index=1, count=1, collected="x", tests=1)
    path = tmp_path / "nights.sqlite"
    with Recorder(path) as recorder:
        recorder.begin("scenarios", about, shard="1/1", expected=1)
        recorder.add(result)
        recorder.end(0)
        recorder.add_run(MERGE, Run(results=(result,), shard=shard, about=(about,)), 0)
        recorder.add_run("explore", Run(results=(result,), about=(about,)), 0)
    with Store(path, read_only=True) as store:
        read = reading.load(store)
    assert [run.kind for run in read.runs] == ["scenarios", "merge"]
    ((entries,),) = [tuple(read.entries.values())]
    assert len(entries) == 1


def test_the_newest_night_is_the_newest_run_with_each_set_of_options() -> None:
    default, thorough = night("p", 5), with_options(night("p", 5, other("b")), "--thorough", "--full")
    earlier = with_options(night("p", 3, other("b")), "--cold")
    again = with_options(night("p", 5), *default.run.options)
    read = history([default, again], [earlier, thorough])
    recent = [run.uuid for run in read.runs if read.is_recent(run)]
    assert recent == ["night-5 --thorough", "night-5 --thorough --full"]
    assert not read.is_recent(default.run), "there is a newer one with the same options"
    assert not read.is_recent(earlier.run), "two days before"


def test_a_run_belongs_to_one_night_also_over_midnight() -> None:
    def run(number: int, begun: str, *options: str, shard: str | None = None) -> rows.Run:
        entry = night("p", number)
        return replace(entry.run, begun=f"2026-11-{begun}:00+00:00", options=options, shard=shard)

    runs = [
        run(1, "27T23:40", "a", shard="1/2"),
        run(2, "28T00:20", "a", shard="2/2"),
        run(3, "28T12:00", "-k", "noon"),
        run(4, "28T23:40", "a", shard="1/2"),
        run(5, "28T23:45", "a", shard="2/2"),
        run(6, "28T23:50", "a", shard="2/2"),
        run(7, "29T19:51", "b"),
    ]
    names = by_night(reversed(runs))
    assert [names[one.id] for one in runs] == [
        "2026-11-28",
        "2026-11-28",
        "2026-11-28 23:50:00",
        "2026-11-28 23:50:00",
        "2026-11-28 23:45:00",
        "2026-11-28 23:50:00",
        "2026-11-29",
    ]


def test_the_report_counts_nights_and_runs() -> None:
    both = part(story("pp", place=other("a")), 1), part(story("pp", place=other("b")), 2)
    assert next(text.lines(report(history(*both)))).startswith("2 nights of 4 runs, ")
    assert next(text.lines(report(history(story("p"))))).startswith("1 night, ")


def test_a_day_without_a_zone_is_in_utc() -> None:
    assert time("2026-11-29").isoformat() == "2026-11-29T00:00:00+00:00"
    assert time("2026-11-29T02:00+02:00") == time("2026-11-29")


def test_series_of_runs_with_other_options_are_not_compared() -> None:
    entries = story("p" * 60)
    slower = [
        replace(
            entry,
            result=replace(entry.result, seconds=(2.0 if number >= 30 else 1.0) + number % 7 / 100),
            run=replace(entry.run, options=("-n", "4") if number >= 30 else ("-n", "2")),
        )
        for number, entry in enumerate(entries)
    ]
    found = trends(history(slower))
    assert (found.found, found.nights) == ((), 30)
    alike = [replace(entry, run=replace(entry.run, options=())) for entry in slower]
    (step,) = trends(history(alike)).found
    assert step.first.run.uuid == "night-30"


def test_times_of_failed_tests_are_no_series() -> None:
    entries = story("p" * 30 + "F" * 30)
    longer = [
        replace(entry, result=replace(entry.result, seconds=60.0 if entry.failed else 1.0))
        for entry in entries
    ]
    assert trends(history(longer)).found == ()


def test_a_step_on_a_busier_host_says_so() -> None:
    entries = story("p" * 60)
    slower = [
        replace(
            e, result=replace(e.result, seconds=(1.0 + n % 7 / 100) * (1 + (n >= 30)), load=5.0 * (n >= 30))
        )
        for n, e in enumerate(entries)
    ]
    (step,) = trends(history(slower)).found
    assert step.load is not None
    assert (step.load.first, step.load.second, step.load.differs) == (0.0, 5.0, True)


def test_measurements_of_failed_tests_count_for_leaks_only() -> None:
    def measured(entry: Entry, name: str) -> Entry:
        value = 9.0 if entry.failed else 1.0
        return replace(entry, measured={name: rows.Measurement(name=name, unit="s", value=value)})

    entries = story("p" * 30 + "F" * 30)
    assert trends(history([measured(entry, "migration") for entry in entries])).found == ()
    (leak,) = trends(history([measured(entry, "leak.fds") for entry in entries])).found
    assert leak.name == "leak.fds"


def cells(*nights: int) -> History:
    """A test on 7.2 in six nights, and on 10.0 in some of them."""
    place = replace(PLACE, qemu="10.0")
    return history(story("pppppp"), [night("p", number, place) for number in nights])


def test_a_cell_that_usually_runs_is_missed() -> None:
    (gone,) = missing(cells(1, 2, 3)).gone_cells
    assert (gone.qemu, gone.machine_type, gone.last.run.uuid, gone.nights) == ("10.0", "pc", "night-3", 3)
    assert missing(cells(1, 2)).gone_cells == ()
    assert missing(cells(1, 2, 3, 5)).gone_cells == ()


def test_a_test_that_ran_in_a_run_with_other_options_is_not_gone() -> None:
    """A quick run at noon has fewer tests than the one at night."""
    first, second = story("ppp"), story("pp", place=other("b"))
    assert [gone.places for gone in missing(history(first, second)).gone] == [(other("b"),)]
    first[-1] = with_options(first[-1], "-k", "quick")
    assert missing(history(first, second)).gone == ()


def test_a_run_that_ended_early_is_incomplete() -> None:
    entries = story("pp")
    run = replace(entries[-1].run, expected=3, exit_code=2)
    entries[-1] = replace(entries[-1], run=run)
    found = missing(history(entries, story("p", place=other("b"))))
    (one,) = found.incomplete
    assert (one.results, one.run.expected, one.run.complete) == (1, 3, True)
    assert found.gone == (), "the test may not have had its turn"
    killed = replace(run, ended=None)
    entries[-1] = replace(entries[-1], run=killed)
    marker = rows.Running(run_id=run.id, worker="gw0", nodeid="t", begun=run.begun)
    read = replace(history(entries), running={run.id: [marker]})
    (one,) = missing(read).incomplete
    assert one.running == (marker,)


@pytest.mark.parametrize(
    ("exit_code", "shard", "missed"), [(2, None, 1), (5, None, 1), (5, "2/9", 0), (0, None, 0)]
)
def test_a_night_without_a_result_says_nothing(exit_code: int, shard: str | None, missed: int) -> None:
    """An error in the collection, for example: there is no new failure, because nothing ran."""
    before = history(story("pp"))
    later = time(before.runs[-1].begun) + timedelta(days=1)
    empty = replace(
        before.runs[-1],
        id=99,
        uuid="empty",
        begun=later.isoformat(),
        ended=later.isoformat(),
        exit_code=exit_code,
        shard=shard,
        expected=0,
    )
    found = report(replace(before, runs=(*before.runs, empty)))
    assert found.nothing_judged
    assert not report(before).nothing_judged
    assert "no test of the newest night passed or failed: it says nothing" in text.lines(found)
    assert len(found.missing.incomplete) == missed


def test_a_guarantee_that_nothing_asserts_is_named() -> None:
    (skipped,) = missing(history(story("pps"))).not_asserted
    assert (skipped.guarantee, skipped.qemu, skipped.why) == ("no leak", "7.2", "1 skipped: no savevm")
    assert skipped.asserted is not None
    gone = story("ppp"), story("pp", place=other("b"))
    entries = [replace(e, result=replace(e.result, guarantees=("no harm",))) for e in gone[1]]
    (lost,) = missing(history(gone[0], entries)).not_asserted
    assert (lost.guarantee, lost.why) == ("no harm", "none of its tests ran")
    assert missing(history(story("ppp"))).not_asserted == ()
