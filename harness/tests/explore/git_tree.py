"""Small git trees with the files by which a QEMU is recognised, and a compiler that only copies a file."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from harness.provision.build_root import ScriptFailed
from harness.qemu.binary import PROGRAM

#: The commits do not depend on who runs the tests, nor on their configuration.
_ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("GIT_")},
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_SYSTEM": os.devnull,
    "GIT_AUTHOR_NAME": "Ada",
    "GIT_AUTHOR_EMAIL": "ada@example.org",
    "GIT_COMMITTER_NAME": "Ada",
    "GIT_COMMITTER_EMAIL": "ada@example.org",
    "GIT_AUTHOR_DATE": "2022-03-04T05:06:07Z",
    "GIT_COMMITTER_DATE": "2022-03-04T05:06:07Z",
}
FILES = {
    "VERSION": "7.2.0\n",
    "qemu-options.hx": "",
    "hw/i386/pc.c": "",
    "hw/9pfs/virtio-9p-device.c": "int tag = 1;\n",
    "configure": "--target-list --disable-werror --enable-virtfs\n",
}


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], env=_ENVIRONMENT, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def commit(folder: Path, subject: str, **files: str) -> str:
    """Write files (``/`` in a name is written ``__``) and commit them; returns the commit's id."""
    return commit_files(folder, subject, {name.replace("__", "/"): text for name, text in files.items()})


def commit_files(folder: Path, subject: str, files: dict[str, str]) -> str:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    if files:
        git(folder, "add", "--", *files)  # Not all: looking at each file of QEMU takes seconds.
    git(folder, "commit", "--quiet", "--allow-empty", "-m", subject)
    return git(folder, "rev-parse", "HEAD")


def make(folder: Path) -> str:
    """An empty QEMU with one commit; returns its id."""
    folder.mkdir(parents=True)
    git(folder, "init", "--quiet", "--template=", "--initial-branch=master")
    return commit_files(folder, "start", FILES)


def pack(folder: Path) -> None:
    """Put all objects into one file: a tree of which many copies are made."""
    git(folder, "repack", "-a", "-d", "--quiet")


class Copies:
    """A compiler whose QEMU is the source of the device, and which fails as real ones do."""

    name = "copies"
    options: tuple[str, ...] = ("--enable-virtfs",)

    def __init__(self, work: Path) -> None:
        self._work = work
        self.runs: list[str] = []
        #: The options that configure does not know; it names one at a time.
        self.unknown: set[str] = set()
        self.configured: list[str] = []
        #: A folder without which configure fails.
        self.lacks = ""

    def run(self, script: str, *, what: str) -> str:
        self.runs.append(what)
        build, source = self._work / "build", self._work / "source"
        text = (source / "hw/9pfs/virtio-9p-device.c").read_text()
        said = ""
        if what == "configure":
            options = script.split()[4:]
            unknown = [option for option in options if option.partition("=")[0] in self.unknown]
            if self.lacks and not (source / self.lacks / "file").exists():
                said = "../source/ui/meson.build:79:0: ERROR: Program 'keymap-gen' not found"
            elif unknown:
                said = f"ERROR: unknown option {unknown[0]}\nTry configure --help"
            else:
                self.configured = options
                (build / "build.ninja").touch()
        elif "syntax" in text:
            said = "[7/9]\n../source/hw/9pfs/virtio-9p-device.c:1:2: error: expected ';'\nninja: stopped"
        elif "full" in text:
            said = "fatal error: writing x.o: No space left on device"
        elif "stale" in text and (build / PROGRAM).exists():
            said = "ninja: error: 'gone.h', needed by 'x.o', missing and no known rule to make it"
        else:
            (build / PROGRAM).write_text(text)
        (self._work / f"{what}.log").write_text(said)
        if said:
            raise ScriptFailed(f"{what} failed: {said.splitlines()[-1]}")
        return said

    def keep(self, binary: Path, into: Path) -> Path:
        kept = into / PROGRAM
        kept.write_text(binary.read_text())
        return kept
