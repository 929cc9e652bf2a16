from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.explore import finding
from harness.explore.attempt import Attempt, Ending, Failure
from harness.explore.finding import DATA, PROGRAM, RECORD, Finding
from harness.explore.minimise import Minimised
from harness.report.reliability import Reliability
from harness.tests.explore.fakes import program

FAILURE = Failure("qemu_alive", 'QEMU died: "SIGSEGV" in 0x1234', "no leak", ("v9fs_read", "v9fs_free"), 1)
FOUND = Finding(program("plug:0 unplug:0", shares=1), program("plug:1 stop unplug:1 cont"), FAILURE, "7.2.22")


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    found = replace(FOUND, reliability=Reliability(19, 20), complete=True, bug="R1")
    finding.write(tmp_path / "one", found)
    assert finding.read(tmp_path / "one") == found


def test_the_text_says_what_where_and_how(tmp_path: Path) -> None:
    finding.write(tmp_path / "one", replace(FOUND, reliability=Reliability(19, 20)))
    text = (tmp_path / "one/README.txt").read_text()
    for part in (
        'qemu_alive: QEMU died: "SIGSEGV"',
        "Seen at step 1 of a program with 2 steps (the first program that showed it had 4)",
        "  0  plug(0)\n  1  unplug(0)\n",
        "failed 19 of 20 (76 to 99 %)",
        "QEMU default (7.2.22), machine type pc",
        "harness replay program.json --times 20",
        "v9fs_read < v9fs_free",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("seen", "said"),
    [(Reliability(0, 0), "not measured"), (Reliability(0, 100), "it did not come again: failed 0 of 100")],
)
def test_what_was_not_reproduced_is_said(tmp_path: Path, seen: Reliability, said: str) -> None:
    finding.write(tmp_path / "one", replace(FOUND, reliability=seen))
    assert said in (tmp_path / "one/README.txt").read_text()


def test_the_test_is_about_ten_lines_of_python(tmp_path: Path) -> None:
    finding.write(tmp_path / "one", FOUND)
    text = (tmp_path / "one/test_repro.py").read_text()
    ast.parse(text)
    assert len([line for line in text.splitlines() if line]) <= 10
    assert '@pytest.mark.guarantee("no leak")' in text


def test_the_record_of_the_failure_becomes_the_findings(tmp_path: Path) -> None:
    record = tmp_path / "attempt"
    record.mkdir()
    (record / "qemu.log").write_text("died")
    finding.write(tmp_path / "one", FOUND, Attempt(Ending.FAILED, FAILURE, artifacts=record))
    finding.write(tmp_path / "one", FOUND)
    assert (tmp_path / "one" / RECORD / "qemu.log").read_text() == "died"


def test_a_writer_that_is_killed_leaves_the_state_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finding.write(tmp_path / "one", FOUND)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        finding.write(tmp_path / "two", replace(FOUND, bug="R1"))
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["one"]
    finding.remove_partial(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_a_smaller_program_is_written_at_once(tmp_path: Path) -> None:
    finding.write(tmp_path / "one", FOUND)
    finding.write_program(tmp_path / "one", program("plug:0", shares=1))
    assert str(finding.read(tmp_path / "one").program) == "plug(0)"


@pytest.mark.parametrize("damage", [lambda f: (f / DATA).unlink(), lambda f: (f / DATA).write_text('{"a"')])
def test_a_half_written_folder_is_refused(tmp_path: Path, damage: object) -> None:
    finding.write(tmp_path / "one", FOUND)
    assert callable(damage)
    damage(tmp_path / "one")
    with pytest.raises(UsageError, match="half written"):
        finding.read(tmp_path / "one")


def test_a_folder_without_program_is_refused(tmp_path: Path) -> None:
    finding.write(tmp_path / "one", FOUND)
    (tmp_path / "one" / PROGRAM).unlink()
    with pytest.raises(UsageError, match=r"program\.json: No such file"):
        finding.read(tmp_path / "one")


def test_names_are_those_of_files_and_differ_by_signature() -> None:
    other = replace(FOUND, failure=replace(FAILURE, message="QEMU hangs"))
    assert FOUND.name.startswith("raw-qemu_alive-")
    assert FOUND.name != other.name
    assert "/" not in replace(FOUND, failure=replace(FAILURE, checker="a/b c")).name


def test_a_minimisation_that_did_not_reproduce_it_changes_the_reliability_only() -> None:
    made = Minimised(program("plug:0"), FOUND.signature, original=Reliability(0, 100))
    assert FOUND.minimised(made) == replace(FOUND, reliability=Reliability(0, 100))
