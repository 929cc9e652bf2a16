"""Steers programs around failures that are known, so that they do not use up the time.

A program that has the steps of a failing program among its own, in that order, would most probably fail in
the same way, and nothing behind that step would be seen. But the last of these steps, made in another state,
may show another failure as well. So the caller says in which states it is made all the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from harness.explore.alphabet import Alphabet, State
from harness.explore.program import Program, ShareKind, Step


@dataclass(frozen=True)
class Pattern:
    """The program of a known failure."""

    program: Program

    def trackers(self, shares: Sequence[ShareKind]) -> Iterator[_Tracker]:
        """The trackers of a pattern to steer around: one for each way to name its shares."""
        own = self.program.shares
        for names in itertools.permutations(range(len(shares)), len(own)):
            if all(
                kind in (ShareKind(), shares[name]) or kind.fsdev_of is not None
                for kind, name in zip(own, names, strict=True)
            ):
                yield _Tracker([_renamed(step, names) for step in self.program.steps])


def _renamed(step: Step, names: Sequence[int]) -> Step:
    return step if step.share is None else step.model_copy(update={"share": names[step.share]})


@dataclass
class _Tracker:
    """How many steps of a pattern a program has had."""

    steps: list[Step]
    met: int = 0

    def completes(self, step: Step) -> bool:
        return self.met == len(self.steps) - 1 and step == self.steps[-1]

    def add(self, step: Step) -> None:
        if self.met < len(self.steps) and step == self.steps[self.met]:
            self.met += 1


class Steering:
    """Knows the patterns that are to be avoided."""

    def __init__(self, alphabet: Alphabet) -> None:
        self._alphabet = alphabet
        self._patterns: list[Pattern] = []

    def avoid(self, program: Program) -> None:
        """Steer around the steps of ``program`` from now on. One without steps cannot be avoided."""
        if program.steps and Pattern(program) not in self._patterns:
            self._patterns.append(Pattern(program))

    def around(
        self, program: Program, allowed: Callable[[State, Step], bool] = lambda _state, _step: False
    ) -> Program:
        """The program steered around: without the steps that complete a pattern, and those not possible then.

        :param allowed: whether a step that completes a pattern is made in this state all the same.
        """
        trackers = [tracker for pattern in self._patterns for tracker in pattern.trackers(program.shares)]
        if not trackers:
            return program
        state, kept = self._alphabet.start(program.shares), list[Step]()
        for step in program.steps:
            if any(tracker.completes(step) for tracker in trackers) and not allowed(state, step):
                continue
            try:
                state = state.after(step)
            except ValueError:
                continue
            kept.append(step)
            for tracker in trackers:
                tracker.add(step)
        return program.with_steps(tuple(kept))
