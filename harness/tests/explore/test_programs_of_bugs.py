"""Every program beside the ledger can be read, is possible on the model, and belongs to a bug or a fault."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.explore.attempt import Ending
from harness.explore.guests import FreshGuests
from harness.explore.program import Program, read
from harness.explore.run import states
from harness.mutation.catalogue import Catalogue
from harness.provision.recipes import recipes_folder
from harness.reaper import RunFolder
from harness.report.ledger import load

PROGRAMS = sorted((recipes_folder() / "programs").glob("*.json"))


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_a_program_is_possible(path: Path) -> None:
    program = read(path)
    assert len(states(program)) == len(program.steps) + 1


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_a_program_belongs_to_a_bug_or_a_fault(path: Path) -> None:
    """A program of a fault runs on the build that has it."""
    faults = set(Catalogue().names())
    assert path.stem in faults | {bug.id for bug in load().bug}
    if path.stem in faults:
        assert read(path).cell.qemu == f"7.2-src+{path.stem}"


def test_every_bug_has_a_program_or_a_reason() -> None:
    """One of the two, and not both."""
    names = {path.stem for path in PROGRAMS}
    wrong = {bug.id for bug in load().bug if (bug.id in names) == (bug.no_program is not None)}
    assert not wrong, "write images/programs/ID.json, or say in images/known-bugs.toml, no_program, why not"


@pytest.mark.slow
@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_a_program_fails_where_it_has_to(path: Path, tmp_path: Path) -> None:
    """That of a bug fails as the ledger says. That of a fault passes on the same QEMU without it."""
    program = read(path)
    attempt = FreshGuests(tmp_path)(RunFolder())
    made = attempt(program)
    assert made.ending is Ending.FAILED
    assert made.failure is not None
    if path.stem not in Catalogue().names():
        (bug,) = [one for one in load().bug if one.id == path.stem]
        assert bug.explains(made.failure.message), made.failure.signature
    name, plus, _ = program.cell.qemu.partition("+")
    if plus:
        control = program.model_copy(update={"cell": program.cell.model_copy(update={"qemu": name})})
        seen = attempt(control)
        assert (seen.ending, seen.failure) == (Ending.PASSED, None)


def test_there_are_programs() -> None:
    assert len(PROGRAMS) >= 7
    assert all(isinstance(read(path), Program) for path in PROGRAMS)
