from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness import artifacts
from harness.deadline import wait_until
from harness.explore import finding
from harness.explore.attempt import Failure
from harness.explore.finding import Finding
from harness.explore.program import Program, text
from harness.layout import recipes_folder, scenarios_folder
from harness.report.reliability import Reliability
from harness.tests.cli.conftest import Harness
from harness.tests.explore.fakes import program

R2 = recipes_folder() / "programs" / "R2.json"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--alphabet", "raw,other"), "--alphabet raw,other: unknown: other; known: raw, guest, all"),
        (("--alphabet", ""), "--alphabet : unknown: (nothing); known: raw, guest, all"),
        (("--resume", "x", "--into", "y"), "--resume goes on in its own folder: leave out --into"),
        (("--resume", "/nowhere"), "--resume /nowhere: no search was begun there: No such file or directory"),
    ],
)
def test_bad_input_of_explore(harness: Harness, words: tuple[str, ...], line: str) -> None:
    ended = harness("explore", *words)
    assert (ended.status, ended.line) == (2, f"harness: {line}")


def write(path: Path, content: Program) -> Path:
    path.write_text(text(content))
    return path


@pytest.mark.parametrize("command", ["replay", "minimise"])
def test_bad_input_of_a_program(harness: Harness, tmp_path: Path, command: str) -> None:
    """One line each: no file, no program, an unknown step, an impossible one, an empty folder."""
    unknown = write(tmp_path / "unknown.json", program("plug:0 fly:0", shares=1))
    impossible = write(tmp_path / "impossible.json", program("plug:0 plug:0", shares=1))
    other = tmp_path / "other.json"
    other.write_text('{"version": 9, "steps": []}')
    for path, said in (
        (tmp_path / "none.json", "No such file or directory"),
        (other, "a program of version 9"),
        (unknown, "step 1, fly(0): unknown step"),
        (impossible, "step 1, plug(0): not possible after plug(0)"),
        (tmp_path, "neither the folder of a finding (program.json) nor that of a failed test"),
    ):
        ended = harness(command, path)
        assert ended.status == 2
        assert said in ended.line


def test_a_half_written_finding(harness: Harness, tmp_path: Path) -> None:
    found = Finding(program("plug:0"), program("plug:0"), Failure("fake", "it broke"))
    finding.write(tmp_path / "one", found)
    (tmp_path / "one" / finding.DATA).write_text("{")
    for command in ("replay", "minimise"):
        ended = harness(command, tmp_path / "one")
        assert ended.status == 2
        assert "finding.json: half written, or of another version" in ended.line


@pytest.mark.usefixtures("cache_root")
@pytest.mark.parametrize("words", [("replay", R2), ("explore", "--alphabet", "raw", "--seconds", "1")])
def test_a_machine_type_that_programs_of_the_raw_client_cannot_use(
    harness: Harness, words: tuple[str | Path, ...]
) -> None:
    """It is refused before a QEMU or an accelerator is looked for: an empty cache has neither."""
    ended = harness(*words, "--machine", "q35")
    assert ended.status == 2
    assert "programs of the raw client need machine type pc" in ended.line


def test_minimise_does_not_overwrite_its_program(harness: Harness, tmp_path: Path) -> None:
    path = write(tmp_path / "one.json", program("plug:0"))
    ended = harness("minimise", path, "--into", path)
    assert (ended.status, "this is the program itself" in ended.line) == (2, True)


@pytest.mark.qemu
def test_a_program_is_replayed_and_made_smaller(harness: Harness, tmp_path: Path) -> None:
    ended = harness("replay", R2, "--qemu", "7.2", "--times", "4", "--json", "--into", tmp_path / "records")
    assert ended.status == 1
    assert ended.json["failures"] == ended.json["attempts"] == 4
    assert ended.json["signatures"] == {"blocked_reasons | blocked with nothing mounted": 4}
    long = program("cont plug:1 plug:0 version:0 attach:0 stop eject:0 cont")
    long = long.model_copy(update={"cell": long.cell.model_copy(update={"qemu": "7.2"})})
    path = write(tmp_path / "long.json", long)
    ended = harness("minimise", path, "--seconds", "90")
    assert ended.status == 0, ended.err
    smallest = json.loads((tmp_path / "long.min.json").read_text())
    assert [step["do"] for step in smallest["steps"]] == ["plug", "version", "attach", "eject"]


