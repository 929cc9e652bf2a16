"""Attempts in real guests, by a worker process."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from harness.errors import Unsupported, UsageError
from harness.explore import run as one
from harness.explore.alphabet import Alphabet, Run
from harness.explore.attempt import Attempt, Ending
from harness.explore.program import AlphabetName, Program, ProgramCell
from harness.matrix import Matrix, Selection
from harness.reaper import RunFolder
from harness.testbed import Cell


@dataclass(frozen=True)
class FreshGuests:
    """Makes the function that makes one attempt (:data:`harness.explore.workers.Setup`).

    Each program runs on its own cell.

    :ivar records: the folder for the records of attempts. That of an attempt which fails is kept.
    """

    records: Path
    accel: str = "auto"
    qemu_data: Path | None = None

    def __call__(self, folder: RunFolder) -> Run:
        """Make what makes attempts in fresh guests; called once in a worker process."""
        return _Guests(self, folder).attempt


@dataclass
class _Guests:
    setup: FreshGuests
    run: RunFolder
    cells: dict[ProgramCell, Cell] = field(default_factory=dict)
    numbers: itertools.count[int] = field(default_factory=itertools.count)

    def attempt(self, program: Program) -> Attempt:
        folder = self.setup.records / f"{os.getpid()}-{next(self.numbers)}"
        made = one.run(program, self._cell(program.cell), folder, self.run)
        if made.ending is not Ending.FAILED:
            shutil.rmtree(folder, ignore_errors=True)
        return made

    def _cell(self, names: ProgramCell) -> Cell:
        if names not in self.cells:
            self.cells[names] = cell_of(names, accel=self.setup.accel, qemu_data=self.setup.qemu_data)
        return self.cells[names]


def alphabets() -> dict[AlphabetName, Alphabet]:
    """Every alphabet that can be run in fresh guests."""
    found = {}
    for name in AlphabetName:
        with contextlib.suppress(UsageError):
            found[name] = one.alphabet(name)
    return found


def cell_of(names: ProgramCell, *, accel: str = "auto", qemu_data: Path | None = None) -> Cell:
    """The cell of these names, ready to boot fresh guests.

    :raises UsageError: for unusable names. :raises SetupError: when something cannot be provisioned.
    :raises Unsupported: when hotplug does not work there.
    """
    selection = Selection((names.qemu,), (names.machine,), (names.kernel,), accel, qemu_data=qemu_data)
    cells = Matrix(selection).prepare()
    if not cells:
        raise Unsupported(f"hotplug does not work on {names.machine} with QEMU {names.qemu}")
    return cells[0]
