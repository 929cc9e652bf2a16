from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from harness.report.nights import changes, commands, text
from harness.report.nights.flaky import differed, flaky, is_flaky
from harness.report.nights.regressions import Failures, failures
from harness.report.nights.report import report
from harness.tests.report.nights.stories import PLACE, again, history, night, story, with_new_qemu
from harness.tests.report.timeline.records import Writer


def read(*stories: str) -> Failures:
    places = [
        replace(PLACE, test=f"scenarios/test_a.py::test_{number}[pc]") for number in range(len(stories))
    ]
    made = [story(text, place=place) for text, place in zip(stories, places, strict=True)]
    return failures(history(*made), None)


def test_a_failure_is_new_in_its_first_night_only() -> None:
    (one,) = read("ppppF").new
    assert (one.first_bad.run.uuid, one.good_nights, one.bad_nights) == ("night-4", 4, 1)
    assert one.last_good is not None
    assert one.last_good.run.uuid == "night-3"
    later = read("ppppFF")
    assert later.new == ()
    assert [one.bad_nights for one in later.standing] == [2]


def test_a_known_bug_is_no_failure() -> None:
    assert read("kkkk").new == read("kkkk").standing == ()
    (one,) = read("kkkF").new
    assert one.last_good is not None, "that night showed the known bug and nothing else"


def test_another_failure_of_a_failing_test_is_new() -> None:
    (one,) = read("pppFFf").new
    assert (one.signature, one.before) == ("checker | f", "checker | F")
    assert one.last_good is not None
    assert one.last_good.run.uuid == "night-2"


def test_the_first_run_of_a_test_can_fail() -> None:
    (one,) = read("F").new
    assert (one.last_good, one.good_nights, one.changed) == (None, 0, ())


def test_skips_between_the_last_good_and_the_first_bad_night_are_counted() -> None:
    (one,) = read("ppssF").new
    assert one.not_run == 2
    assert one.last_good is not None
    assert one.last_good.run.uuid == "night-1"


def test_a_test_that_no_longer_runs_is_not_new() -> None:
    found = history(story("pF"), story("ppppp", place=replace(PLACE, test="b")))
    assert failures(found, None).new == ()


def test_failures_with_one_cause_are_one_report_and_others_are_not() -> None:
    found = read("pppF", "pppF", "pppf", "pppp")
    assert [len(one.entries) for one in found.new] == [2, 1]


def test_the_most_certain_comes_first() -> None:
    places = [replace(PLACE, test=name) for name in ("a", "b", "c", "d")]
    certain = story("ppppF", {4: lambda entry: again(entry, "FFF")}, places[1])
    flaky_ = story("ppppf", {4: lambda entry: again(entry, "ppp")}, places[0])
    once = story("ppppF", place=places[2])
    once[-1] = replace(once[-1], result=replace(once[-1].result, signature="once"))
    host = story("ppppF", {4: lambda entry: again(entry, "FFF")}, places[3])
    error = replace(host[-1].result, signature="host", cause="SetupError: no space left on device")
    host[-1] = replace(host[-1], result=error)
    found = failures(history(flaky_, once, host, certain), None).new
    assert [one.entries[0].place.test for one in found] == ["b", "a", "c", "d"]
    assert [one.is_confirmed for one in found] == [True, False, None, True]
    assert [one.is_of_the_host for one in found] == [False, False, False, True]


def test_a_failure_that_a_flaky_test_had_before_is_not_new() -> None:
    """Nothing changed, and it fails in some nights."""
    assert read("ppFppppF").new == ()
    assert len(read("ppFppppf").new) == 1, "another failure"


def test_a_regression_that_comes_back_is_new() -> None:
    entries = story("pppFFFppppF", {3: with_new_qemu})
    for number, entry in enumerate(entries):
        build = {0: "one", 3: "two", 6: "three", 10: "four"}
        name = build[max(start for start in build if start <= number)]
        assert entry.qemu is not None
        entries[number] = replace(entry, qemu=replace(entry.qemu, build_id=name))
    confirmed = [again(entry, "FFF") if entry.failed else entry for entry in entries]
    for made in (entries, confirmed):
        (one,) = failures(history(made), None).new
        assert one.last_good is not None
        assert one.last_good.run.uuid == "night-9"


def test_a_flaky_test_that_fails_each_time_is_new() -> None:
    entries = story("ppFppFpF")
    entries[-1] = again(entries[-1], "FFF")
    assert len(failures(history(entries), None).new) == 1
    entries[-1] = again(entries[-1], "FFp")
    assert failures(history(entries), None).new == ()


