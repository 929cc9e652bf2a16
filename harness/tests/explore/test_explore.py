from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from harness.errors import SetupError, UsageError
from harness.explore import finding
from harness.explore.attempt import Attempt, Ending, Failure
from harness.explore.explore import LOG, SETTINGS, Explorer, KnownBugs, Settings, read_settings
from harness.explore.generate import EVERY, RANDOM, Space, count, schedule
from harness.explore.program import AlphabetName, Program, ProgramCell
from harness.tests.explore.fakes import FakeAlphabet, FakeRun, program, sequence, serial

RAW = AlphabetName.RAW
SPACE = Space(RAW, FakeAlphabet(), ProgramCell())


def explorer(
    into: Path,
    run: Callable[[Program], Attempt],
    *,
    settings: Settings | None = None,
    bug_of: Callable[[Program, Failure], str] = lambda _program, _failure: "",
    lines: list[str] | None = None,
    resume: bool = False,
    minimise_s: float = 60.0,
) -> Explorer:
    made = Explorer(
        {RAW: SPACE},
        settings or Settings(),
        serial(run),
        into,
        bug_of=bug_of,
        qemu="7.2.0",
        minimise_s=minimise_s,
        report=(lines if lines is not None else list[str]()).append,
    )
    if resume:
        made.resume()
    else:
        made.begin()
    return made


def steps_of(log: Path) -> list[str]:
    return [json.dumps(json.loads(line)["program"]) for line in log.read_text().splitlines()]


def test_two_bugs_are_two_findings_with_their_shortest_programs(tmp_path: Path) -> None:
    run = FakeRun(
        [
            sequence("write", "unplug", message="it leaks"),
            sequence("plug", "unplug", "plug", message="it died"),
        ]
    )
    lines: list[str] = []
    made = explorer(tmp_path, run, lines=lines)
    made.run(60, 400)
    programs = {seen.finding.failure.message: str(seen.finding.program) for seen in made.new}
    assert programs == {
        "it leaks": "plug(0); write(0, byte); unplug(0)",
        "it died": "plug(0); unplug(0); plug(0)",
    }
    assert any(line.startswith("finding: fake | it died") for line in lines)
    folders = sorted((tmp_path / "findings").iterdir())
    assert [path.name for path in folders] == sorted(seen.finding.name for seen in made.new)
    for folder in folders:
        kept = finding.read(folder)
        assert str(kept.reliability) == "20 of 20 (84 to 100 %)"
        assert kept.complete


def test_later_programs_are_steered_around_a_finding(tmp_path: Path) -> None:
    run = FakeRun([sequence("plug", "unplug")])
    made = explorer(tmp_path, run)
    made.run(60, 600)
    (seen,) = made.new
    # Those of the first round, one of ten, and those in which the step is made in a new state.
    assert 1 < seen.times < 120
    assert made.coverage.counts(RAW).reached > 10


def test_without_a_bug_nothing_is_found(tmp_path: Path) -> None:
    made = explorer(tmp_path, FakeRun([]))
    made.run(60, 200)
    assert made.new == []
    assert made.in_short() == "0 findings"
    assert len(steps_of(tmp_path / LOG)) == 200


def test_the_same_seed_runs_the_same_programs(tmp_path: Path) -> None:
    def log(name: str, seed: int) -> list[str]:
        made = explorer(tmp_path / name, FakeRun([sequence("plug", "unplug")]), settings=Settings(seed=seed))
        made.run(60, 200)
        return steps_of(tmp_path / name / LOG)

    assert log("a", 1) == log("b", 1)
    assert log("a2", 1) != log("c", 2)


def test_every_short_program_comes_before_random_ones() -> None:
    made = schedule(SPACE, seed=1, steps=3, longest=15)
    wheres = [where for where, _ in (next(made) for _ in range(60))]
    assert wheres[:9] == [EVERY] * 9
    assert RANDOM in wheres


def test_the_schedule_has_each_program_of_up_to_the_steps() -> None:
    made = schedule(SPACE, seed=1, steps=3, longest=15)
    found = [one for where, one in (next(made) for _ in range(700)) if where == EVERY]
    numbers = [sum(len(one.steps) == length for one in found) for length in (1, 2, 3)]
    assert numbers == [count(SPACE, length) for length in (1, 2, 3)]


def ledger(_program: Program, failure: Failure) -> str:
    return "R1" if "it broke" in failure.message else ""


def test_known_bugs_are_counted_and_steered_around(tmp_path: Path) -> None:
    run = FakeRun([sequence("plug", "unplug"), sequence("stop", "cont", message="it hangs")])
    made = explorer(tmp_path, run, bug_of=ledger)
    made.run(60, 300)
    assert [seen.finding.failure.message for seen in made.new] == ["it hangs"]
    assert made.in_short().startswith("1 findings, R1 seen ")
    failing = [one for one in run.programs if sequence("plug", "unplug")(one)]
    assert len(failing) < 150


