"""Attempts at programs on a real QEMU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.explore import run as running
from harness.explore.attempt import Attempt, Ending
from harness.explore.program import AlphabetName, Program, ShareKind, Step, read
from harness.explore.raw_model import RawState
from harness.explore.raw_steps import RawPerformer
from harness.matrix import Matrix, Selection
from harness.provision.recipes import recipes_folder
from harness.qemu.machine_types import MACHINE_TYPES
from harness.reaper import RunFolder
from harness.testbed import Cell

Try = Callable[[Program], Attempt]


def cell_of(qemu: str) -> Cell:
    (cell,) = Matrix(Selection(qemus=(qemu,), machines=("pc",), accel="tcg")).prepare()
    return cell


@pytest.fixture(scope="module")
def old() -> Cell:
    return cell_of("7.2")


@pytest.fixture(scope="module")
def own() -> Iterator[RunFolder]:
    made = RunFolder()
    yield made
    made.close()


def program(*steps: tuple[str, int | None, str | None], shares: int = 1) -> Program:
    made = tuple(Step(do=do, share=share, value=value) for do, share, value in steps)
    return Program(alphabet=AlphabetName.RAW, shares=(ShareKind(),) * shares, steps=made)


LIFE = program(
    ("plug", 0, None),
    ("plug_refused", 1, "fsdev"),
    ("plug_refused", 1, "rom"),
    ("plug_refused", 0, "duplicate"),
    ("version", 0, None),
    ("savevm", None, None),
    ("attach", 0, None),
    ("attach", 0, "again"),
    ("migrate", None, None),
    ("savevm", None, None),
    ("open", 0, None),
    ("write", 0, None),
    ("read", 0, None),
    ("hold", 0, "fsync"),
    ("flush", 0, None),
    ("release", 0, None),
    ("create", 0, None),
    ("readdir", 0, None),
    ("xattrwalk", 0, None),
    ("unlink", 0, None),
    ("malformed", 0, "unknown_type"),
    ("cont", None, None),
    ("loadvm", None, None),
    ("version", 0, None),
    ("migrate_begin", None, None),
    ("attach", 0, None),
    ("device_del", 0, None),
    ("migrate_cancel", None, None),
    ("stop", None, None),
    ("migrate", None, None),
    ("version", 0, None),
    ("attach", 0, None),
    ("create", 0, None),
    ("remove", 0, None),
    ("malformed", 0, "ring"),
    ("system_reset", None, None),
    ("device_del", 0, None),
    ("device_del", 0, None),
    ("system_reset", None, None),
    ("plug", 0, None),
    ("device_reset", 0, None),
    ("eject", 0, None),
    shares=2,
)


@pytest.mark.qemu
def test_a_program_that_passes(old: Cell, own: RunFolder, tmp_path: Path) -> None:
    """It does nearly every step once. Its record is kept, and nothing else."""
    attempt = running.run(LIFE, old, tmp_path / "a", own)
    assert (attempt.ending, attempt.failure, attempt.error) == (Ending.PASSED, None, "")
    assert attempt.artifacts == tmp_path / "a"
    assert read(tmp_path / "a" / running.PROGRAM) == LIFE
    assert running.run(LIFE.with_steps(()), old, tmp_path / "a", own).ending is Ending.PASSED


@pytest.mark.qemu
@pytest.mark.parametrize(
    ("name", "checker"),
    [("R1", "qemu_alive"), ("R2", "blocked_reasons"), ("R4", "migrate"), ("R46", "open_files")],
)
def test_a_bug_of_7_2(old: Cell, own: RunFolder, tmp_path: Path, name: str, checker: str) -> None:
    attempt = running.run(read(recipes_folder() / "programs" / f"{name}.json"), old, tmp_path / "a", own)
    assert attempt.failure is not None
    assert attempt.failure.checker == checker


@pytest.mark.qemu
@pytest.mark.parametrize("name", ["R1", "R2"])
def test_a_bug_that_is_fixed(own: RunFolder, tmp_path: Path, name: str) -> None:
    loaded = read(recipes_folder() / "programs" / f"{name}.json")
    assert running.run(loaded, cell_of("10.0"), tmp_path / "a", own).ending is Ending.PASSED


GUEST_LIFE = Program(
    alphabet=AlphabetName.GUEST,
    steps=tuple(
        Step(do=do, share=share)
        for do, share in (
            ("device_del_absent", 0),
            ("plug", 0),
            ("savevm", None),
            ("mount", 0),
            ("migrate", None),
            ("write", 0),
            ("open", 0),
            ("unlink", 0),
            ("umount_lazy", 0),
            ("device_del", 0),
            ("close", 0),
            ("plug", 0),
            ("loadvm", None),
            ("rebind", None),
            ("mount", 0),
            ("read", 0),
            ("stop", None),
            ("migrate", None),
            ("cont", None),
            ("umount", 0),
            ("unbind", 0),
            ("bind", 0),
            ("stop", None),
            ("device_del", 0),
            ("device_del", 0),
            ("cont", None),
            ("plug", 0),
            ("migrate", None),
            ("mount", 0),
            ("device_del", 0),
            ("system_reset", None),
        )
    ),
)


@pytest.mark.qemu
def test_a_program_of_a_linux_guest(old: Cell, own: RunFolder, tmp_path: Path) -> None:
    attempt = running.run(GUEST_LIFE, old, tmp_path / "a", own)
    assert (attempt.ending, attempt.failure, attempt.error) == (Ending.PASSED, None, "")


@pytest.mark.qemu
def test_a_guest_that_holds_a_request(old: Cell, own: RunFolder, tmp_path: Path) -> None:
    """The eject of a device with a request in flight, on a QEMU that does not wait for it."""
    held = running.run(_guest("plug", "mount", "hold read", "eject"), old, tmp_path / "a", own)
    assert held.failure is not None
    assert held.failure.checker in ("qemu_alive", "drain")


def _guest(*steps: str) -> Program:
    pairs = (one.partition(" ") for one in steps)
    made = tuple(
        Step(do=do, share=None if do == "system_reset" else 0, value=value or None) for do, _, value in pairs
    )
    return Program(alphabet=AlphabetName.GUEST, steps=made)


@pytest.mark.qemu
@pytest.mark.parametrize(
    "steps",
    [
        ("plug", "hold attach", "release", "umount"),
        ("plug", "mount", "hold read", "system_reset", "mount"),
        ("plug", "hold attach", "system_reset"),
    ],
    ids="; ".join,
)
def test_a_guest_whose_request_in_flight_is_answered_or_drained(
    old: Cell, own: RunFolder, tmp_path: Path, steps: tuple[str, ...]
) -> None:
    attempt = running.run(_guest(*steps), old, tmp_path / "a", own)
    assert (attempt.ending, attempt.failure, attempt.error) == (Ending.PASSED, None, "")


@pytest.mark.qemu
def test_an_error_of_the_harness_is_no_failure(
    old: Cell, own: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: RawPerformer, step: Step, before: RawState, after: RawState) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(RawPerformer, "perform", broken)
    attempt = running.run(program(("plug", 0, None)), old, tmp_path / "a", own)
    assert (attempt.ending, attempt.error) == (Ending.ERROR, "ZeroDivisionError: ours")


@pytest.mark.qemu
def test_a_qemu_that_does_not_start(
    old: Cell, own: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says nothing about the program."""
    monkeypatch.setattr("harness.qemu.spec._MEMORY_WITHOUT_KERNEL_MIB", -1)
    attempt = running.run(program(("plug", 0, None)), old, tmp_path / "a", own)
    assert attempt.ending is Ending.ERROR
    assert attempt.error.startswith("QEMU did not start: QEMU 'source' exited with 1")


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([("plug", 0, None), ("plug", 0, None)], r"step 1, plug\(0\): not possible after plug\(0\)"),
        ([("release", 0, None)], r"step 0, release\(0\): not possible after the start"),
        ([("fly", 0, None)], r"step 0, fly\(0\): unknown step; raw has: plug, "),
        ([("plug", None, None)], "step 0, plug: not possible after the start"),
    ],
)
def test_a_program_that_cannot_be(steps: list[tuple[str, int | None, str | None]], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        running.states(program(*steps))


@pytest.mark.qemu
def test_a_machine_type_that_the_raw_client_cannot_use(old: Cell, own: RunFolder, tmp_path: Path) -> None:
    """Nothing is started, and no folder is made."""
    q35 = replace(old, machine_type=MACHINE_TYPES["q35"])
    with pytest.raises(UsageError, match="machine type q35: programs of the raw client need machine type pc"):
        running.run(LIFE, q35, tmp_path / "a", own)
    assert not (tmp_path / "a").exists()


@pytest.mark.qemu
def test_a_folder_that_cannot_be_made(old: Cell, own: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    attempt = running.run(LIFE, old, tmp_path / "file" / "a", own)
    assert attempt.ending is Ending.ERROR
    assert "cannot make the artefact folder" in attempt.error
