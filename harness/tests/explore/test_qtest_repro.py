from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from harness.errors import Unsupported
from harness.explore import finding
from harness.explore.attempt import Failure
from harness.explore.finding import Finding
from harness.explore.fresh_guests import cell_of
from harness.explore.program import AlphabetName, Program, ProgramCell, read
from harness.explore.qtest_repro import REPRO, seen, with_text, write
from harness.layout import recipes_folder
from harness.reaper import RunFolder
from harness.tests.explore.fakes import program

DIED = Failure("qemu_alive", "QEMU was killed by SIGABRT", step=1)
BLOCKED = Failure("blocked_reasons", "blocked with nothing mounted", step=3)
R2 = read(recipes_folder() / "programs" / "R2.json")


@pytest.mark.parametrize(
    ("given", "failure", "why"),
    [
        (program("plug:0 hold:0:read"), DIED, "a text cannot do: hold"),
        (program("plug:0 migrate"), DIED, "a text cannot do: migrate"),
        (program("plug:0"), Failure("content", "x", step=0), "a failure of content does not show"),
        (program("plug:0"), Failure("qemu_alive", "x"), "a failure at the end of a program does not show"),
    ],
)
def test_what_a_text_cannot_do_is_refused(tmp_path: Path, given: Program, failure: Failure, why: str) -> None:
    with pytest.raises(Unsupported, match=why):
        write(given, failure, cell=None, folder=tmp_path)  # type: ignore[arg-type]  # It is not used.


def test_a_program_of_a_guest_has_no_text() -> None:
    guest = program("plug:0").model_copy(update={"alphabet": AlphabetName.GUEST})
    found = Finding(guest, guest, DIED)
    assert with_text(found, cell=None).qtest == ""  # type: ignore[arg-type]  # It is not used.


@pytest.mark.qemu
def test_a_text_shows_the_bug_and_passes_where_it_is_fixed(tmp_path: Path) -> None:
    """R2 needs QMP: the device is plugged in, and the blockers are asked for."""
    bad, fixed = (cell_of(ProgramCell(qemu=name)) for name in ("7.2", "11.1"))
    made = write(R2, BLOCKED, bad, tmp_path / "record")
    assert made.with_qmp
    run = RunFolder()
    try:
        assert seen(made, BLOCKED, R2, bad.qemu, run) == "blocked-reasons is listed"
        assert seen(made, BLOCKED, R2, fixed.qemu, run) == ""
    finally:
        run.close()


@pytest.mark.qemu
def test_the_commands_in_the_finding_run_by_themselves(tmp_path: Path) -> None:
    cell = cell_of(R2.cell)
    found = with_text(Finding(R2, R2, BLOCKED, "7.2"), cell)
    finding.write(tmp_path / "one", found)
    text = (tmp_path / "one/README.txt").read_text()
    assert "It was tried once on QEMU 7.2: blocked-reasons is listed." in text
    (tmp_path / REPRO).write_text((tmp_path / "one" / REPRO).read_text())
    lines = [line for line in text.splitlines() if line.startswith("  ")]
    script = "\n".join(lines[next(n for n, line in enumerate(lines) if "mkdir" in line) :])
    (tmp_path / "bin").mkdir()
    qemu = tmp_path / "bin" / "qemu-system-x86_64"
    exports = "".join(f"export {name}='{value}'\n" for name, value in cell.qemu.environment.items())
    qemu.write_text(f'#!/bin/sh\n{exports}exec {" ".join(cell.qemu.argv())} "$@"\n')
    qemu.chmod(0o700)
    done = subprocess.run(
        ["sh", "-c", script],
        cwd=tmp_path,
        env={"PATH": f"{tmp_path}/bin:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "VirtFS export path 'share0' is mounted" in done.stdout, done.stderr
    by_script = subprocess.run(
        ["sh", str(tmp_path / "one" / "repro.sh")],
        env={"PATH": "/usr/bin:/bin", "QEMU": str(qemu), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "VirtFS export path 'share0' is mounted" in by_script.stdout, by_script.stderr
    assert not list(tmp_path.glob("repro-*"))