@pytest.mark.parametrize(
    ("outcomes", "flaky_"),
    [("pppppp", False), ("pppFFF", False), ("ppFppp", True), ("kkFkkk", True), ("pppppF", False)],
)
def test_a_test_is_flaky_when_it_switches_although_nothing_changed(outcomes: str, flaky_: bool) -> None:
    assert is_flaky(story(outcomes)) is flaky_


def test_a_failure_and_its_fix_by_other_builds_are_not_flaky() -> None:
    entries = story("pppFpp", {3: with_new_qemu})
    assert not is_flaky(entries)
    assert is_flaky(story("pppFpFp", {3: with_new_qemu})), "four switches"
    entries[3] = again(entries[3], "pFF")
    assert is_flaky(entries), "in one night it both failed and passed"


def test_the_load_is_named_where_it_differed() -> None:
    entries = story("pFppppFppppppFpppppFpppp")
    loaded = [replace(e, result=replace(e.result, load=9.0 if e.failed else 0.5)) for e in entries]
    (one,) = flaky(history(loaded))
    assert one.load is not None
    assert (one.load.first, one.load.second, one.load.differs) == (9.0, 0.5, True)
    assert one.load.p < 0.01
    alike = [replace(entry, result=replace(entry.result, load=0.5)) for entry in entries]
    assert flaky(history(alike))[0].load == replace(one.load, first=0.5, p=1.0)
    assert flaky(history(entries))[0].load is None


def test_the_timelines_of_a_flaky_test_are_compared(tmp_path: Path) -> None:
    """Of its last failure, and of a further run that passed, while both folders are there."""
    for name, event in (("bad", "DEVICE_UNPLUG_GUEST_ERROR"), ("good", "DEVICE_DELETED")):
        writer = Writer()
        writer.event(0.4, event, device="share0")
        writer.write(tmp_path / name)
    failed = again(night("F", 3), "FpF")
    last = replace(
        failed,
        result=replace(failed.result, artefacts=str(tmp_path / "bad")),
        confirmations=tuple(
            replace(one, artefacts=str(tmp_path / "good") if one.outcome == "passed" else None)
            for one in failed.confirmations
        ),
    )
    told = history([*story("ppp"), last])
    said = (
        "only when it failed: source: DEVICE_UNPLUG_GUEST_ERROR; only when it passed: source: DEVICE_DELETED"
    )
    assert differed(flaky(told)[0]) == said
    assert f"timeline    {said}" in "\n".join(text.lines(report(told)))
    assert commands.artefacts(last) == tmp_path / "bad"
    shutil.rmtree(tmp_path / "bad")
    assert differed(flaky(told)[0]) == ""
    assert commands.artefacts(last) is None, "a run that passed is not what failed"


def test_a_known_bug_that_is_gone_is_fixed_also_when_the_test_just_passes() -> None:
    for outcomes in ("kkx", "kkp"):
        (one,) = read(outcomes).fixed
        assert (one.bug, one.entries[0].run.uuid) == ("R4", "night-2")
    assert read("kkxx").fixed == (), "it is not new any more"
    (first,) = read("x").fixed
    assert first.last_bad is None


def test_a_failure_that_ended_and_a_known_bug_that_is_met_are_named() -> None:
    (ended,) = read("pFFp").ended
    assert ended.signatures == ("checker | F",)
    (met,) = read("ppk").met
    assert (met.bug, met.changed) == ("R4", ())


def test_a_flaky_test_that_passes_again_is_not_fixed() -> None:
    """Also with a new QEMU; but a failure that came each time, when it was run again, is gone."""
    for last in (None, with_new_qemu):
        entries = story("ppFpFpFp", {7: last} if last else None)
        assert failures(history(entries), None).ended == ()
        assert len(flaky(history(entries))) == 1
        entries[6] = again(entries[6], "FFF")
        (ended,) = failures(history(entries), None).ended
        assert ended.last_bad is not None
        assert ended.last_bad.run == entries[6].run


