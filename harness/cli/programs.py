"""Programs that a command is given: in which file, on which cell, and what makes attempts at them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import click
from click.core import ParameterSource

from harness.artifacts import HISTORY
from harness.cli.common import progress
from harness.errors import UsageError
from harness.explore import finding
from harness.explore.fresh_guests import FreshGuests
from harness.explore.program import Program, read
from harness.explore.run import check_machine_type, states
from harness.explore.workers import Setup
from harness.matrix import DEFAULT, Matrix, Selection
from harness.testbed import Cell


@dataclass(frozen=True)
class Options:
    """The options for a cell; ``machine`` is empty when the user named none."""

    qemu: str
    machine: str
    kernel: str
    accel: str
    qemu_data: Path | None

    @classmethod
    def of(
        cls,
        context: click.Context,
        qemu: str,
        machine: str,
        kernel: str,
        accel: str,
        qemu_data: Path | None,
    ) -> Options:
        """The values of the options that :func:`harness.cli.common.axes` adds to a command."""
        given = context.get_parameter_source("machine") is not ParameterSource.DEFAULT
        return cls(qemu, machine if given else "", kernel, accel, qemu_data)


def load(path: Path) -> Program:
    """The program in a file that a command was given, or of a finding.

    :raises UsageError: when there is none.
    """
    if not path.is_dir():
        return read(path)
    if (path / finding.DATA).exists():
        return finding.read(path).program
    if (path / finding.PROGRAM).exists():
        return read(path / finding.PROGRAM)
    raise UsageError(
        f"{path}: neither the folder of a finding ({finding.PROGRAM}) nor that of a failed test ({HISTORY})"
    )


def cell_of(
    program: Program, *, qemu: str, machine: str, kernel: str, accel: str, qemu_data: Path | None
) -> Cell:
    """The cell of a program that a command runs, with the parts that the user has named.

    :raises UsageError: when one of the names is unknown, or the QEMU lacks the machine type.
    """
    own = program.cell
    selection = Selection(
        (own.qemu if qemu == DEFAULT else qemu,),
        (machine,),
        (own.kernel if kernel == DEFAULT else kernel,),
        accel,
        qemu_data=qemu_data,
    )
    cells = Matrix(selection, report=progress).prepare()
    if not cells:
        raise UsageError(f"hotplug does not work on {selection.machines[0]} with QEMU {selection.qemus[0]}")
    return cells[0]


@dataclass(frozen=True)
class Subject:
    """What a command makes attempts at.

    :ivar name: for people. :ivar program: what an attempt is made at; a placeholder for a scenario.
    :ivar setup: makes the function that makes one attempt.
    """

    name: str
    program: Program
    setup: Setup


def of_program(loaded: Program, options: Options, records: Path) -> Subject:
    """A program on its own cell, with the parts that the user has named."""
    states(loaded)
    machine = options.machine or loaded.cell.machine
    check_machine_type(loaded.alphabet, machine)
    cell_of(  # Provisions what is missing, once, before the workers start.
        loaded,
        qemu=options.qemu,
        machine=machine,
        kernel=options.kernel,
        accel=options.accel,
        qemu_data=options.qemu_data,
    )
    own = loaded.cell
    names = {
        "qemu": own.qemu if options.qemu == DEFAULT else options.qemu,
        "machine": machine,
        "kernel": own.kernel if options.kernel == DEFAULT else options.kernel,
    }
    placed = loaded.model_copy(update={"cell": own.model_copy(update=names)})
    setup = FreshGuests(records, options.accel, options.qemu_data)
    return Subject(f"{placed} on QEMU {names['qemu']}, {names['machine']}", placed, setup)


def cores() -> int:
    """The number of cores that a command's attempts may use."""
    return len(os.sched_getaffinity(0))
