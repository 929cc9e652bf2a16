"""Which (state, step) pairs of the model were reached, and which were seen to be possible and never were."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from harness.explore.alphabet import Alphabet, State
from harness.explore.attempt import Attempt, Ending
from harness.explore.generate import states
from harness.explore.program import AlphabetName, Program, Step


@dataclass(frozen=True)
class Counts:
    """:ivar states: that were reached. :ivar reached: pairs. :ivar never: pairs that were possible there."""

    states: int = 0
    reached: int = 0
    never: int = 0

    def __str__(self) -> str:
        return f"{self.states} states; pairs of state and step: {self.reached} reached, {self.never} never"


class Coverage:
    """Counts what attempts have reached."""

    def __init__(self, alphabets: Mapping[AlphabetName, Alphabet]) -> None:
        self._alphabets = alphabets
        self._possible: dict[AlphabetName, dict[State, tuple[Step, ...]]] = defaultdict(dict)
        self._reached: dict[AlphabetName, set[tuple[State, Step]]] = defaultdict(set)
        self._never: Counter[AlphabetName] = Counter()

    def add(self, program: Program, attempt: Attempt) -> None:
        """Count the steps that an attempt made. Where an error ended it nobody knows how far it came."""
        if attempt.ending is Ending.ERROR:
            return
        last = attempt.failure.step if attempt.failure is not None else None
        end = len(program.steps) if last is None else last + 1
        name, before = program.alphabet, states(self._alphabets[program.alphabet], program)
        for state, step in zip(before, program.steps[:end], strict=False):
            self._see(name, state)
            if (state, step) not in self._reached[name]:
                self._reached[name].add((state, step))
                self._never[name] -= 1
        if end == len(program.steps) and last is None:
            self._see(name, before[-1])

    def _see(self, name: AlphabetName, state: State) -> None:
        if state not in self._possible[name]:
            self._possible[name][state] = tuple(state.possible())
            self._never[name] += len(self._possible[name][state])

    def has(self, name: AlphabetName, state: State, step: Step) -> bool:
        """Whether this step was made in this state."""
        return (state, step) in self._reached[name]

    def counts(self, name: AlphabetName) -> Counts:
        """The counts of one alphabet."""
        return Counts(len(self._possible[name]), len(self._reached[name]), self._never[name])

    def by_step(self, name: AlphabetName) -> dict[str, tuple[int, int]]:
        """For each name of a step, in how many states it was made, and in how many it never was."""
        possible = Counter(step.do for steps in self._possible[name].values() for step in steps)
        reached = Counter(step.do for _, step in self._reached[name])
        return {do: (reached[do], number - reached[do]) for do, number in sorted(possible.items())}
