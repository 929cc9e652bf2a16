"""``harness replay``: runs a program in a fresh guest."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import click
from click.core import ParameterSource

from harness import reaper
from harness.cli.report import axes, progress
from harness.errors import UsageError
from harness.explore.attempt import Attempt, Ending
from harness.explore.program import Program, read
from harness.explore.run import check, run, states
from harness.matrix import DEFAULT, Matrix, Selection
from harness.testbed import Cell

_STATUS = {Ending.PASSED: 0, Ending.FAILED: 1, Ending.ERROR: 3}


@click.command(epilog="Example: harness replay images/programs/R2.json --qemu 7.2")
@click.argument("program", type=click.Path(path_type=Path))
@axes
@click.option("--into", type=click.Path(path_type=Path), help="Where the record of the attempt is kept.")
@click.pass_context
def replay(
    context: click.Context,
    program: Path,
    qemu: str,
    qemu_data: Path | None,
    machine: str,
    kernel: str,
    accel: str,
    into: Path | None,
) -> None:
    """Run PROGRAM in a fresh guest, and print how it ended.

    It runs on its own cell; --qemu, --machine and --kernel replace parts of that. The exit status is 0 when
    it passes, 1 when it fails, and 3 when the host or the harness is at fault.
    """
    loaded = read(program)
    states(loaded)
    reaper.sweep()
    if context.get_parameter_source("machine") is ParameterSource.DEFAULT:
        machine = loaded.cell.machine
    cell = cell_of(loaded, qemu=qemu, machine=machine, kernel=kernel, accel=accel, qemu_data=qemu_data)
    check(loaded, cell)
    folder = into or Path(tempfile.mkdtemp(prefix="replay-"))
    attempt = run(loaded, cell, folder)
    print(in_words(attempt))
    if attempt.ending is Ending.PASSED and into is None:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        progress(f"artefacts: {folder}")
    sys.exit(_STATUS[attempt.ending])


def cell_of(
    program: Program, *, qemu: str, machine: str, kernel: str, accel: str, qemu_data: Path | None
) -> Cell:
    """The cell of a program, with the parts that the user has named.

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


def in_words(attempt: Attempt) -> str:
    """How an attempt ended, in a line."""
    took = f"({attempt.seconds:.2f} s)"
    if attempt.failure is None:
        return f"{attempt.ending.value} {took}{': ' + attempt.error if attempt.error else ''}"
    failure = attempt.failure
    at = "at the end" if failure.step is None else f"at step {failure.step}"
    return f"failed {at} {took}: {failure.checker}: {failure.message}\nsignature: {failure.signature}"
