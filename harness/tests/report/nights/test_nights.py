"""Histories with a planted story: each part of it is named, with its first night and what changed then."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from harness.report.change_points import Shape
from harness.report.nights import history, runs, text
from harness.report.nights.failed import failed
from harness.report.nights.history import Entry, History
from harness.report.nights.report import Report, as_data, report
from harness.report.nights.store import Store
from harness.tests.report.nights.generator import (
    CAUSE,
    FIRST,
    GUARANTEES,
    NAMES,
    QEMU,
    SIGNATURE,
    Plan,
    write,
)

NIGHTS = 60


@cache
def made(plan: Plan, nights: int = NIGHTS, seed: int = 1) -> History:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "nights.sqlite"
        write(path, plan, nights=nights, seed=seed)
        with Store(path, read_only=True) as store:
            return history.load(store)


#: Something of everything.
ALL = Plan(regression=59, fix=59, flaky=0.3, flaky_from=10, drift=15, step=40, leak=45, gone=59, noise=0.05)


def read(plan: Plan, nights: int = NIGHTS, seed: int = 1) -> Report:
    return report(made(plan, nights, seed))


def night(entry: Entry | None) -> int:
    assert entry is not None
    return (runs.time(entry.run.begun) - FIRST).days


@pytest.mark.parametrize("seed", range(5))
def test_unchanged_nights_give_no_alarm(seed: int) -> None:
    found = read(Plan(), 30, seed)
    seen = found.failures
    assert (*seen.new, *seen.standing, *seen.fixed, *seen.ended, *seen.met) == ()
    assert (*found.trends.found, *found.flaky) == ()
    assert found.trends.series > 50
    assert found.trends.nights == 30 >= found.trends.needed
    assert (found.missing.gone, found.missing.skips, found.missing.not_asserted) == ((), (), ())
    assert list(text.lines(found))[-1] == "DID NOT RUN: nothing that ran before"


def test_a_regression_is_new_in_its_first_night() -> None:
    found = read(Plan(regression=NIGHTS - 1))
    (one,) = found.failures.new
    assert (night(one.first_bad), night(one.last_good), one.good_nights) == (59, 58, 59)
    assert {entry.place.test.partition("[")[0] for entry in one.entries} == set(NAMES.crashing)
    assert (one.cause, one.signature) == (CAUSE, SIGNATURE)
    assert (one.reliability.failures, one.reliability.attempts, one.is_confirmed) == (12, 12, True)
    assert [change.what for change in one.changed] == [
        "QEMU commits 0000000000..000000003b:",
        "QEMU build-id",
    ]


def test_a_regression_of_an_earlier_night_is_new_only_since_then() -> None:
    history_ = made(Plan(regression=NIGHTS - 5))
    found = report(history_)
    assert found.failures.new == ()
    (one,) = found.failures.standing
    assert (night(one.first_bad), one.bad_nights) == (55, 5)
    (since,) = report(history_, runs.time("2026-11-24")).failures.new
    assert since == one
    assert report(history_, runs.time("2026-11-25")).failures.new == ()


def test_a_known_bug_that_is_gone_is_named_with_the_build() -> None:
    found = read(Plan(fix=NIGHTS - 1))
    (one,) = found.failures.fixed
    assert one.bug == "R4"
    assert (night(one.entries[0]), night(one.last_bad)) == (59, 58)
    assert one.entries[0].qemu is not None
    assert one.entries[0].qemu.git_describe == "v10.0.0-159-g000000003b"
    assert found.failures.new == ()


def test_a_flaky_test_is_named_with_its_rate_and_its_beginning() -> None:
    found = read(Plan(flaky=0.3, flaky_from=25), seed=2)
    (one,) = found.flaky
    assert one.place.test.startswith(NAMES.flaky)
    assert one.rate.attempts == 30
    low, high = one.rate.interval
    assert low < 0.3 < high
    assert one.switches >= 3
    assert 0 < one.again.failures < one.again.attempts
    assert one.onset is None or night(one.onset.first) >= 25
    assert found.failures.new == (), "a failure that was seen before, and comes and goes, is no new failure"


def test_a_test_that_begins_to_fail_often_has_a_beginning() -> None:
    (one,) = read(Plan(flaky=0.7, flaky_from=30)).flaky
    assert one.onset is not None
    assert abs(night(one.onset.first) - 30) <= 3
    assert (one.onset.before.failures, one.onset.before.attempts) == (0, night(one.onset.first))


@pytest.mark.parametrize("seed", range(3))
def test_a_drift_is_found(seed: int) -> None:
    (one,) = read(Plan(drift=20), seed=seed).trends.found
    assert (one.shape, one.name, one.up, len(one.moved)) == (Shape.DRIFT, "start", True, 1)
    assert one.moved[0].series.place.test.startswith(NAMES.drifting)
    assert abs(night(one.first) - 20) <= 10
    assert one.factor == pytest.approx(1.78, abs=0.25)


@pytest.mark.parametrize("seed", range(3))
def test_a_step_of_many_tests_is_one_report(seed: int) -> None:
    found = [one for one in read(Plan(step=40), seed=seed).trends.found if one.name == "seconds"]
    (one,) = found
    assert (one.shape, night(one.first)) == (Shape.STEP, 40)
    assert {moved.series.place.machine_type for moved in one.moved} == {"pc"}
    assert len(one.moved) >= 10, "of 12"
    assert one.factor == pytest.approx(1.4, abs=0.05)
    assert [change.what for change in one.changed] == [
        "QEMU commits 0000000000..0000000028:",
        "QEMU build-id",
    ]


def test_a_leak_slope_that_changes_is_found() -> None:
    (one,) = read(Plan(leak=45)).trends.found
    assert (one.name, one.unit, one.shape, night(one.first)) == ("leak.threads", "1/cycle", Shape.STEP, 45)
    assert one.factor is None
    assert one.moved[0].change.after == 0.5


def test_everything_at_once_is_told_apart() -> None:
    plan = Plan(
        tests=60,
        regression=59,
        fix=59,
        flaky=0.3,
        flaky_from=10,
        drift=15,
        step=40,
        leak=45,
        gone=59,
        noise=0.05,
    )
    found = read(plan)
    assert [one.signature for one in found.failures.new] == [SIGNATURE]
    assert [one.bug for one in found.failures.fixed] == ["R4"]
    assert [one.place.test.partition("[")[0] for one in found.flaky] == [NAMES.flaky]
    assert {(one.name, one.shape) for one in found.trends.found} >= {
        ("seconds", Shape.STEP),
        ("start", Shape.DRIFT),
        ("leak.threads", Shape.STEP),
    }
    (gone,) = found.missing.gone
    assert [place.test.partition("[")[0] for place in gone.places] == [NAMES.gone]


def test_what_is_skipped_now_is_named_with_the_reason() -> None:
    found = read(Plan(skips=29), 30)
    (skips,) = found.missing.skips
    assert (skips.reason, night(skips.last_run)) == ("source has no savevm", 28)
    assert len(skips.places) == 6
    (gap,) = found.missing.not_asserted
    assert (gap.guarantee, gap.qemu, night(gap.asserted)) == (GUARANTEES[1], QEMU, 28)
    assert gap.why == "6 skipped: source has no savevm"
    assert read(Plan(skips=20), 30).missing.skips == (), "it is not new any more"
    assert len(read(Plan(skips=20), 30).missing.not_asserted) == 1


def test_a_killed_run_is_named_with_the_test_that_was_running() -> None:
    found = read(Plan(killed=True), 10)
    (one,) = found.missing.incomplete
    assert (one.results, one.run.expected, night(found.history.by_run[one.run.id][0])) == (12, 24, 9)
    assert [running.nodeid for running in one.running] == ["scenarios/test_plain.py::test_4[x]"]
    assert found.missing.gone == (), "tests that a killed run had not begun are not gone"


def test_each_failed_result_has_what_the_page_shows() -> None:
    history_ = made(Plan(regression=NIGHTS - 5))
    known = failed(history_)
    assert len(known) == 15
    runs = {run.id: run for run in history_.runs}
    for one in known.values():
        assert runs[one.first_bad].uuid == "night-55"
        assert one.last_good is not None
        assert runs[one.last_good].uuid == "night-54"
        assert one.confirmed == "4 of 4"
        assert any("QEMU commits" in line for line in one.changed)
        assert [line.partition(" ")[0] for line in one.commands] == ["pytest", "harness"]


def _strings(data: object) -> Iterator[str]:
    if isinstance(data, dict):
        for key, value in data.items():
            yield key
            yield from _strings(value)
    elif isinstance(data, list):
        for value in data:
            yield from _strings(value)
    elif isinstance(data, str):
        yield data


def test_the_text_and_the_data_tell_the_same_story() -> None:
    plan = Plan(
        tests=60,
        regression=59,
        fix=59,
        flaky=0.3,
        flaky_from=10,
        drift=15,
        step=40,
        leak=45,
        gone=59,
        noise=0.05,
    )
    found = read(plan)
    shown = "\n".join(text.lines(found))
    data = as_data(found)
    named = set(_strings(data))
    for word in (CAUSE, "R4"):
        assert word in shown
        assert any(word in one for one in named)
    assert SIGNATURE in named
    assert "failed 12 of 12 times in this night" in shown
    assert "2026-11-28 02:00" in shown
    assert "QEMU commits 000000002d..000000003b" in shown
    (new,) = data["new"]
    assert new["again"] == {"failures": 12, "attempts": 12, "low": 0.7575, "high": 1.0}
    assert new["first_bad"]["begun"].startswith("2026-11-28T02:00")
    assert new["bisect"] in shown
    assert new["replay"] in shown