def test_a_known_bug_hides_no_other_failure_with_its_signature(tmp_path: Path) -> None:
    """Deaths by the same signal, without a backtrace: one that the known bug's steps explain, and another."""

    def known(program: Program, _failure: Failure) -> str:
        return "R1" if sequence("plug", "unplug")(program) else ""

    run = FakeRun([sequence("plug", "unplug"), sequence("stop", "cont")])
    made = explorer(tmp_path, run, bug_of=known)
    made.run(60, 300)
    (new,) = made.new
    assert sequence("stop", "cont")(new.finding.program)
    assert "R1 seen " in made.in_short()


def test_only_known_bugs(tmp_path: Path) -> None:
    run = FakeRun([sequence("plug", "unplug"), sequence("stop", "cont", message="it hangs")])
    made = explorer(tmp_path, run, bug_of=ledger, settings=Settings(known_bugs=KnownBugs.ONLY))
    made.run(60, 300)
    assert [seen.finding.bug for seen in made.new] == ["R1"]
    assert "others seen" in made.in_short()


def test_the_ledger_is_ignored(tmp_path: Path) -> None:
    run = FakeRun([sequence("plug", "unplug")])
    made = explorer(tmp_path, run, bug_of=ledger, settings=Settings(known_bugs=KnownBugs.IGNORE))
    made.run(60, 100)
    assert [seen.finding.bug for seen in made.new] == ["R1"]
    assert "R1" in (next((tmp_path / "findings").iterdir()) / "README.txt").read_text()


def test_a_failure_that_is_met_while_another_is_made_smaller_is_a_finding(tmp_path: Path) -> None:
    def check(one: Program) -> Failure | None:
        broke = sequence("write", "stop")(one)
        return Failure("fake", "it crashed", step=1) if broke and len(one.shares) == 1 else broke

    made = explorer(tmp_path, FakeRun([check]))
    made._note(
        program("plug:1 write:1:byte stop"),
        Attempt(Ending.FAILED, Failure("fake", "it broke", step=2)),
        Failure("fake", "it broke", step=2),
    )
    made._make_all_smaller()
    assert {seen.finding.failure.message for seen in made.new} == {"it broke", "it crashed"}


def test_an_interrupted_search_keeps_what_was_found_and_goes_on(tmp_path: Path) -> None:
    whole = explorer(tmp_path / "whole", FakeRun([sequence("write", "unplug")]))
    whole.run(60, 200)
    run = FakeRun([sequence("write", "unplug")])
    left = iter(range(150))

    def interrupted(one: Program) -> Attempt:
        attempt = run(one)
        if attempt.failure is not None and next(left, None) is None:
            raise KeyboardInterrupt
        return attempt

    part = explorer(tmp_path / "part", interrupted)
    left = iter(range(3))
    with pytest.raises(KeyboardInterrupt):
        part.run(60, 200)
    assert len(part.new) == 1
    kept = finding.read(next((tmp_path / "part/findings").iterdir()))
    assert kept.reliability.attempts == 0
    # The last line of the log is half written, as after a kill.
    with (tmp_path / "part" / LOG).open("a") as log:
        log.write('{"number": 7')
    again = explorer(tmp_path / "part", FakeRun([sequence("write", "unplug")]), resume=True)
    assert len(again.new) == 1
    done = len(steps_of(tmp_path / "part" / LOG))
    assert done > 0
    again.run(60, 200 - done)
    (seen,) = again.new
    assert seen.finding.complete
    assert len(steps_of(tmp_path / "part" / LOG)) == 200
    assert steps_of(tmp_path / "part" / LOG)[:done] == steps_of(tmp_path / "whole" / LOG)[:done]
    assert again.coverage.counts(RAW).reached > 0


def test_a_full_disk_stops_it_and_keeps_what_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = explorer(tmp_path, FakeRun([sequence("plug", "unplug")]))
    made.run(60, 80)
    monkeypatch.setattr(finding, "free_bytes", lambda _: 1000)
    with pytest.raises(SetupError, match="the disk is full; what was found is kept"):
        made.run(60)
    assert len(list((tmp_path / "findings").iterdir())) == 1


def test_a_write_that_fails_stops_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    made = explorer(tmp_path, FakeRun([sequence("plug", "unplug")]))
    monkeypatch.setattr(finding, "write", full)
    with pytest.raises(SetupError, match="No space left on device; what was found is kept"):
        made.run(60, 80)


def test_errors_in_a_row_stop_it(tmp_path: Path) -> None:
    made = explorer(tmp_path, lambda _: Attempt(Ending.ERROR, error="no memory"))
    with pytest.raises(SetupError, match="25 attempts in a row ended with an error: no memory"):
        made.run(60, 80)
    assert made.errors["no memory"] == 25


