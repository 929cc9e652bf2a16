"""One attempt at a program: a fresh testbed, which is ended whatever happens, and judged."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from harness.artifacts import Artifacts
from harness.checkers import Record, Verdict, judge
from harness.errors import HarnessError, SetupError, UsageError
from harness.explore import failures, generate, guest_model, raw_model
from harness.explore.alphabet import Alphabet
from harness.explore.attempt import Attempt, Ending, Failure
from harness.explore.generate import NotPossible
from harness.explore.guest_model import GuestAlphabet, GuestState
from harness.explore.guest_steps import GuestPerformer
from harness.explore.program import AlphabetName, Program, Step, text
from harness.explore.raw_model import RawAlphabet
from harness.explore.raw_steps import RawPerformer
from harness.qemu.machine_types import MACHINE_TYPES
from harness.qemu.machine_types.machine_type import MachineType
from harness.reaper import RunFolder
from harness.testbed import Cell, Testbed

#: The guarantee of a program's end: everything is unplugged, and nothing is left.
_AT_THE_END = "no leak"
PROGRAM = "program.json"


class Performer(Protocol):
    """Performs the steps of one program on a machine that it has started."""

    def perform(self, step: Step, before: Any, after: Any) -> None:
        """Run a step between two states of the model, and compare QEMU with the second one."""
        ...

    def finish(self, state: Any) -> None:
        """End the run of a program: unplug everything, and compare QEMU with what it was at the beginning."""
        ...

    def close(self) -> None:
        """Release what a run of a program holds and what runs beside the machine. QEMU may be dead."""
        ...


@dataclass(frozen=True)
class _Kind:
    """An alphabet, and who performs its steps.

    :ivar guarantees: the guarantee that each step asserts.
    :ivar check: raises UsageError for a machine type on which it cannot run.
    :ivar cell: the cell that it runs on.
    """

    alphabet: Alphabet
    performer: Callable[[Testbed, Program], Performer]
    guarantees: Mapping[str, str]
    check: Callable[[MachineType], None] = lambda _: None
    cell: Callable[[Cell], Cell] = lambda cell: cell


def _require_raw(kind: MachineType) -> None:
    if not kind.legacy_virtio:
        raise UsageError(
            f"machine type {kind.name}: programs of the raw client need machine type pc, whose "
            "devices have virtio's legacy interface"
        )


def _without_guest(cell: Cell) -> Cell:
    """The cell of an attempt without a guest, whose timeouts are not multiplied for the accelerator.

    No guest runs, so the accelerator does not make anything slower.
    """
    return replace(cell, accel=replace(cell.accel, measured=1.0))


_KINDS: dict[AlphabetName, _Kind] = {
    AlphabetName.RAW: _Kind(
        RawAlphabet(),
        RawPerformer,
        raw_model.TABLE.guarantees,
        _require_raw,
        _without_guest,
    ),
    AlphabetName.GUEST: _Kind(GuestAlphabet(), GuestPerformer, guest_model.TABLE.guarantees),
}


def alphabet(name: AlphabetName) -> Alphabet:
    """The alphabet of this name, to run a program of it."""
    return _KINDS[name].alphabet


def states(program: Program) -> list[Any]:
    """The states of the model before each step of the program to run, and after the last one.

    :raises UsageError: for a step that is unknown, or not possible on the model; one line.
    """
    kind = _KINDS[program.alphabet]
    for number, step in enumerate(program.steps):
        if step.do not in kind.guarantees:
            known = ", ".join(kind.guarantees)
            raise UsageError(f"step {number}, {step}: unknown step; {program.alphabet.value} has: {known}")
    try:
        return list(generate.states(kind.alphabet, program))
    except NotPossible as exc:
        earlier = "; ".join(map(str, program.steps[: exc.number])) or "the start"
        step = program.steps[exc.number]
        raise UsageError(f"step {exc.number}, {step}: not possible after {earlier}") from None


def check_machine_type(name: AlphabetName, machine: str) -> None:
    """Check that programs of an alphabet can run on a machine type, before a QEMU is looked for.

    An unknown name passes: the matrix refuses it, and says which are known.

    :raises UsageError: when they cannot; one line.
    """
    if machine in MACHINE_TYPES:
        _KINDS[name].check(MACHINE_TYPES[machine])


def check(program: Program, cell: Cell) -> list[Any]:
    """Check that the program can be run on this cell, and return its :func:`states`; nothing is started.

    Nothing is started.

    :raises UsageError: when it cannot; one line.
    """
    found = states(program)
    _KINDS[program.alphabet].check(cell.machine_type)
    return found


def run(program: Program, cell: Cell, folder: Path, own: RunFolder) -> Attempt:
    """Run a program once: make one attempt at it, in a fresh guest.

    :param cell: what it runs on; the program's own cell names one, and is not looked at here.
    :param folder: where the record is written; an earlier content is removed.
    :param own: this process's run folder; it serves many attempts, because making it takes longer than one.
    :raises UsageError: when the program is not possible on the model, or cannot run on this cell; nothing has
        been started then.
    """
    model = check(program, cell)
    kind = _KINDS[program.alphabet]
    started_s = time.monotonic()
    try:
        artifacts = Artifacts.create_at(folder)
        (folder / PROGRAM).write_text(text(program))
        testbed = Testbed(kind.cell(cell), own, artifacts)
    except (HarnessError, OSError) as exc:
        return Attempt(Ending.ERROR, error=failures.one_line(exc), seconds=time.monotonic() - started_s)
    attempt = _Attempt(kind, program, model, testbed)
    try:
        attempt.perform()
    finally:
        attempt.close()
    return replace(attempt.judge(), seconds=time.monotonic() - started_s, artifacts=folder)


def perform(program: Program, testbed: Testbed) -> None:
    """Perform a program in the testbed of a test; the test's record is judged as that of any other.

    The program's own cell is not looked at.

    :raises UsageError: when the program is not possible on the model, or cannot run on this cell.
    :raises HarnessError: when QEMU does not do what the model says.
    """
    model = check(program, testbed.cell)
    kind = _KINDS[program.alphabet]
    testbed.cell = kind.cell(testbed.cell)
    performer = kind.performer(testbed, program)
    testbed.attach(performer)  # QEMU prints an error if its qtest connection is closed before it is ended.
    _perform(performer, program.steps, model)
    performer.finish(model[-1])


def perform_before(program: Program, testbed: Testbed, number: int) -> GuestPerformer:
    """Perform the steps of a program before step ``number`` in a testbed, and leave its guest as it is then.

    :param number: as many as the program has steps: all of them.
    :raises UsageError: when no guest can be left: see :func:`state_before`.
    :raises HarnessError: when QEMU does not do what the model says.
    """
    state_before(program, number)
    performer = GuestPerformer(testbed, program)
    testbed.attach(performer)
    _perform(performer, program.steps[:number], check(program, testbed.cell))
    performer.wait_booted()
    return performer


def state_before(program: Program, number: int) -> GuestState:
    """The state of the model before a step of a program that a guest performs.

    :raises UsageError: for a program of the raw client, which runs no guest, or one with fewer steps.
    """
    if program.alphabet is not AlphabetName.GUEST:
        raise UsageError("a program of the raw client runs no guest; its repro.qtest, or gdb, shows its QEMU")
    if number > len(program.steps):
        raise UsageError(f"there is no step {number}: the program has {len(program.steps)} steps, from 0")
    found: GuestState = states(program)[number]
    return found


def _perform(performer: Performer, steps: Sequence[Step], model: Sequence[Any]) -> None:
    for number, step in enumerate(steps):
        performer.perform(step, model[number], model[number + 1])


class _Attempt:
    def __init__(self, kind: _Kind, program: Program, model: list[Any], testbed: Testbed) -> None:
        self._kind, self._program, self._model, self._testbed = kind, program, model, testbed
        #: The index of the step in progress; ``None`` before the first and after the last one.
        self._step: int | None = None
        self._failure: Failure | None = None
        self._error = ""
        #: Kept until the machines are ended: QEMU prints an error if its qtest connection is closed earlier.
        self._performer: Performer | None = None

    def perform(self) -> None:
        """Run all steps of the attempt; what stops them is kept for :meth:`judge`."""
        try:
            self._perform()
        except Exception as exc:
            cause = self._cause(exc)
            self._testbed.history.note("host", "test:failed", {"error": failures.one_line(cause)})
            self._failure = failures.failure_of(cause, self._step, self._do, self._guarantee)
            if self._failure is None:
                self._error = failures.one_line(cause)

    def close(self) -> None:
        """End everything that a run of a program has started."""
        try:
            if self._performer is not None:
                self._performer.close()
        finally:
            self._testbed.close()

    def _perform(self) -> None:
        model = self._model
        self._performer = performer = self._kind.performer(self._testbed, self._program)
        for number, step in enumerate(self._program.steps):
            self._step = number
            performer.perform(step, model[number], model[number + 1])
        self._step = None
        performer.finish(model[-1])

    @property
    def _do(self) -> str:
        return "end" if self._step is None else self._program.steps[self._step].do

    @property
    def _guarantee(self) -> str:
        return _AT_THE_END if self._step is None else self._kind.guarantees[self._do]

    def _cause(self, exc: Exception) -> Exception:
        """The root cause of an error that ended a run of a program: a QEMU that died, or does not answer."""
        if isinstance(exc, HarnessError):
            for machine in self._testbed.machines:
                cause = machine.root_cause(exc)
                if cause is not exc:
                    return cause
        return exc

    def judge(self) -> Attempt:
        """Judge the record of a run of a program with the standard checkers.

        A QEMU that died is the root cause.
        """
        try:
            self._testbed.history.check()
            found = judge(self._testbed.artifacts.folder)
        except (SetupError, OSError) as exc:
            return Attempt(Ending.ERROR, error=f"cannot write the record: {failures.one_line(exc)}")
        bad = failures.by_severity(found)
        first = next((one for one in bad if one.verdict is Verdict.INVALID), None)
        if first is not None and first.checker == failures.DIED:
            if self._performer is None:  # It did not come to the program.
                return Attempt(Ending.ERROR, error=f"QEMU did not start: {first.summary}")
            record = Record.load(self._testbed.artifacts.folder)
            return Attempt(Ending.FAILED, failures.death(record, first, self._step, self._guarantee))
        if self._failure is not None:
            return Attempt(Ending.FAILED, self._failure)
        if self._error:
            return Attempt(Ending.ERROR, error=self._error)
        if first is not None:
            return Attempt(Ending.FAILED, failures.judged(first, self._step, self._guarantee))
        if bad:
            return Attempt(Ending.ERROR, error=f"inconclusive: {bad[0].checker}: {bad[0].summary}")
        return Attempt(Ending.PASSED)
