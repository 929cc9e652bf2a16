from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import pytest

from harness.explore.generate import VARIED, Space, Swarm, count, exhaustive, only_possible, states
from harness.explore.program import AlphabetName, Program, ProgramCell, ShareKind, Step
from harness.tests.explore.fakes import FakeAlphabet, FakeState, program

SPACE = Space(AlphabetName.RAW, FakeAlphabet(), ProgramCell())


def space(*shares: tuple[ShareKind, ...]) -> Space:
    return Space(AlphabetName.RAW, FakeAlphabet(), ProgramCell(), exhaustive_shares=shares)


def brute_force(shares: int, length: int) -> set[str]:
    """Every possible sequence, with shares renamed in the order of their first use."""
    found = set()

    def grow(state: FakeState, steps: tuple[str, ...], names: dict[int, int]) -> None:
        if len(steps) == length:
            if len(names) == shares:
                found.add("; ".join(steps))
            return
        for step in state.possible():
            renamed = dict(names)
            if step.share is not None:
                renamed.setdefault(step.share, len(renamed))
            shown = step.model_copy(
                update={"share": renamed.get(step.share) if step.share is not None else None}
            )
            grow(state.after(step), (*steps, str(shown)), renamed)

    grow(FakeState(shares), (), {})
    return found


@pytest.mark.parametrize("shares", [1, 2, 3])
@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_every_program_is_made_once_up_to_the_names_of_its_shares(shares: int, length: int) -> None:
    made = [str(one) for one in exhaustive(space((ShareKind(),) * shares), length)]
    assert len(set(made)) == len(made)
    assert set(made) == brute_force(shares, length)
    assert count(space((ShareKind(),) * shares), length) == len(made)


def test_shares_of_different_kinds_are_not_exchanged() -> None:
    kinds = (ShareKind(), ShareKind(throttled=True))
    made = {str(one) for one in exhaustive(space(kinds), 2)}
    assert made == {"plug(0); plug(1)", "plug(1); plug(0)"}


def test_a_share_whose_fsdev_another_uses_is_exchanged_with_none() -> None:
    kinds = (ShareKind(), ShareKind(), ShareKind(fsdev_of=0))
    made = {str(one) for one in exhaustive(space(kinds), 3)}
    assert len(made) == 6


def test_programs_of_more_shares_use_them_all() -> None:
    both = [str(one) for length in (1, 2, 3) for one in exhaustive(SPACE, length)]
    assert len(set(both)) == len(both)


def test_the_order_is_fixed() -> None:
    assert list(exhaustive(SPACE, 3)) == list(exhaustive(SPACE, 3))


def test_no_made_program_is_impossible() -> None:
    made = itertools.chain(exhaustive(SPACE, 3), walks(1)[:50])
    for one in made:
        states(SPACE.alphabet, one)


@cache
def walks(seed: int, number: int = 300, longest: int = 20) -> list[Program]:
    return list(itertools.islice(Swarm(SPACE, seed, longest), number))


def test_the_same_seed_gives_the_same_programs_and_another_does_not() -> None:
    assert walks(1, 100) == walks(1)[:100]
    assert walks(1) != walks(2)


def test_walks_are_of_many_lengths_and_kinds_of_shares() -> None:
    lengths = {len(one.steps) for one in walks(1)}
    assert lengths >= set(range(1, 12))
    assert max(lengths) <= 20
    assert {one.shares for one in walks(1)} == set(VARIED)
    assert max(len(one.steps) for one in walks(1, longest=3)) == 3


def test_a_walk_leaves_steps_out() -> None:
    """Of walks that take each of 6 names equally often, 1 of 20 would have no reset in 16 steps."""
    long = [one for one in walks(1, 600) if len(one.steps) > 10]
    without = [one for one in long if all(step.do != "system_reset" for step in one.steps)]
    assert 0.15 < len(without) / len(long) < 0.8


def test_steps_that_are_seldom_possible_are_taken_as_often_as_others() -> None:
    """Six steps in a row are needed for the last one; a walk of random steps would take it in 1 of 100."""

    @dataclass(frozen=True)
    class Deep:
        depth: int = 0

        def possible(self) -> list[Step]:
            return [Step(do=f"on{self.depth}"), Step(do="back"), Step(do="away")]

        def after(self, step: Step) -> Deep:
            return Deep(min(self.depth + 1, 5)) if step.do.startswith("on") else Deep()

    class DeepAlphabet:
        def start(self, shares: Sequence[ShareKind]) -> Deep:
            return Deep()

    made = itertools.islice(Swarm(Space(AlphabetName.RAW, DeepAlphabet(), ProgramCell()), 1, 12), 300)
    assert sum(any(step.do == "on5" for step in one.steps) for one in made) > 30


def test_an_impossible_step_is_named() -> None:
    with pytest.raises(ValueError, match=r"step 1, unplug\(1\), is not possible here"):
        states(FakeAlphabet(), program("plug:0 unplug:1"))


def test_steps_that_are_not_possible_are_left_out() -> None:
    assert str(only_possible(FakeAlphabet(), program("unplug:0 plug:0 plug:0 cont stop"))) == "plug(0); stop"