@pytest.mark.parametrize("programs", [0, 20])
def test_a_search_without_a_result_has_not_found_nothing(tmp_path: Path, programs: int) -> None:
    """Every attempt was an error, but too few for a row of them; or no program was run."""
    made = explorer(tmp_path, lambda _: Attempt(Ending.ERROR, error="no memory"))
    why = ": no memory" if programs else ""
    with pytest.raises(SetupError, match=rf"^none of {programs} programs had a result, .* this QEMU{why}$"):
        made.run(60, programs)
    assert made.tallies[RAW].errors == programs


def test_the_time_ends_it(tmp_path: Path) -> None:
    made = explorer(tmp_path, FakeRun([]))
    made.run(0.3)
    assert made.tallies[RAW].programs > 0


def test_findings_stay_as_they_are_without_a_budget(tmp_path: Path) -> None:
    made = explorer(tmp_path, FakeRun([sequence("plug", "unplug")]), minimise_s=0)
    made.run(60, 80)
    assert made.new[0].finding.reliability.attempts == 0


def test_the_settings_are_kept(tmp_path: Path) -> None:
    settings = Settings(seed=7, steps=2, alphabets=("raw",), qemu="11.1")
    explorer(tmp_path, FakeRun([]), settings=settings)
    assert read_settings(tmp_path) == settings
    with pytest.raises(UsageError, match="it has the results of another search"):
        explorer(tmp_path, FakeRun([]))


@pytest.mark.parametrize("content", [None, "{", "{}", '{"seed": 1, "alphabets": [], "more": 1}'])
def test_a_folder_that_cannot_be_resumed(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / SETTINGS).write_text(content)
    with pytest.raises(UsageError, match="--resume"):
        read_settings(tmp_path)


def test_a_log_that_is_none(tmp_path: Path) -> None:
    explorer(tmp_path, FakeRun([]))
    (tmp_path / LOG).write_text("{}\n")
    with pytest.raises(UsageError, match=r"programs.ndjson:1: not an entry of this log"):
        explorer(tmp_path, FakeRun([]), resume=True)


def test_the_plan_is_counted() -> None:
    made = Explorer({RAW: SPACE}, Settings(), serial(FakeRun([])), Path("nowhere"))
    numbers = sum(count(SPACE, length) for length in (1, 2, 3))
    assert list(made.plan()) == [
        f"raw: {numbers} programs of up to 3 steps, and random ones of up to 15 steps, seed 1"
    ]


def test_attempts_are_stopped_when_the_time_is_up(tmp_path: Path) -> None:
    """A round does not take programs any more."""
    ran = 0

    def attempts(programs: Iterable[Program]) -> Iterator[tuple[Program, Attempt]]:
        nonlocal ran
        for one in programs:
            ran += 1
            yield one, Attempt(Ending.PASSED)

    with pytest.raises(SetupError, match="none of 0 programs had a result"):
        Explorer({RAW: SPACE}, Settings(), attempts, tmp_path).run(0)
    assert ran == 0


def test_a_crash_without_a_backtrace_is_one_that_is_known(tmp_path: Path) -> None:
    made = explorer(tmp_path, FakeRun([]), minimise_s=0)
    for frames in (("v9fs_read",), (), ("v9fs_clunk",)):
        failure = Failure("fake", "it died", frames=frames)
        made._note(program("plug:0"), Attempt(Ending.FAILED, failure), failure)
    assert [(seen.finding.failure.frames, seen.times) for seen in made.new] == [
        (("v9fs_read",), 2),
        (("v9fs_clunk",), 1),
    ]


def test_another_failure_of_a_step_that_is_known_to_fail_is_found(tmp_path: Path) -> None:
    """Unplugging fails; while the machine is stopped, after a write, it fails otherwise."""

    def check(one: Program) -> Failure | None:
        died = sequence("stop", "write", "unplug", message="it died")(one)
        return (
            died if died and all(step.do != "cont" for step in one.steps) else sequence("plug", "unplug")(one)
        )

    made = explorer(tmp_path, FakeRun([check]), minimise_s=10)
    made.run(60, 800)
    assert {seen.finding.failure.message for seen in made.new} == {"it broke", "it died"}


def test_each_way_to_a_failure_is_steered_around(tmp_path: Path) -> None:
    def check(one: Program) -> Failure | None:
        return sequence("plug", "unplug")(one) or sequence("stop", "cont")(one)

    lines: list[str] = []
    run = FakeRun([check])
    made = explorer(tmp_path, run, lines=lines)
    made.run(60, 800)
    (seen,) = made.new
    assert str(seen.finding.program) in ("plug(0); unplug(0)", "stop; cont")
    assert seen.variants == 1
    assert any(line.startswith("  also by ") for line in lines)
    assert seen.times < 250
