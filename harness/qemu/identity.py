"""What distinguishes builds of QEMU: the build id, the package, the commit."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import NoteSegment

from harness.qemu.binary import Capabilities, QemuInstall

#: QEMU: ``scripts/qemu-version.sh`` puts "git describe --match 'v*' --dirty" there, or what the packager gave
#: to ``configure --with-pkgversion``.
_PACKAGE = re.compile(r"\((.+)\)\s*$")
_DESCRIBED = re.compile(r"v\d+\.\d+\.\d+\S*|v\d+\.\d+\S*-g[0-9a-f]+(-dirty)?")
#: The line of a build tree with its source tree (QEMU: ``configure`` writes ``config-host.mak``).
_SOURCE = re.compile(r"^SRC_PATH=(.+)$", re.MULTILINE)
_TIMEOUT_S = 30


@dataclass(frozen=True)
class Identity:
    """The identity of a binary; ``None`` for what it does not say.

    :ivar build_id: the GNU build id, in hexadecimal.
    :ivar package_version: what a packager called it, such as ``Debian 1:7.2+dfsg-7+deb12u18``.
    :ivar git_describe: the commit of the source tree that it was built from, as ``git describe`` names it.
    """

    build_id: str | None = None
    package_version: str | None = None
    git_describe: str | None = None


def identity(install: QemuInstall, capabilities: Capabilities) -> Identity:
    """The identity of an installed QEMU, or of one in a build tree."""
    found = _PACKAGE.search(capabilities.banner)
    named = found[1] if found else None
    described = named if named and _DESCRIBED.fullmatch(named) else None
    return Identity(
        build_id=build_id(install.binary),
        package_version=None if described else named,
        git_describe=described or _describe(install.binary.parent),
    )


def build_id(binary: Path) -> str | None:
    """The GNU build id of an ELF file; ``None`` for a script, and where the linker wrote none."""
    try:
        with binary.open("rb") as file:
            for segment in ELFFile(file).iter_segments("PT_NOTE"):
                assert isinstance(segment, NoteSegment)
                for note in segment.iter_notes():
                    if note["n_type"] == "NT_GNU_BUILD_ID":
                        return str(note["n_desc"])
    except (OSError, ELFError):
        return None
    return None


def _describe(folder: Path) -> str | None:
    """``git describe`` of the source tree of a build tree; ``None`` where it is none, or has no commits."""
    # Until 5.2 the binary was in a sub-folder of the build tree, such as x86_64-softmmu.
    files = [file for up in (folder, folder.parent) if (file := up / "config-host.mak").is_file()]
    found = _SOURCE.search(files[0].read_text(errors="replace")) if files else None
    if found is None:
        return None
    argv = ["git", "-C", found[1].strip(), "describe", "--match", "v*", "--always", "--dirty"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 and done.stdout.strip() else None
