"""gdb's backtrace of a QEMU: of one that crashed, from its core file, or of one that hangs, from the process.

An unpacked release is started by its own dynamic loader, which gdb then takes for the whole program: without
QEMU's file gdb can neither name its functions nor unwind through them. Which file that is, and where it is
mapped, is read from the core file (``NT_FILE``, see kernel ``fs/binfmt_elf.c``, ``fill_files_note``) or from
``/proc/PID/maps``.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import NoteSegment

from harness.qemu.binary import PROGRAM, QemuInstall

#: Seconds. The second is for a gdb that fetches debug information from a server first.
_TIMEOUT_S, _FETCHING_TIMEOUT_S = 60, 180
#: Set by users who have a server for debug information (``man 8 debuginfod``).
_SERVERS = "DEBUGINFOD_URLS"
_FRAMES = 40
#: A frame for which gdb knows neither a function nor a library.
_NAMELESS = re.compile(r"^#\d+ +0x([0-9a-f]+) in \?\? \(\)$", re.MULTILINE)
_CORE_PATTERN = Path("/proc/sys/kernel/core_pattern")
#: The backtrace of the thread that matters comes before those of all: checkers quote its beginning.
_CRASHED = (f"backtrace {_FRAMES}",)
_HANGS = ("thread 1", f"backtrace {_FRAMES}")
_ALL = ("info threads", f"thread apply all backtrace {_FRAMES}")


@dataclass(frozen=True)
class _Mapping:
    """A part of a file in a process's memory, from address ``start`` to ``end``."""

    start: int
    end: int
    path: str


def collect(install: QemuInstall, folder: Path, pid: int, number: int, to: Path) -> bool:
    """Write the backtraces of a QEMU that a signal ended to ``to``, and remove its core file.

    The first is that of the thread that crashed. Without a core file, or without gdb, ``to`` says so.

    :param folder: the working directory that it had. :param number: the signal.
    :returns: whether there is a backtrace.
    """
    cores = _cores(folder, pid)
    try:
        if number == signal.SIGKILL:
            return _none(
                to, "SIGKILL leaves no core file; the kernel sends it when memory is short (see dmesg)"
            )
        if not cores:
            where = f"no core file in {folder} (kernel.core_pattern is {_core_pattern()!r})"
            return _none(to, where)
        core = cores[-1]
        return _run(install, _mappings_of_core(core), ("-core", str(core)), (*_CRASHED, *_ALL), to)
    finally:
        for each in cores:
            each.unlink(missing_ok=True)


def attach(install: QemuInstall, pid: int, to: Path) -> bool:
    """The same of a QEMU that runs, and does not do what it should; its main thread comes first.

    The process is stopped meanwhile. Where gdb must not trace it, ``to`` says so (``man 2 ptrace``).
    """
    return _run(install, _mappings_of(pid), ("-p", str(pid)), (*_HANGS, *_ALL, "detach"), to)


def _none(to: Path, why: str) -> bool:
    to.write_text(f"no backtrace: {why}\n")
    return False


def _core_pattern() -> str:
    try:
        return _CORE_PATTERN.read_text().strip()
    except OSError:
        return "core"


def _cores(folder: Path, pid: int) -> list[Path]:
    """The core files of process ``pid``, which worked in ``folder`` (``man 5 core``).

    A folder that is not the machine's own may have other processes' cores: only a file with the pid in its
    name is taken from there.
    """
    pattern = _core_pattern()
    if pattern.startswith("|"):
        return []
    place = folder / Path(pattern).parent
    name = Path(pattern).name.replace("%p", str(pid))
    glob = re.sub(r"%.", "*", name) + "*"  # The kernel may add the pid (kernel.core_uses_pid).
    ours = Path(pattern).is_absolute()
    found = sorted(place.glob(glob)) if place.is_dir() else []
    return [path for path in found if not ours or str(pid) in re.findall(r"\d+", path.name)]


def _mappings_of(pid: int) -> list[_Mapping]:
    """What is in ``/proc/PID/maps`` (``man 5 proc``): address, permissions, offset, device, inode, path."""
    found = []
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        words = line.split(maxsplit=5)
        if len(words) == 6 and words[5].startswith("/"):
            start, end = (int(word, 16) for word in words[0].split("-"))
            found.append(_Mapping(start, end, words[5]))
    return found