def test_what_changed_is_named() -> None:
    before, after = night("p"), night("F", 1)
    assert after.qemu is not None
    assert after.cell is not None
    changed = replace(
        after,
        qemu=replace(
            after.qemu, version="7.2.23", package_version="1:7.2+dfsg-8", build_id="c" * 40, path="/b"
        ),
        cell=replace(after.cell, kernel_version="6.1.1", accelerator="kvm"),
        run=replace(
            after.run,
            host="ci-2",
            cores=4,
            harness_commit="b" * 40,
            harness_dirty=True,
            options=("--thorough", "--cold"),
        ),
    )
    assert [str(one) for one in changes.between(before, changed)] == [
        "QEMU version 7.2.22 → 7.2.23",
        "QEMU package 1:7.2+dfsg-7 → 1:7.2+dfsg-8",
        "QEMU build-id bbbbbbbbbbbb → cccccccccccc",
        "QEMU path none → /b",
        "kernel 6.1.0 → 6.1.1",
        "accelerator tcg → kvm",
        "harness aaaaaaaaaaaa → bbbbbbbbbbbb with uncommitted changes",
        "options none → --cold",
        "host ci-1 → ci-2",
        "cores 2 → 4",
    ]
    assert changes.between(before, after) == ()


@pytest.mark.parametrize(
    ("described", "commit"),
    [
        ("v7.2.0-12-gabc1234", "abc1234"),
        ("v7.2.0-12-gabc1234-dirty", "abc1234"),
        ("v7.2.0", "v7.2.0"),
        ("v7.2.0-rc1-dirty", "v7.2.0-rc1"),
        ("abc1234", "abc1234"),
        ("", None),
        (None, None),
    ],
)
def test_the_commit_of_a_build(described: str | None, commit: str | None) -> None:
    assert changes.commit_of(described) == commit


def test_options_are_compared_with_their_values_and_without_those_for_results() -> None:
    before = night("p")

    def differences(*options: tuple[str, ...]) -> list[str]:
        entries = [replace(before, run=replace(before.run, options=one)) for one in options]
        return [str(one) for one in changes.between(*entries)]

    assert differences(("-n", "2", "--qemu", "a"), ("--qemu", "a", "-n", "2")) == []
    assert differences(("--artifacts", "1", "-q"), ("--artifacts=2",)) == []
    assert differences(("x.py", "-n", "2"), ("x.py", "-n", "4")) == ["options -n 2 → -n 4"]


def test_without_artefacts_the_commands_name_the_test() -> None:
    bad, good = night("F", 1), night("p")
    assert commands.replay(bad) == "pytest 'scenarios/test_a.py::test_a[7.2-default-pc]' --qemu 7.2"
    assert commands.bisect(bad, good) == (
        "harness bisect scenarios/test_a.py::test_a --machine pc --releases"
    )
    assert commands.bisect_elsewhere(bad, good) == "", "the version is the same"
    assert commands.one_release(bad, good) == "", "the build is the same"
    assert bad.qemu is not None
    rebuilt = with_new_qemu(bad)
    assert [commands.one_release(rebuilt, one) for one in (good, None)] == ["7.2.22", ""]
    newer = replace(rebuilt, qemu=replace(bad.qemu, version="7.2.23"))
    assert commands.one_release(newer, good) == ""
    assert commands.bisect_elsewhere(newer, good) == (
        "harness bisect scenarios/test_a.py::test_a --machine pc --tree DIR --good v7.2.22 --bad v7.2.23"
    )
    place = replace(PLACE, test="scenarios/test_a.py::test_a[pc-cold]", kernel="6.12")
    assert commands.bisect(replace(bad, place=place), None) == (
        "harness bisect 'scenarios/test_a.py::test_a[cold]' --machine pc --kernel 6.12 --releases"
    )


def test_with_artefacts_and_a_tree_the_commands_use_them(tmp_path: Path) -> None:
    (tmp_path / "qemu" / ".git").mkdir(parents=True)
    folder = tmp_path / "artefacts"
    folder.mkdir()
    bad, good = night("F", 1), night("p")
    assert bad.qemu is not None
    path = str(tmp_path / "qemu" / "build" / "qemu-system-x86_64")
    built = replace(bad.qemu, git_describe="v7.2.0-9-gbbbb", path=path)
    bad = replace(bad, qemu=built, result=replace(bad.result, artefacts=str(folder)))
    good = replace(good, qemu=replace(built, git_describe="v7.2.0"))
    assert commands.artefacts(bad) is None, "the folder has no record any more"
    assert commands.timeline(bad) == ""
    (folder / "history.ndjson").touch()
    assert commands.replay(bad) == f"harness replay {folder}"
    assert commands.timeline(bad) == f"harness timeline {folder}"
    assert commands.bisect(bad, good) == (
        f"harness bisect {folder} --tree {tmp_path}/qemu --good v7.2.0 --bad bbbb"
    )
    assert commands.bisect_elsewhere(bad, good) == "", "it is here"
    assert commands.bisect(bad, bad) == f"harness bisect {folder} --releases", "the commit is the same"
