"""The known bugs of one cell: which failures the ledger explains, and the programs that show them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from harness.explore import program as programs
from harness.explore.attempt import Failure
from harness.explore.program import Program
from harness.layout import recipes_folder
from harness.report import ledger
from harness.report.ledger import Status
from harness.testbed import Cell


def _version(cell: Cell) -> str:
    """The version of QEMU, as the ledger of known bugs has it."""
    return ".".join(map(str, cell.capabilities.version))


def bug_of(cell: Cell) -> Callable[[Program, Failure], str]:
    """A function that names the known bug which explains a program's failure on this cell, or returns ""."""
    version, machine = _version(cell), cell.machine_type.name
    bugs = [
        bug
        for bug in ledger.load().bug
        if bug.status(version) is not Status.UNAFFECTED and (not bug.machines or machine in bug.machines)
    ]

    def bug_of(program: Program, failure: Failure) -> str:
        steps = programs.text(program)
        return next((bug.id for bug in bugs if bug.explains_in_program(failure.message, steps)), "")

    return bug_of


def programs_of_bugs(cell: Cell) -> Iterator[tuple[str, Program]]:
    """The programs beside the ledger that show a bug of this QEMU."""
    version = _version(cell)
    for bug in ledger.load().bug:
        path = recipes_folder() / "programs" / f"{bug.id}.json"
        if bug.status(version) is Status.AFFECTED and path.is_file():
            yield bug.id, programs.read(path)
