"""Runs QEMU's own tests of the same source tree against a QEMU with a fault, for comparison.

They are qtests (QEMU: ``docs/devel/testing.rst``): GLib test programs that start the QEMU in
``QTEST_QEMU_BINARY`` and talk to it over QMP and the qtest protocol; no guest runs. Each test case is run in
a separate process, because a case that aborts ends its program, and the later cases would not run.

``device-introspect-test`` is left out: it takes half a minute to some minutes, and no fault of the catalogue
changes the properties that a device lists.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from harness.deadline import wait_until
from harness.errors import SetupError, WaitTimeout
from harness.qemu.binary import PROGRAM, QemuInstall
from harness.reaper import RunFolder

Report = Callable[[str], None]
#: The test programs, and a text that the path of each wanted case contains.
PROGRAMS = {"qos-test": "/virtio-9p", "device-plug-test": "/", "drive_del-test": "/"}
CAUGHT, PASSED, NOT_RUN = "caught", "passed", "not run"
#: Seconds for one case. The longest takes six on a busy machine.
TIMEOUT_S = 120.0
_END_S = 10.0
#: A TAP line of a case that passed, and was not skipped (GLib: gtestutils.c, g_test_log).
_PASSED = re.compile(r"ok\b(?!.*# SKIP)")
#: Option ROMs of network cards, which Debian's source package does not have (QEMU: ``pc-bios/efi-*.rom``).
#: QEMU needs the files for its default devices. Their content does not matter, because no guest runs.
_ROMS = ("e1000", "e1000e", "eepro100", "ne2k_pci", "pcnet", "rtl8139", "virtio", "vmxnet3")
_ROM = b"\x55\xaa\x01".ljust(512, b"\0")


@dataclass(frozen=True)
class QtestResult:
    """The result of QEMU's own tests for one fault.

    :ivar verdict: :data:`CAUGHT`, :data:`PASSED` or :data:`NOT_RUN`. :ivar test: the case that failed.
    :ivar why: the first line of its failure, or the reason why nothing ran.
    """

    verdict: str
    test: str = ""
    why: str = ""


@dataclass(frozen=True)
class Qtests:
    """The cases that pass on the QEMU without a fault. Only their failures count against a fault.

    :ivar folder: has the test programs. :ivar cases: the paths of each program's cases that pass.
    :ivar broken: the paths of those that fail, with the first line of each failure.
    """

    folder: Path
    cases: dict[str, list[str]] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path, install: QemuInstall, report: Report) -> Qtests:
        """Run every case of QEMU's own tests against ``install``, which has no fault.

        :param folder: has the test programs.
        :raises SetupError: when a program does not list its cases.
        """
        made = cls(folder)
        with _Session(folder, install) as session:
            for program, wanted in PROGRAMS.items():
                found = [path for path in session.cases(program) if wanted in path]
                reasons = {path: session.why_it_does_not_count(program, path) for path in found}
                made.cases[program] = [path for path, why in reasons.items() if why is None]
                made.broken.update({path: why for path, why in reasons.items() if why is not None})
        for path, why in made.broken.items():
            report(f"QEMU's own test {path} fails on {install.name} and is not counted: {why}")
        report(f"QEMU's own tests: {sum(map(len, made.cases.values()))} pass on {install.name}")
        return made

    def run(self, install: QemuInstall) -> QtestResult:
        """Run the cases of QEMU's own tests against ``install``, which has a fault, until one fails."""
        if not any(self.cases.values()):
            return QtestResult(NOT_RUN, why="no case passes on the QEMU without a fault")
        try:
            with _Session(self.folder, install) as session:
                for program, paths in self.cases.items():
                    for path in paths:
                        why = session.why_it_fails(program, path)
                        if why is not None:
                            return QtestResult(CAUGHT, f"{program} {path}", why)
        except OSError as exc:
            return QtestResult(NOT_RUN, why=str(exc))
        return QtestResult(PASSED)


class _Session:
    """A folder in which test programs run against one QEMU. Its end ends all processes and removes files."""

    def __init__(self, folder: Path, install: QemuInstall) -> None:
        self._folder, self._install = folder, install

    def __enter__(self) -> _Session:
        self._run = RunFolder()
        roms = self._run.path / "roms"
        roms.mkdir()
        for name in _ROMS:
            (roms / f"efi-{name}.rom").write_bytes(_ROM)
        # The program takes the architecture from the end of the name (QEMU: libqtest.c, qtest_get_arch).
        self._qemu = self._run.path / PROGRAM
        command = shlex.join(self._install.argv("-L", str(roms)))
        self._qemu.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        self._qemu.chmod(0o700)
        return self

    def __exit__(self, *_: object) -> None:
        self._run.close()

    def cases(self, program: str) -> list[str]:
        """The paths of the cases of a test program of QEMU's, slow ones included.

        :raises SetupError: when the program does not list them.
        """
        status, out, err = self._start(program, "-l")
        # Newer GLibs (trixie's) write a TAP comment, "# /path"; older ones write the path alone.
        lines = [line.removeprefix("# ") for line in out.splitlines()]
        found = [line for line in lines if line.startswith("/")]
        if status != 0 or not found:
            raise SetupError(f"QEMU's own {program} does not list its tests: {_reason(status, out, err)}")
        return found

    def why_it_fails(self, program: str, path: str) -> str | None:
        """Run a case; return the first line of its failure, or ``None`` when it does not fail."""
        return self._case(program, path)[0]

    def why_it_does_not_count(self, program: str, path: str) -> str | None:
        """Run a case; return why it does not pass, or ``None``. A program that runs none exits with 0."""
        why, out = self._case(program, path)
        passed = [line for line in out.splitlines() if _PASSED.match(line)]
        return why if why is not None or passed else "it was skipped, or did not run"

    def _case(self, program: str, path: str) -> tuple[str | None, str]:
        """The first line of a case's failure, or ``None``; and its output."""
        try:
            status, out, err = self._start(program, "-p", path)
        except WaitTimeout:
            return f"did not end within {TIMEOUT_S:g} s", ""
        return (None if status == 0 else _reason(status, out, err)), out

    def _start(self, program: str, *options: str) -> tuple[int, str, str]:
        """Run a test program of QEMU's with the loader and the libraries with which QEMU is run."""
        loader = self._install.command[:-1]
        environment = {
            **self._run.environment(),
            **self._install.environment,
            "QTEST_QEMU_BINARY": str(self._qemu),
            "TMPDIR": str(self._run.path),
        }
        out, err = self._run.path / "out", self._run.path / "err"
        with out.open("wb") as to_out, err.open("wb") as to_err:
            process = subprocess.Popen(
                [*loader, str(self._folder / program), "-m", "slow", "--tap", *options],
                cwd=self._run.path,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=to_out,
                stderr=to_err,
                start_new_session=True,
            )
            try:
                wait_until(lambda: process.poll() is not None, what=program, timeout_s=TIMEOUT_S)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait(_END_S)
        texts = [path.read_text(errors="replace") for path in (out, err)]
        return process.returncode, texts[0], texts[1]


def _reason(status: int, out: str, err: str) -> str:
    """Why a case of QEMU's own tests failed: the assertion, libqtest's message, or the last line of output.

    libqtest says that QEMU died.
    """
    for line in out.splitlines():
        if line.startswith("not ok") and " - " in line:
            return line.partition(" - ")[2]
    lines = [line for line in (*err.splitlines(), *out.splitlines()) if line.strip(" *")]
    errors = [line for line in lines if "kill_qemu()" in line or line.startswith("ERROR:")]
    return (errors or lines[-1:] or [f"exited with {status}"])[0]
