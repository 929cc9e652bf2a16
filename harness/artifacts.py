"""The artefact folder of a test. File names are fixed, and files are written while the test runs.

The files of the first machine are in the folder itself; those of each further machine are in a subfolder with
the machine's name.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import SetupError, UsageError

HISTORY = "history.ndjson"
CELL = "cell.json"
VERDICT = "verdict.json"
ARGV = "argv.sh"
QMP_LOG = "qmp.ndjson"
CONSOLE_LOG = "console.log"
QEMU_LOG = "qemu.log"
KERNEL_LOG = "guest-kernel.log"
BACKTRACE = "backtrace.txt"
SANITIZER = "sanitizer.txt"
_OF_A_MACHINE = (ARGV, QMP_LOG, CONSOLE_LOG, QEMU_LOG, KERNEL_LOG, BACKTRACE, SANITIZER)


@contextmanager
def of_command(command: str) -> Iterator[Path]:
    """A new folder in the folder for temporary files, for the artefacts of a ``harness`` command.

    It stays, unless it has no content at the end: no file in it has a byte.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"virtio-9p-harness-{command}-"))
    try:
        yield folder
    finally:
        if not any(file.is_file() and file.stat().st_size for file in folder.rglob("*")):
            shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class MachineArtifacts:
    """The paths of one machine's artefacts; no file is created here."""

    folder: Path

    @property
    def argv(self) -> Path:
        """The artefact ``argv.sh``: it starts the same QEMU with the same arguments."""
        return self.folder / ARGV

    @property
    def qmp(self) -> Path:
        """The artefact with every QMP message in both directions, one JSON object a line."""
        return self.folder / QMP_LOG

    @property
    def console(self) -> Path:
        """The artefact with the raw output of the guest's second serial port, which has a shell."""
        return self.folder / CONSOLE_LOG

    @property
    def qemu(self) -> Path:
        """The artefact with QEMU's stdout and stderr."""
        return self.folder / QEMU_LOG

    @property
    def kernel(self) -> Path:
        """The artefact with the output of the guest kernel's console, the first serial port."""
        return self.folder / KERNEL_LOG

    @property
    def backtrace(self) -> Path:
        """The artefact with gdb's backtrace of a QEMU that crashed or was killed, or why there is none.

        Otherwise there is no file.
        """
        return self.folder / BACKTRACE

    @property
    def sanitizer(self) -> Path:
        """The artefact with the reports of sanitizers, with symbols, without suppressed leaks.

        Without a report there is no file.
        """
        return self.folder / SANITIZER


@dataclass(frozen=True)
class Artifacts:
    """The artefact folder of one test."""

    folder: Path

    @classmethod
    def create(cls, root: Path, test_id: str) -> Artifacts:
        """Create an empty artefact folder for ``test_id`` below ``root`` (see :meth:`create_at`)."""
        return cls.create_at(root / slug(test_id))

    @classmethod
    def create_at(cls, folder: Path) -> Artifacts:
        """Create an empty artefact folder; an older one of that name is replaced.

        Its paths are absolute: QEMU's own folder is another than the caller's.

        :raises SetupError: when the folder cannot be created.
        """
        folder = folder.absolute()
        try:
            if folder.exists():
                shutil.rmtree(folder)
            folder.mkdir(parents=True)
        except OSError as exc:
            raise SetupError(f"cannot make the artefact folder {folder}: {exc.strerror}") from exc
        return cls(folder)

    @property
    def history(self) -> Path:
        """The path of the test's history in its artefact folder."""
        return self.folder / HISTORY

    def machine(self, name: str, *, first: bool) -> MachineArtifacts:
        """The artefacts of machine ``name``; their folder is created."""
        folder = self.folder if first else self.folder / slug(name)
        folder.mkdir(parents=True, exist_ok=True)
        return MachineArtifacts(folder)

    def set_aside(self, name: str, *, first: bool) -> None:
        """Move the files of machine ``name`` to ``NAME-discarded``, for another machine of that name."""
        own = self.machine(name, first=first).folder
        folder = self.folder / slug(f"{name}-discarded")
        folder.mkdir(exist_ok=True)
        for file in map(own.joinpath, _OF_A_MACHINE):
            if file.exists():
                file.replace(folder / file.name)

    def machines(self) -> list[MachineArtifacts]:
        """The artefacts of all machines, those of the first machine first."""
        folders = sorted(path for path in self.folder.iterdir() if path.is_dir())
        return [MachineArtifacts(folder) for folder in [self.folder, *folders]]

    def write_json(self, name: str, value: Any) -> Path:
        """Write ``value`` as indented JSON under ``name`` in the artefact folder."""
        path = self.folder / name
        path.write_text(json.dumps(value, indent=2, sort_keys=True, default=str) + "\n")
        return path

    def discard(self) -> None:
        """Remove the artefact folder of the test."""
        shutil.rmtree(self.folder, ignore_errors=True)


#: Test ids that need no hash to stay distinct: at most one folder, no class, plain parameters.
_ORDINARY = re.compile(r"(?:[\w.=,+-]+/)?[\w.=,+-]+(?:::\w+(?:\[[\w.=,+-]+\])?)?", re.ASCII)
_SLUG_LENGTH = 180


def slug(test_id: str) -> str:
    """``test_id`` as the name of an artefact folder: readable, short enough for file systems, and unique.

    Characters that a file name cannot have (such as those of a path given with ``--qemu``) are replaced, and
    a hash of the id is appended.
    """
    file, _, test = test_id.partition("::")
    name = file.rpartition("/")[2] + (f"::{test}" if test else "")
    name = re.sub(r"[^A-Za-z0-9_.=,+-]+", "-", name.replace(".py::", ".")).strip("-")
    if _ORDINARY.fullmatch(test_id) and len(name) <= _SLUG_LENGTH and name.strip("."):
        return name
    digest = hashlib.sha256(test_id.encode()).hexdigest()[:8]
    return f"{name[: _SLUG_LENGTH - 9] or 'test'}-{digest}"


def recorded_tests(folder: Path) -> list[Path]:
    """The folders of recorded tests at or below ``folder``, sorted.

    :raises UsageError: when there is none.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: {'not a folder' if folder.exists() else 'no such folder'}")
    found = sorted(path.parent for path in folder.rglob(HISTORY))
    if not found:
        raise UsageError(f"{folder}: contains no recorded test (no {HISTORY})")
    return found


def tail(path: Path, lines: int, *, limit_bytes: int = 65536) -> list[str]:
    """The last ``lines`` lines of an artefact; an empty list if it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - limit_bytes))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    return text.splitlines()[-lines:]
