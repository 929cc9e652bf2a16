"""A small alphabet, and runs with planted bugs, in place of QEMU."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from harness.explore.alphabet import Run
from harness.explore.attempt import Attempt, Ending, Failure
from harness.explore.program import AlphabetName, Program, ProgramCell, ShareKind, Step
from harness.explore.replay import Attempts
from harness.reaper import RunFolder


@dataclass(frozen=True)
class FakeState:
    """Shares are plugged and unplugged; a plugged share is written; the machine stops, continues, resets."""

    shares: int
    plugged: frozenset[int] = frozenset()
    running: bool = True

    def possible(self) -> Iterator[Step]:
        for share in range(self.shares):
            if share in self.plugged:
                yield Step(do="unplug", share=share)
                for value in ("byte", "page"):
                    yield Step(do="write", share=share, value=value)
            else:
                yield Step(do="plug", share=share)
        yield Step(do="stop" if self.running else "cont")
        yield Step(do="system_reset")

    def after(self, step: Step) -> FakeState:
        if step not in set(self.possible()):
            raise ValueError(f"{step} is not possible")
        match step.do:
            case "plug" if step.share is not None:
                return FakeState(self.shares, self.plugged | {step.share}, self.running)
            case "unplug" if step.share is not None:
                return FakeState(self.shares, self.plugged - {step.share}, self.running)
            case "stop" | "cont":
                return FakeState(self.shares, self.plugged, step.do == "cont")
        return self


class FakeAlphabet:
    def start(self, shares: Sequence[ShareKind]) -> FakeState:
        return FakeState(len(shares))


Check = Callable[[Program], Failure | None]


@dataclass
class FakeRun:
    """A run of a QEMU that has planted bugs.

    :ivar checks: each returns the failure of a program, or ``None``; the first failure counts.
    """

    checks: Sequence[Check]
    programs: list[Program] = field(default_factory=list)

    def __call__(self, program: Program) -> Attempt:
        self.programs.append(program)
        found = [failure for check in self.checks if (failure := check(program))]
        if not found:
            return Attempt(Ending.PASSED, seconds=0.01)
        first = min(found, key=lambda one: len(program.steps) if one.step is None else one.step)
        return Attempt(Ending.FAILED, first, seconds=0.01)


def sequence(*names: str, message: str = "it broke", reliability: float = 1.0, seed: int = 0) -> Check:
    """Fails at the last of these steps when they come in this order on one share, with others between."""
    rng = random.Random(seed)

    def check(program: Program) -> Failure | None:
        for share in (*range(len(program.shares)), None):
            left = list(names)
            for number, step in enumerate(program.steps):
                if step.share in (share, None) and step.do == left[0]:
                    left.pop(0)
                if not left:
                    if rng.random() >= reliability:
                        return None
                    return Failure("fake", message, step=number)
        return None

    return check


def program(text: str, shares: int = 2, *, cell: ProgramCell | None = None) -> Program:
    """A program from ``do``, ``do:share`` or ``do:share:value``, separated by blanks."""
    steps = []
    for word in text.split():
        do, *more = word.split(":")
        steps.append(
            Step(do=do, share=int(more[0]) if more else None, value=more[1] if len(more) > 1 else None)
        )
    return Program(
        alphabet=AlphabetName.RAW,
        cell=cell or ProgramCell(),
        shares=(ShareKind(),) * shares,
        steps=tuple(steps),
    )


@dataclass(frozen=True)
class FakeSetup:
    """Makes a run in a worker process, by the title of a program."""

    def __call__(self, folder: RunFolder) -> Run:
        return partial(_by_title, folder)


def _by_title(folder: RunFolder, program: Program) -> Attempt:
    what, _, value = program.title.partition(" ")
    match what:
        case "pid":
            return Attempt(Ending.PASSED, error=f"{os.getpid()} {folder.path}")
        case "wait":
            subprocess.run(["sleep", value], env=folder.environment(), check=True)
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "raise":
            raise RuntimeError(f"{value}\nand more")
        case "fail":
            return Attempt(Ending.FAILED, Failure("fake", value))
    return Attempt(Ending.PASSED)


def serial(run: Run) -> Attempts:
    """Attempts that are made one after the other, in this process."""
    return lambda programs: ((one, run(one)) for one in programs)
