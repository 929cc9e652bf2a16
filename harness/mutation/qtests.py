"""QEMU's own tests of the same source tree, run against a QEMU with a fault: what the peer sees of it.

They are qtests (QEMU: ``docs/devel/testing.rst``): GLib test programs that start the QEMU that
``QTEST_QEMU_BINARY`` names and talk to it over QMP and the qtest protocol; no guest runs. Each of their test
cases is run in a process of its own, so that one that takes the program down hides no other.

``device-introspect-test`` is left out: it takes half a minute to some minutes, a device at a time, and none
of the catalogue's faults is about what a device says of itself.
"""

from __future__ import annotations

import contextlib
import os
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
#: The test programs, and what the cases that are wanted have in their path.
PROGRAMS = {"qos-test": "/virtio-9p", "device-plug-test": "/", "drive_del-test": "/"}
CAUGHT, PASSED, NOT_RUN = "caught", "passed", "not run"
#: Seconds for one case. The longest takes six on a busy machine.
TIMEOUT_S = 120.0
_END_S = 10.0
#: Option ROMs of network cards, which Debian's source package does not have (QEMU: ``pc-bios/efi-*.rom``).
#: QEMU loads them into its default devices; what is in them is of no interest, because no guest runs.
_ROMS = ("e1000", "e1000e", "eepro100", "ne2k_pci", "pcnet", "rtl8139", "virtio", "vmxnet3")
_ROM = b"\x55\xaa\x01".ljust(512, b"\0")


@dataclass(frozen=True)
class PeerFinding:
    """What QEMU's own tests say of a fault.

    :ivar verdict: one of the words above. :ivar test: the case that failed. :ivar why: its first line, or
        why nothing ran.
    """

    verdict: str
    test: str = ""
    why: str = ""


@dataclass(frozen=True)
class Peers:
    """The cases that pass on the QEMU without a fault, and so may accuse one with a fault.

    :ivar cases: the paths of each program's cases. :ivar broken: those that fail there, and why.
    """

    folder: Path
    cases: dict[str, list[str]] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path, install: QemuInstall, report: Report) -> Peers:
        """Run every case against ``install``, which has no fault.

        :param folder: has the test programs.
        :raises SetupError: when the programs do not say which cases they have.
        """
        made = cls(folder)
        with _Bench(folder, install) as bench:
            for program, wanted in PROGRAMS.items():
                found = [path for path in bench.cases(program) if wanted in path]
                said = {path: bench.why_it_fails(program, path) for path in found}
                made.cases[program] = [path for path, why in said.items() if why is None]
                made.broken.update({path: why for path, why in said.items() if why is not None})
        for path, why in made.broken.items():
            report(f"QEMU's own test {path} fails on {install.name} and is not counted: {why}")
        report(f"QEMU's own tests: {sum(map(len, made.cases.values()))} pass on {install.name}")
        return made

    def look(self, install: QemuInstall) -> PeerFinding:
        """Run them against ``install``, which has a fault, until one fails."""
        if not any(self.cases.values()):
            return PeerFinding(NOT_RUN, why="none of them passes on the QEMU without a fault")
        try:
            with _Bench(self.folder, install) as bench:
                for program, paths in self.cases.items():
                    for path in paths:
                        why = bench.why_it_fails(program, path)
                        if why is not None:
                            return PeerFinding(CAUGHT, f"{program} {path}", why)
        except OSError as exc:
            return PeerFinding(NOT_RUN, why=str(exc))
        return PeerFinding(PASSED)


class _Bench:
    """A folder to run test programs in; when it is closed, nothing of them is left."""

    def __init__(self, folder: Path, install: QemuInstall) -> None:
        self._folder, self._install = folder, install

    def __enter__(self) -> _Bench:
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
        """The paths of a program's cases, slow ones included.

        :raises SetupError: when it does not say.
        """
        status, out, err = self._start(program, "-l")
        # Newer GLibs (trixie's) write a comment of TAP, "# /path", and older ones the path alone.
        lines = [line.removeprefix("# ") for line in out.splitlines()]
        found = [line for line in lines if line.startswith("/")]
        if status != 0 or not found:
            raise SetupError(f"QEMU's own {program} does not list its tests: {_reason(status, out, err)}")
        return found

    def why_it_fails(self, program: str, path: str) -> str | None:
        """The first line of why a case fails; ``None`` when it passes."""
        try:
            status, out, err = self._start(program, "-p", path)
        except WaitTimeout:
            return f"was not done after {TIMEOUT_S:g} s"
        return None if status == 0 else _reason(status, out, err)

    def _start(self, program: str, *options: str) -> tuple[int, str, str]:
        """Run a test program with the loader and libraries that QEMU is run with."""
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
    """One line: the assertion, what libqtest says of QEMU's death, or whatever was said last."""
    for line in out.splitlines():
        if line.startswith("not ok") and " - " in line:
            return line.partition(" - ")[2]
    said = [line for line in (*err.splitlines(), *out.splitlines()) if line.strip(" *")]
    told = [line for line in said if "kill_qemu()" in line or line.startswith("ERROR:")]
    return (told or said[-1:] or [f"exited with {status}"])[0]
