"""What compiles the commits of a tree: an unpacked release (as for faults), or the compiler of the host."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Protocol

from harness.errors import SetupError
from harness.explore.candidate import Report
from harness.provision import Provisioner
from harness.provision.build_root import BuildRoot, ScriptFailed
from harness.provision.unpacked import installed
from harness.qemu.binary import PROGRAM

#: The flavours whose tools and options are used, by the newest version of QEMU that they are for.
_FLAVOURS = ((8, "7.2-src"), (999, "10.0-src"))
#: Seconds. On one slow core a full build takes half an hour.
_TIMEOUT_S = 3600.0
#: Of QEMU's firmware, what an x86 guest needs; with the host's compiler it is the tree's own.
_FIRMWARE = ("*.bin", "*.rom")


class Compiler(Protocol):
    """Runs scripts in a work folder with ``source`` and ``build``, and makes binaries that can be started.

    :ivar options: QEMU's ``configure`` options. :ivar name: what it is, for people.
    """

    name: str
    options: tuple[str, ...]

    def run(self, script: str, *, what: str) -> str:
        """Run a shell script of a commit's build in the work folder; returns its output.

        The output is kept in ``WHAT.log`` there.

        :raises ScriptFailed: when it fails. :raises SetupError: when it cannot be run.
        """

    def keep(self, binary: Path, into: Path) -> Path:
        """Copy the binary that a compiler made into the folder ``into``.

        :returns: the file that starts it (``--qemu PATH``), called as QEMU is. It comes last.
        """


def flavour_for(version: str) -> str:
    """The flavour whose tools build QEMU ``version`` (the content of its file ``VERSION``)."""
    match = re.match(r"\d+", version.strip())
    major = int(match[0]) if match else 0
    return next(name for newest, name in _FLAVOURS if major <= newest)


class ReleaseCompiler:
    """The compiler and libraries of the release of a flavour that is built from source, such as ``7.2-src``.

    :raises SetupError: when its packages cannot be fetched.
    """

    def __init__(self, flavour: str, provisioner: Provisioner, work: Path, report: Report) -> None:
        build = provisioner.build(flavour)
        self.name = f"the compiler and libraries of {flavour}"
        self.options = build.configure
        self._release = build.root
        self._root = BuildRoot(build.root, work, report)

    def run(self, script: str, *, what: str) -> str:
        """Run a shell script with the compiler of a release; see :meth:`Compiler.run`."""
        return self._root.run(script, what=what)

    def keep(self, binary: Path, into: Path) -> Path:
        """Copy what a release's compiler made; a script starts it with the libraries it was built with."""
        kept = into / f"{PROGRAM}.elf"
        shutil.copyfile(binary, kept)
        kept.chmod(0o755)
        install = installed(into.name, self._release, "", binary=kept)
        variables = [f"export {name}={shlex.quote(value)}\n" for name, value in install.environment.items()]
        starts = into / "starts"
        starts.write_text(f'#!/bin/sh\n{"".join(variables)}exec {shlex.join(install.argv())} "$@"\n')
        return _named(starts)


class HostCompiler:
    """The host's own compiler, with ccache where it is on PATH.

    :param options: QEMU's ``configure`` options.
    """

    def __init__(self, options: tuple[str, ...], work: Path) -> None:
        self._work = work
        cached = ("--cc=ccache cc",) if shutil.which("ccache") else ()
        self.name = "the host's compiler" + (", with ccache" if cached else "")
        self.options = (*options, *cached)

    def run(self, script: str, *, what: str) -> str:
        """Run a shell script with the compiler of the host; see :meth:`Compiler.run`."""
        log = self._work / f"{what}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "sh", "-c", script],
                cwd=self._work,
                env={**os.environ, "LC_ALL": "C.UTF-8"},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
            try:
                process.wait(_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                raise SetupError(
                    f"{what} did not end within {_TIMEOUT_S:.0f} s; its output is in {log}"
                ) from None
            finally:
                process.kill()
                process.wait()
        output = log.read_text(errors="replace")
        if process.returncode != 0:
            lines = output.strip().splitlines() or ["it printed nothing"]
            raise ScriptFailed(f"{what} failed: {lines[-1]}", details="\n".join(lines[-15:]))
        return output

    def keep(self, binary: Path, into: Path) -> Path:
        """Copy what the host's compiler made, and the firmware of the tree; see :meth:`Compiler.keep`."""
        firmware = into / "pc-bios"
        firmware.mkdir(exist_ok=True)
        for pattern in _FIRMWARE:
            for file in (self._work / "source/pc-bios").glob(pattern):
                shutil.copyfile(file, firmware / file.name)
        shutil.copyfile(binary, into / "copy")
        return _named(into / "copy")


def _named(file: Path) -> Path:
    file.chmod(0o755)
    return file.rename(file.with_name(PROGRAM))