def _mappings_of_core(core: Path) -> list[_Mapping]:
    """The same of a process that left a core file; nothing for one that cannot be read."""
    found = []
    try:
        with core.open("rb") as file:
            for segment in ELFFile(file).iter_segments("PT_NOTE"):
                assert isinstance(segment, NoteSegment)
                for note in segment.iter_notes():
                    if note["n_type"] == "NT_FILE":
                        places, names = note["n_desc"]["Elf_Nt_File_Entry"], note["n_desc"]["filename"]
                        found += [
                            _Mapping(place["vm_start"], place["vm_end"], os.fsdecode(name))
                            for place, name in zip(places, names, strict=True)
                        ]
    except (OSError, ELFError, KeyError, ValueError):
        return []
    return found


def _run(
    install: QemuInstall,
    mapped: list[_Mapping],
    subject: tuple[str, ...],
    commands: tuple[str, ...],
    to: Path,
) -> bool:
    """Let gdb write what ``commands`` print to ``to``, after lines of ours."""
    gdb = shutil.which("gdb")
    if gdb is None:
        return _none(to, "no gdb on PATH")
    own = [mapping for mapping in mapped if mapping.path == os.path.realpath(install.binary)]
    program = os.path.realpath(install.command[0])
    if not any(mapping.path == program for mapping in mapped):  # A script started it.
        own = [mapping for mapping in mapped if PROGRAM in Path(mapping.path).name]
        program = own[0].path if own else ""
    adding = []
    if own and program != own[0].path:
        adding = [f"add-symbol-file {own[0].path} -o {own[0].start:#x}"]
    argv = [*_words("-ex", ("set pagination off", "set confirm off", *adding, *commands)), *subject]
    if program:
        argv += ["-se", program]
    text, notes = _said(gdb, argv)
    if not re.search(r"^#0 ", text, re.MULTILINE):
        to.write_text(f"no backtrace: {'; '.join(notes) or 'gdb gave none'}\n{text}")
        return False
    if any(m.start <= int(address, 16) < m.end for address in _NAMELESS.findall(text) for m in own):
        notes.append(_who_gives_names(install))
    to.write_text("".join(f"note: {note}\n" for note in notes) + text)
    return True


def _words(option: str, commands: tuple[str, ...]) -> list[str]:
    return [word for command in commands for word in (option, command)]


def _said(gdb: str, argv: list[str]) -> tuple[str, list[str]]:
    """gdb's output, and what went wrong. Debug information is fetched only for those who have a server."""
    notes = []
    if os.environ.get(_SERVERS):
        fetching = [gdb, "-nx", "-batch", "-iex", "set debuginfod enabled on", *argv]
        text, complaint = _output(fetching, _FETCHING_TIMEOUT_S)
        if not complaint:
            return text, []
        notes.append(f"{complaint}, with debug information from {_SERVERS}; this is without")
    text, complaint = _output([gdb, "-nx", "-batch", *argv], _TIMEOUT_S, {_SERVERS: ""})
    return text, [*notes, *filter(None, [complaint])]


def _output(
    argv: list[str], timeout_s: float, environment: Mapping[str, str] = MappingProxyType({})
) -> tuple[str, str]:
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout_s,
            check=False,
            env={**os.environ, **environment},
        )
    except subprocess.TimeoutExpired as exc:
        return _text(exc.stdout), f"gdb did not end within {timeout_s:.0f} s"
    except OSError as exc:
        return "", f"gdb cannot be executed: {exc.strerror}"
    return _text(done.stdout), ""


def _text(output: bytes | None) -> str:
    return (output or b"").decode("utf-8", "replace")


def _who_gives_names(install: QemuInstall) -> str:
    flavours = [f"--qemu {name}" for name in install.unstripped]
    if flavours:
        return f"this QEMU is stripped, so functions lack names; {' or '.join(flavours)} gives all of them"
    return (
        "this QEMU is stripped, so functions lack names; "
        "a flavour that is built from source, like 7.2-src or 7.2-asan, gives all of them"
    )