@pytest.mark.qemu
def test_a_program_that_does_not_fail_cannot_be_made_smaller(
    harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    below = SimpleNamespace(mkdtemp=partial(tempfile.mkdtemp, dir=tmp_path))
    monkeypatch.setattr(artifacts, "tempfile", below)
    ended = harness("replay", R2, "--qemu", "11.1", "--times", "2")
    assert ended.status == 0
    assert ended.out.startswith("failed 0 of 2")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.qemu
def test_a_search_that_is_interrupted_goes_on(tmp_path: Path, harness: Harness) -> None:
    """R2 is found on 7.2 without the ledger; its test fails by itself."""
    into = tmp_path / "found"
    words = ["explore", "--qemu", "7.2", "--alphabet", "raw", "--known-bugs", "ignore", "--seconds", "600"]
    words += ["--minimise-seconds", "30", "--steps", "2", "--into", str(into)]
    search = subprocess.Popen(
        [sys.executable, "-m", "harness", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        log = into / "programs.ndjson"
        wait_until(lambda: log.exists() and log.stat().st_size, what="the first programs", timeout_s=120)
        search.send_signal(signal.SIGINT)
        assert search.wait(60) == 130
    finally:
        search.kill()
        printed, _ = search.communicate()
    assert "raw: " in printed
    done = len(log.read_text().splitlines())
    ended = harness("explore", "--resume", into, "--programs", "60", "--minimise-seconds", "0")
    assert ended.status in (0, 1), ended.err
    assert len(log.read_text().splitlines()) >= done + 60 - 40
    assert not (into / "attempts").exists()


@pytest.mark.qemu
def test_a_finding_has_a_test_that_shows_it(tmp_path: Path) -> None:
    r2 = Program.model_validate(json.loads(R2.read_text()))
    failure = Failure("blocked_reasons", "blocked with nothing mounted", "blocked while mounted", step=3)
    finding.write(tmp_path / "one", Finding(r2, r2, failure, "7.2", reliability=Reliability(20, 20)))
    done = {
        qemu: subprocess.run(
            [sys.executable, "-m", "pytest", str(tmp_path / "one"), "--qemu", qemu, "--machine", "pc", "-q"],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )
        for qemu in ("7.2", "11.1")
    }
    assert done["7.2"].returncode == 1, done["7.2"].stdout
    assert "blocked with nothing mounted" in done["7.2"].stdout
    assert done["11.1"].returncode == 0, done["11.1"].stdout


@pytest.mark.qemu
def test_the_scenario_of_a_failed_test_is_replayed(harness: Harness, tmp_path: Path) -> None:
    """R6, which the ledger expects: a replay does without the ledger."""
    scenario = scenarios_folder() / "test_hostile_guest.py"
    words = [sys.executable, "-m", "pytest", f"{scenario}::test_attach_twice_and_clunk_the_first"]
    words += ["--qemu", "7.2", "--machine", "pc", "--thorough", "-q", "--keep-artifacts"]
    subprocess.run([*words, "--artifacts", str(tmp_path / "run")], check=True, capture_output=True)
    (folder,) = (path for path in (tmp_path / "run").iterdir() if path.is_dir())
    ended = harness("replay", folder, "--times", "2", "--into", tmp_path / "records", "--json")
    assert ended.status == 1, ended.err
    (signature,) = ended.json["signatures"]
    assert "blocked-reasons does not name exactly" in signature
    assert ended.json["failures"] == 2


def test_a_record_that_names_no_test(harness: Harness, tmp_path: Path) -> None:
    (tmp_path / "history.ndjson").write_text("")
    ended = harness("replay", tmp_path)
    assert ended.status == 2
    assert "its history.ndjson names no test" in ended.line
