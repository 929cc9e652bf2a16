"""Every program beside the ledger can be read, is possible on the model, and belongs to a bug or a fault."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness.explore.attempt import Ending
from harness.explore.fresh_guests import FreshGuests
from harness.explore.program import Program, ShareKind, read, text
from harness.explore.run import states
from harness.mutation.catalogue import Catalogue
from harness.provision.recipes import recipes_folder
from harness.reaper import RunFolder
from harness.report.ledger import load

FOLDER = recipes_folder() / "programs"
PROGRAMS = sorted(FOLDER.glob("*.json"))


def test_each_program_is_possible() -> None:
    for path in PROGRAMS:
        program = read(path)
        assert len(states(program)) == len(program.steps) + 1, path.stem


def test_each_program_belongs_to_a_bug_or_a_fault() -> None:
    """A program of a fault runs on the build that has it."""
    faults, bugs = set(Catalogue().names()), {bug.id for bug in load().bug}
    assert {path.stem for path in PROGRAMS} - faults - bugs == set()
    for path in PROGRAMS:
        if path.stem in faults:
            assert read(path).cell.qemu == f"7.2-src+{path.stem}"


def test_every_bug_has_a_program_or_a_reason() -> None:
    """One of the two, and not both."""
    names = {path.stem for path in PROGRAMS}
    wrong = {bug.id for bug in load().bug if (bug.id in names) == (bug.no_program is not None)}
    assert not wrong, "write images/programs/ID.json, or say in images/known-bugs.toml, no_program, why not"


#: A death by a signal, as every crash is told that leaves no backtrace.
CRASH = "QEMU was killed by SIGSEGV"


def explaining(failure: str, program: Program) -> set[str]:
    return {bug.id for bug in load().bug if bug.explains_in_program(failure, text(program))}


@pytest.mark.parametrize("name", [bug.id for bug in load().bug if bug.in_program is not None])
def test_the_steps_that_a_bug_asks_for_are_in_its_own_program(name: str) -> None:
    (bug,) = [one for one in load().bug if one.id == name]
    program = (FOLDER / f"{name}.json").read_text()
    assert re.search(bug.in_program or "", program, re.DOTALL)


def test_a_crash_is_a_known_bug_only_with_its_steps() -> None:
    """R60 and R61 end by a signal as well, and are of other devices: no program shows them."""
    bugs = {name: read(FOLDER / f"{name}.json") for name in ("R1", "R3")}
    old = {"R17"}  # Of QEMU 2.4: told apart by the version.
    assert explaining(CRASH, bugs["R1"]) - old == {"R1"}
    assert explaining(CRASH, bugs["R3"]) - old == {"R3"}
    without = bugs["R1"].with_steps(tuple(step for step in bugs["R1"].steps if step.do != "hold"))
    assert explaining(CRASH, without) - old == set()


def test_a_crash_beside_a_throttled_fsdev_that_is_not_shared_is_another_bug() -> None:
    r3 = read(FOLDER / "R3.json")
    assert "R3" in explaining(CRASH, r3)
    alone = r3.model_copy(update={"shares": (r3.shares[0], ShareKind())})
    assert "R3" not in explaining(CRASH, alone)


@pytest.mark.parametrize(
    ("fault", "failure"),
    [
        ("attach-never-blocks", "blocked-reasons does not name exactly"),
        ("clunk-keeps-fd", "1 files of the share stay open"),
        ("queue-without-a-size-divides", "QEMU was killed by SIGFPE during the program"),
        ("second-flush-unanswered", "share0: 0 requests were answered, expected 1"),
        ("unrealize-dropped", "left when everything is unplugged: memory_regions +3"),
    ],
)
def test_a_known_bug_does_not_explain_a_fault(fault: str, failure: str) -> None:
    """Otherwise no search finds what ends as a known bug does, on any QEMU."""
    assert explaining(failure, read(FOLDER / f"{fault}.json")) == set()


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
        assert bug.explains_in_program(made.failure.message, text(program)), made.failure.signature
    name, plus, _ = program.cell.qemu.partition("+")
    if plus:
        control = program.model_copy(update={"cell": program.cell.model_copy(update={"qemu": name})})
        seen = attempt(control)
        assert (seen.ending, seen.failure) == (Ending.PASSED, None)


def test_there_are_programs() -> None:
    assert len(PROGRAMS) >= 7
    assert all(isinstance(read(path), Program) for path in PROGRAMS)
