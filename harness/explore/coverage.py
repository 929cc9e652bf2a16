"""What an exploration has reached: pairs of state and step of the model, and pairs of consecutive steps.

Counted is also what was seen to be possible, and was never done.
"""

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


#: In place of the first step of a pair: the program begins with the second one.
BEGIN = ""


class Coverage:
    """Counts what attempts have reached."""

    def __init__(self, alphabets: Mapping[AlphabetName, Alphabet]) -> None:
        self._alphabets = alphabets
        self._possible: dict[AlphabetName, dict[State, tuple[Step, ...]]] = defaultdict(dict)
        self._reached: dict[AlphabetName, set[tuple[State, Step]]] = defaultdict(set)
        self._never: Counter[AlphabetName] = Counter()
        self._pairs: dict[AlphabetName, Counter[tuple[str, str]]] = defaultdict(Counter)
        #: By the name of a step: the states after it whose possible steps are in the pairs.
        self._followed: dict[AlphabetName, set[tuple[str, State]]] = defaultdict(set)

    def add(self, program: Program, attempt: Attempt) -> None:
        """Count the steps that an attempt made, in the model's coverage.

        Where an error ended it nobody knows how far it came.
        """
        if attempt.ending is Ending.ERROR:
            return
        last = attempt.failure.step if attempt.failure is not None else None
        end = len(program.steps) if last is None else last + 1
        name, before = program.alphabet, states(self._alphabets[program.alphabet], program)
        first = BEGIN
        for state, step in zip(before, program.steps[:end], strict=False):
            self._see(name, state, first)
            self._pairs[name][first, step.do] += 1
            first = step.do
            if (state, step) not in self._reached[name]:
                self._reached[name].add((state, step))
                self._never[name] -= 1
        if end == len(program.steps) and last is None:
            self._see(name, before[-1], first)

    def _see(self, name: AlphabetName, state: State, first: str) -> None:
        """Note what is possible in a state that was reached by the step ``first``."""
        if state not in self._possible[name]:
            self._possible[name][state] = tuple(state.possible())
            self._never[name] += len(self._possible[name][state])
        if (first, state) not in self._followed[name]:
            self._followed[name].add((first, state))
            for step in self._possible[name][state]:
                self._pairs[name][first, step.do] += 0

    def has(self, name: AlphabetName, state: State, step: Step) -> bool:
        """Whether the coverage has this step of the model as made in this state."""
        return (state, step) in self._reached[name]

    def counts(self, name: AlphabetName) -> Counts:
        """The coverage of one alphabet's model, as counts."""
        return Counts(len(self._possible[name]), len(self._reached[name]), self._never[name])

    def pairs(self, name: AlphabetName) -> dict[tuple[str, str], int]:
        """How often each step was made directly after each other one, by their names.

        The first one is :data:`BEGIN` for the first step of a program. 0: it was possible, and never made.
        """
        return dict(self._pairs[name])

    def by_step(self, name: AlphabetName) -> dict[str, tuple[int, int]]:
        """The coverage by name of a step: in how many states it was made, and in how many it never was."""
        possible = Counter(step.do for steps in self._possible[name].values() for step in steps)
        reached = Counter(step.do for _, step in self._reached[name])
        return {do: (reached[do], number - reached[do]) for do, number in sorted(possible.items())}
