"""Makes programs: every one up to a number of steps, then random ones of which each leaves out some steps.

Everything is made on the model, in a fixed order: the same seed gives the same programs. Shares of the same
kind can be exchanged without effect, so of the programs that differ only in that, one is made.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from harness.explore.alphabet import Alphabet, State
from harness.explore.program import AlphabetName, Program, ProgramCell, ShareKind, Step

#: Programs up to this length are all run first. Each longer one that is made exhaustively is followed by some
#: random ones: there are too many for a short run.
FIRST = 2
RANDOM_FOR_EACH = 3
#: Where the programs of a schedule come from.
EVERY, RANDOM = "every", "random"
#: The shares of the programs that are made exhaustively: one, or two of the same kind.
PLAIN = ((ShareKind(),), (ShareKind(), ShareKind()))
#: The shares of random programs. The first two are the most frequent.
VARIED = (
    *PLAIN,
    (ShareKind(), ShareKind(), ShareKind()),
    (ShareKind(), ShareKind(fsdev_of=0)),
    (ShareKind(security_model="mapped-xattr"), ShareKind()),
    (ShareKind(security_model="mapped-file"),),
    (ShareKind(throttled=True), ShareKind()),
)
_PLAIN_WEIGHT = 4
#: The probability with which a random program leaves out a step (A. Groce et al., "Swarm Testing", 2012).
_LEFT_OUT = 0.3
#: The number of steps behind the way to a state: at least and at most.
_WALK = (1, 8)
#: The states among which one with a step that was never taken is looked for, and the probability that the
#: nearest one is taken.
_SAMPLE, _NEAREST = 5, 0.6


@dataclass(frozen=True)
class Space:
    """The programs of one alphabet on one cell.

    :ivar exhaustive_shares: the shares of programs that are made exhaustively, one tuple for each machine.
    :ivar swarm_shares: the shares of random programs.
    """

    name: AlphabetName
    alphabet: Alphabet
    cell: ProgramCell
    exhaustive_shares: Sequence[tuple[ShareKind, ...]] = PLAIN
    swarm_shares: Sequence[tuple[ShareKind, ...]] = VARIED

    def program(self, shares: tuple[ShareKind, ...], steps: Iterable[Step]) -> Program:
        """Make a program of this space: of its alphabet, on its cell."""
        return Program(alphabet=self.name, cell=self.cell, shares=shares, steps=tuple(steps))


class NotPossible(ValueError):
    """A step of a program is not possible on the model; ``number`` is its index."""

    def __init__(self, number: int, step: Step, why: object) -> None:
        self.number = number
        super().__init__(f"step {number}, {step}, is not possible here: {why}")


def states(alphabet: Alphabet, program: Program) -> list[State]:
    """The model's states before each step of a program to make, and after the last one.

    :raises NotPossible: for the first step that is not possible.
    """
    found = [alphabet.start(program.shares)]
    for number, step in enumerate(program.steps):
        try:
            found.append(found[-1].after(step))
        except ValueError as exc:
            raise NotPossible(number, step, exc) from None
    return found


def only_possible(alphabet: Alphabet, program: Program) -> Program:
    """The program that is made without the steps that are not possible on the model where they stand."""
    state, kept = alphabet.start(program.shares), []
    for step in program.steps:
        try:
            state = state.after(step)
        except ValueError:
            continue
        kept.append(step)
    return program.with_steps(tuple(kept))


def _exchangeable(shares: Sequence[ShareKind]) -> list[tuple[int, ...]]:
    """For each share, the earlier ones with which it can be exchanged, so that programs are not made twice.

    A share whose fsdev another one uses is like no other.
    """
    used_by_others = {kind.fsdev_of for kind in shares}
    return [
        tuple(
            other for other in range(number) if shares[other] == kind and not used_by_others & {number, other}
        )
        for number, kind in enumerate(shares)
    ]


class _Exhaustive:
    """The programs with exactly one number of steps, on one tuple of shares, all of which they use."""

    def __init__(self, start: State, shares: tuple[ShareKind, ...]) -> None:
        self._start, self._earlier = start, _exchangeable(shares)
        self._all = frozenset(range(len(shares)))
        self._counts: dict[tuple[State, frozenset[int], int], int] = {}
        self._next: dict[State, tuple[tuple[Step, State], ...]] = {}

    def sequences(self, length: int) -> Iterator[tuple[Step, ...]]:
        yield from self._below(self._start, frozenset(), length)

    def count(self, length: int) -> int:
        return self._count(self._start, frozenset(), length)

    def _below(self, state: State, used: frozenset[int], left: int) -> Iterator[tuple[Step, ...]]:
        if left == 0:
            yield ()
            return
        for step, after, now_used in self._steps(state, used):
            if self._count(after, now_used, left - 1):
                for rest in self._below(after, now_used, left - 1):
                    yield (step, *rest)

    def _count(self, state: State, used: frozenset[int], left: int) -> int:
        if left == 0:
            return int(used == self._all)
        if len(self._all - used) > left:
            return 0
        key = state, used, left
        if key not in self._counts:
            self._counts[key] = sum(
                self._count(after, now_used, left - 1) for _, after, now_used in self._steps(state, used)
            )
        return self._counts[key]

    def _steps(self, state: State, used: frozenset[int]) -> Iterator[tuple[Step, State, frozenset[int]]]:
        if state not in self._next:
            self._next[state] = tuple((step, state.after(step)) for step in state.possible())
        for step, after in self._next[state]:
            if step.share is None:
                yield step, after, used
            # Of shares that can be exchanged, the one with the lowest number is used first.
            elif step.share in used or used.issuperset(self._earlier[step.share]):
                yield step, after, used | {step.share}


def exhaustive(space: Space, length: int) -> Iterator[Program]:
    """Every program with exactly ``length`` steps, except those that differ only in the names of shares."""
    for shares in space.exhaustive_shares:
        for steps in _Exhaustive(space.alphabet.start(shares), shares).sequences(length):
            yield space.program(shares, steps)


def count(space: Space, length: int) -> int:
    """The number of programs that :func:`exhaustive` makes; it is computed without making them."""
    return sum(
        _Exhaustive(space.alphabet.start(shares), shares).count(length) for shares in space.exhaustive_shares
    )


class Swarm:
    """Random programs: a short way to a state of the model, one step there, and a random walk from it.

    The same seed gives the same programs in the same order.

    Each program leaves out a random part of the names of steps. What it has is then more frequent than in a
    walk that has everything, and so are sequences that need many steps of one kind. Where only steps that are
    left out are possible, one of them is taken.

    Walks from the beginning would not get far, because most steps lead back to a machine without a session.
    So a name is chosen first, those that were taken seldom more often than others, then one of the states in
    which it is possible, of those that earlier programs have reached. Steps that were never taken in that
    state are preferred.

    :param longest: the most steps of a program. Their number is random, too.
    """

    def __init__(self, space: Space, seed: int, longest: int) -> None:
        self._space, self._longest = space, longest
        self._random = random.Random(f"{seed}/{space.name}")
        self._taken: Counter[str] = Counter()
        self._pairs: set[tuple[State, Step]] = set()
        self._known = {shares: _Known(space.alphabet.start(shares)) for shares in space.swarm_shares}

    def __iter__(self) -> Iterator[Program]:
        """Random programs without end."""
        while True:
            yield self._program()

    def _program(self) -> Program:
        rng, space = self._random, self._space
        weights = [_PLAIN_WEIGHT if shares in PLAIN else 1 for shares in space.swarm_shares]
        (shares,) = rng.choices(list(space.swarm_shares), weights)
        known = self._known[shares]
        state = self._begin(known)
        steps = [*known.ways[state]]
        left_out: dict[str, bool] = {}
        length = min(len(steps) + rng.randint(*_WALK), self._longest)
        while len(steps) < length and (by_name := known.possible(state)):
            # The first step is one for which the state was chosen.
            names = self._names(by_name, left_out) if left_out else list(by_name)
            left_out = left_out or {name: rng.random() < _LEFT_OUT for name in by_name}
            steps.append(self._step(state, by_name, names))
            state = known.reached(state, steps[-1])
        return space.program(shares, steps)

    def _begin(self, known: _Known) -> State:
        name = self._choose(list(known.by_name))
        states = [
            state
            for state in self._random.choices(known.by_name[name], k=_SAMPLE)
            if len(known.ways[state]) < self._longest
        ]
        new = [state for state in states if any(self._is_new(state, s) for s in known.possible(state)[name])]
        if not states:
            return known.start
        # Often the nearest one, because each step takes time; and often another one, for what came before may
        # have left something that the model does not know.
        nearest = self._random.random() < _NEAREST
        return min(new or states, key=lambda state: len(known.ways[state])) if nearest else (new or states)[0]

    def _is_new(self, state: State, step: Step) -> bool:
        return (state, step) not in self._pairs

    def _names(self, by_name: Mapping[str, object], left_out: dict[str, bool]) -> list[str]:
        for name in by_name:
            if name not in left_out:
                left_out[name] = self._random.random() < _LEFT_OUT
        return [name for name in by_name if not left_out[name]] or list(by_name)

    def _choose(self, names: Sequence[str]) -> str:
        return self._random.choices(names, [1 / (1 + self._taken[name]) for name in names])[0]

    def _step(self, state: State, by_name: Mapping[str, list[Step]], names: Sequence[str]) -> Step:
        name = self._choose(names)
        new = [step for step in by_name[name] if self._is_new(state, step)]
        step = self._random.choice(new or by_name[name])
        self._taken[name] += 1
        self._pairs.add((state, step))
        return step


class _Known:
    """The states that programs have reached, with a short way to each, and the steps that are possible there.

    :ivar by_name: the states in which a step of that name is possible.
    """

    def __init__(self, start: State) -> None:
        self.start = start
        self.ways: dict[State, tuple[Step, ...]] = {start: ()}
        self.by_name: dict[str, list[State]] = {}
        self._possible: dict[State, dict[str, list[Step]]] = {}
        self.possible(start)

    def possible(self, state: State) -> dict[str, list[Step]]:
        """The steps that are possible in a state, by name, for random programs."""
        if state not in self._possible:
            found = self._possible[state] = {}
            for step in state.possible():
                found.setdefault(step.do, []).append(step)
            for name in found:
                self.by_name.setdefault(name, []).append(state)
        return self._possible[state]

    def reached(self, state: State, step: Step) -> State:
        """The state to which ``step`` leads from ``state``, which is known; for random programs."""
        after, way = state.after(step), (*self.ways[state], step)
        if after not in self.ways or len(way) < len(self.ways[after]):
            self.ways[after] = way
        self.possible(after)
        return after


def schedule(space: Space, *, seed: int, steps: int, longest: int) -> Iterator[tuple[str, Program]]:
    """The programs of a search, without end, each with where it comes from (:data:`EVERY`, :data:`RANDOM`).

    :param steps: the length up to which every program is made. :param longest: of random programs.
    """
    swarm = ((RANDOM, one) for one in Swarm(space, seed, longest))
    for length in range(1, min(FIRST, steps) + 1):
        for one in exhaustive(space, length):
            yield EVERY, one
    for length in range(FIRST + 1, steps + 1):
        for one in exhaustive(space, length):
            yield EVERY, one
            yield from itertools.islice(swarm, RANDOM_FOR_EACH)
    yield from swarm
