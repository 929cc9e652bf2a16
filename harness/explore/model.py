"""What the models of both alphabets have in common: a table of actions, from which a state's steps follow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from harness.explore.program import Step

S = TypeVar("S")


@dataclass(frozen=True)
class Action(Generic[S]):
    """One kind of step.

    :ivar possible: its precondition. :ivar after: the state after it.
    :ivar guarantee: the guarantee that a failure of the step breaks.
    :ivar values: its variants, the empty string for one without a value; empty for a step without variants.
    :ivar of_machine: it is about the machine and not about a share.
    """

    possible: Callable[[S, Step], bool]
    after: Callable[[S, Step], S]
    guarantee: str
    values: tuple[str, ...] = ()
    of_machine: bool = False


class Table(Generic[S]):
    """All actions of an alphabet, by the name of their steps."""

    def __init__(self, actions: Mapping[str, Action[S]]) -> None:
        self.actions = dict(actions)
        self._steps: dict[int, dict[Step, None]] = {}

    @property
    def guarantees(self) -> dict[str, str]:
        """The guarantee that each step of the models' table of actions asserts."""
        return {do: action.guarantee for do, action in self.actions.items()}

    def possible(self, state: S, shares: int) -> list[Step]:
        """Every step of the models' table of actions whose precondition holds, in a fixed order."""
        return [step for step in self._every(shares) if self.actions[step.do].possible(state, step)]

    def after(self, state: S, shares: int, step: Step) -> S:
        """The state after a step, by the models' table of actions.

        :raises ValueError: when the step is not possible here.
        """
        if step not in self._every(shares) or not self.actions[step.do].possible(state, step):
            raise ValueError(f"{step} is not possible here")
        return self.actions[step.do].after(state, step)

    def _every(self, shares: int) -> dict[Step, None]:
        """All steps that the models' table of actions has for this number of shares; made once."""
        if shares not in self._steps:
            self._steps[shares] = dict.fromkeys(self._steps_for(shares))
        return self._steps[shares]

    def _steps_for(self, shares: int) -> Iterator[Step]:
        for do, action in self.actions.items():
            for share in (None,) if action.of_machine else range(shares):
                for value in action.values or ("",):
                    yield Step(do=do, share=share, value=value or None)
