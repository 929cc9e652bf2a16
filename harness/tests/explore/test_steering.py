from __future__ import annotations

import pytest

from harness.explore.program import ShareKind
from harness.explore.steering import Steering
from harness.tests.explore.fakes import FakeAlphabet, program


def around(given: str, *patterns: str) -> str:
    steering = Steering(FakeAlphabet())
    for pattern in patterns:
        steering.avoid(program(pattern, shares=2 if ":1" in pattern else 1))
    return str(steering.around(program(given)))


@pytest.mark.parametrize(
    ("given", "patterns", "left"),
    [
        ("plug:0 stop", (), "plug(0); stop"),
        ("plug:0 stop unplug:0 cont", ("plug:0 unplug:0",), "plug(0); stop; cont"),
        # The other share has the same steps.
        ("plug:1 stop unplug:1 cont", ("plug:0 unplug:0",), "plug(1); stop; cont"),
        # Two shares do not make the sequence of one.
        ("plug:0 plug:1 stop", ("plug:0 stop",), "plug(0); plug(1)"),
        ("unplug:0 stop", ("plug:0 stop",), "stop"),
        # What is not possible without the step is left out as well.
        ("stop cont stop", ("stop",), ""),
        ("plug:0 unplug:0 plug:0 write:0:byte", ("unplug:0 plug:0",), "plug(0); unplug(0)"),
        # Two patterns.
        ("plug:0 stop write:0:byte cont", ("stop cont", "write:0:byte"), "plug(0); stop"),
        # A pattern of two shares.
        ("plug:1 plug:0 stop", ("plug:0 plug:1",), "plug(1); stop"),
    ],
)
def test_a_program_is_steered_around_what_is_known(given: str, patterns: tuple[str, ...], left: str) -> None:
    assert around(given, *patterns) == (left or "(no steps)")


def test_a_kind_of_share_that_is_needed_is_compared() -> None:
    steering = Steering(FakeAlphabet())
    throttled = (ShareKind(throttled=True),)
    steering.avoid(program("plug:0 stop", shares=1).model_copy(update={"shares": throttled}))
    plain = program("plug:0 stop", shares=1)
    assert steering.around(plain) == plain
    other = plain.model_copy(update={"shares": throttled})
    assert str(steering.around(other)) == "plug(0)"


def test_nothing_is_made_of_a_program_without_steps() -> None:
    assert around("plug:0", "") == "plug(0)"


def test_a_step_is_made_in_a_state_that_is_allowed() -> None:
    steering = Steering(FakeAlphabet())
    steering.avoid(program("plug:0 unplug:0", shares=1))
    given = program("plug:0 unplug:0 plug:0 stop unplug:0", shares=1)
    seen = steering.around(given, lambda state, step: not getattr(state, "running", True))
    assert str(seen) == "plug(0); stop; unplug(0)"
