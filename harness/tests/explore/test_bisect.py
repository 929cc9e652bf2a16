"""The search, with planted first bad candidates, skips, flaky programs and errors of the host."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import SetupError, UsageError
from harness.explore import candidate
from harness.explore.bisect import Find, Found, most_tests, search
from harness.explore.candidate import Ask, Tally, chance_of_passes, passes_needed
from harness.explore.observations import Answer, Observation, Observations

OURS = "qemu_alive | killed by SIGSEGV"


def names(count: int) -> list[str]:
    return [f"c{number}" for number in range(count)]


class Planted:
    """A history of which one candidate is the first that behaves otherwise."""

    def __init__(
        self,
        count: int,
        first: int,
        *,
        find: Find = Find.BUG,
        skipped: frozenset[int] = frozenset(),
        reliability: float = 1.0,
        seed: int = 0,
    ) -> None:
        self.candidates = names(count)
        self._first, self._find, self._skipped = first, find, skipped
        self._reliability, self._random = reliability, random.Random(seed)
        self.asked: list[str] = []

    def __call__(self, name: str) -> Observation:
        self.asked.append(name)
        index = self.candidates.index(name)
        if index in self._skipped:
            return Observation(Answer.SKIP, "does not build")
        bad = (index >= self._first) == (self._find is Find.BUG)
        if bad and self._random.random() < self._reliability:
            return Observation(Answer.BAD, OURS)
        return Observation(Answer.GOOD)

    def search(self, observations: Observations | None = None) -> Found:
        return search(self.candidates, self, find=self._find, observations=observations)


@given(st.data(), st.integers(2, 300), st.sampled_from(Find))
def test_the_planted_one_is_found(data: st.DataObject, count: int, find: Find) -> None:
    first = data.draw(st.integers(1, count - 1))
    planted = Planted(count, first, find=find)
    found = planted.search()
    assert found.among == (f"c{first}",)
    assert found.before == f"c{first - 1}"
    assert found.exact
    assert found.confidence >= 0.95
    assert found.signature == OURS
    assert len(set(planted.asked)) <= most_tests(count) + 2


@given(st.data(), st.integers(3, 60), st.sampled_from(Find))
def test_skips_make_a_range_that_has_the_planted_one(data: st.DataObject, count: int, find: Find) -> None:
    first = data.draw(st.integers(1, count - 1))
    skipped = data.draw(st.frozensets(st.integers(1, count - 2)))
    found = Planted(count, first, find=find, skipped=skipped).search()
    after = next(index for index in range(first, count) if index not in skipped)
    before = next(index for index in range(first - 1, -1, -1) if index not in skipped)
    assert found.among == tuple(f"c{index}" for index in range(before + 1, after + 1))
    assert found.before == f"c{before}"


def test_a_stretch_that_does_not_build_costs_few_builds() -> None:
    planted = Planted(1000, 900, skipped=frozenset(range(400, 600)))
    assert planted.search().exact
    assert len(set(planted.asked)) <= most_tests(1000) + 2 + 3


def test_one_skip_costs_one_build_or_two() -> None:
    """The search goes on in the middle of what is left, also while the skipped one is still in it."""
    for first in range(1, 40):
        planted = Planted(40, first, skipped=frozenset({19} - {first, first - 1}))
        assert planted.search().among == (f"c{first}",)
        assert len(set(planted.asked)) <= most_tests(40) + 2 + 2


@settings(max_examples=20)
@given(st.sampled_from([0.9, 0.5, 0.2]), st.sampled_from(Find), st.integers(1, 39))
def test_a_flaky_program_has_the_stated_confidence(reliability: float, find: Find, first: int) -> None:
    """Of 60 searches 3 may be wrong on average; 11 or more have a probability of less than 0.0002."""
    right = wrong = unclear = 0
    for seed in range(60):
        try:
            found = Planted(40, first, find=find, reliability=reliability, seed=seed).search()
        except UsageError:  # It was taken not to fail at all, or too seldom: at most 0.8 ** 20.
            unclear += 1
            continue
        assert found.confidence >= 0.95
        right += found.among == (f"c{first}",)
        wrong += found.among != (f"c{first}",)
    assert wrong <= 10
    assert unclear <= 6
    assert right > 40


def test_a_flaky_program_gets_more_runs() -> None:
    certain, flaky = Planted(40, 25), Planted(40, 25, reliability=0.5, seed=1)
    good = certain.search().tallies["c19"]
    assert (good.passed, good.failed) == (3, 0)
    assert flaky.search().tallies["c19"].passed > 6


def test_good_and_bad_that_behave_alike() -> None:
    with pytest.raises(UsageError, match=r"^c9 is said to be bad, but does not fail \(0 of 20 runs\)"):
        search(names(10), lambda _: Observation(Answer.GOOD))
    with pytest.raises(
        UsageError, match=r"^c0 is said to be good, but fails \(failed 1 of 1\): good and bad"
    ):
        search(names(10), lambda _: Observation(Answer.BAD, OURS))
    with pytest.raises(UsageError, match="nothing between good and bad"):
        search(names(1), lambda _: Observation(Answer.GOOD))


def test_an_end_that_does_not_build() -> None:
    with pytest.raises(UsageError, match=r"^c9 is said to be bad, but cannot be tested: no 9p$"):
        search(names(10), lambda _: Observation(Answer.SKIP, "no 9p"))
    with pytest.raises(UsageError, match=r"^c0 is said to be good, but cannot be tested: does not build$"):
        Planted(10, 5, skipped=frozenset({0})).search()


def test_a_program_that_fails_too_seldom() -> None:
    turns = iter(range(10**6))

    def seldom(name: str) -> Observation:
        return Observation(Answer.BAD, OURS) if next(turns) % 150 == 10 else Observation(Answer.GOOD)

    with pytest.raises(UsageError, match=r"^it fails too seldom \(failed 2 of 200\)"):
        search(names(10), seldom)


def sometimes(ask: Ask, other: Observation, *, first: int) -> Ask:
    """The first so many runs of each candidate are ``other``."""
    seen: dict[str, int] = {}

    def run(name: str) -> Observation:
        seen[name] = seen.get(name, 0) + 1
        return other if seen[name] <= first else ask(name)

    return run


def test_errors_of_the_host_are_repeated_and_counted_apart() -> None:
    ask = sometimes(Planted(20, 7), Observation(Answer.ERROR, "no space"), first=2)
    found = search(names(20), ask)
    assert found.among == ("c7",)
    assert found.errors == 2 * len(found.tallies)
    with pytest.raises(SetupError, match=r"^c19: 3 runs had no result; the last: no space$"):
        search(names(20), lambda _: Observation(Answer.ERROR, "no space"))


def test_another_failure_is_not_the_one_that_is_searched_for() -> None:
    def ask(name: str) -> Observation:
        number = int(name[1:])
        if number < 5:
            return Observation(Answer.GOOD)
        return Observation(Answer.BAD, "other" if number < 12 else OURS)

    found = search(names(20), ask)
    assert (found.before, found.among) == ("c4", tuple(f"c{number}" for number in range(5, 13)))
    assert any("fails otherwise: other" in tally.skip for tally in found.tallies.values())
    assert search(names(20), ask, any_failure=True).among == ("c5",)


def test_a_search_that_was_interrupted_goes_on(tmp_path: Path) -> None:
    log, subject = tmp_path / "log", {"what": "it", "good": "c0", "bad": "c99"}
    planted = Planted(100, 61)

    def interrupted(name: str) -> Observation:
        if len(planted.asked) == 17:
            raise KeyboardInterrupt
        return planted(name)

    with pytest.raises(KeyboardInterrupt):
        search(planted.candidates, interrupted, observations=Observations(log, subject))
    with log.open("a") as file:
        file.write('{"candidate": "c4')  # Killed while it wrote.
    again = Observations(log, subject)
    assert again.resumed == 17
    assert planted.search(again).among == ("c61",)
    whole = Planted(100, 61)
    whole.search()
    assert planted.asked == whole.asked


def test_what_is_no_log_or_another_ones_is_refused(tmp_path: Path) -> None:
    log = tmp_path / "log"
    Observations(log, {"what": "it", "good": "v1"}).add("c0", Observation(Answer.ERROR, "full"))
    assert Observations(log, {"what": "it", "good": "v1"}).resumed == 0
    with pytest.raises(UsageError, match="log: the log of another bisection: good is v1, not v2; give --log"):
        Observations(log, {"what": "it", "good": "v2"})
    with log.open("a") as file:
        file.write('{"candidate": "c1"}\n')
    with pytest.raises(UsageError, match="log:3: not a run of a bisection"):
        Observations(log, {"what": "it"})
    log.write_text("git bisect start\n")
    with pytest.raises(UsageError, match="log:1: not the log of a bisection"):
        Observations(log)
    with pytest.raises(UsageError, match=f"^{tmp_path}: cannot be read: Is a directory$"):
        Observations(tmp_path)
    with pytest.raises(SetupError, match="none/log: No such file or directory"):
        Observations(tmp_path / "none/log")


def test_the_number_of_passes_that_are_enough() -> None:
    """Of 10 failures in 10 runs: 1/12 after one pass, 1/12 of 2/13 after two."""
    known = Tally(failed=10)
    assert chance_of_passes(known, 0) == 1
    assert chance_of_passes(known, 2) == pytest.approx(1 / 12 * 2 / 13)
    assert passes_needed(known, 0.05) == 2
    assert passes_needed(Tally(failed=5, passed=5), 0.01) > 6
    assert candidate.MOST_RUNS == 200
