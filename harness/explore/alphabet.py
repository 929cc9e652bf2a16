"""What a program can be made of: the steps of an alphabet, and the model on which they are possible."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from harness.explore.attempt import Attempt
from harness.explore.program import Program, ShareKind, Step


class State(Protocol):
    """A state of the model. It is immutable and hashable; equal states have equal futures."""

    def possible(self) -> Iterable[Step]:
        """Every step of an alphabet whose precondition holds here, on the model only, in a fixed order."""
        ...

    def after(self, step: Step) -> State:
        """The model's state after ``step``.

        :raises ValueError: when the step is not possible here.
        """
        ...


class Alphabet(Protocol):
    """The steps that one kind of guest performs."""

    def start(self, shares: Sequence[ShareKind]) -> State:
        """The model's state of a machine that has just started, its shares declared and none plugged."""
        ...


#: One attempt at a program in a fresh guest.
Run = Callable[[Program], Attempt]
