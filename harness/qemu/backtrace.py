"""gdb's backtrace of a QEMU that crashed (from its core file) or that hangs (from the process).

An unpacked release is started by its own dynamic loader, which gdb takes for the program. Without QEMU's file
gdb can neither name QEMU's functions nor unwind through them. The file and the address where it is mapped are
read from the core file (``NT_FILE``, see kernel ``fs/binfmt_elf.c``, ``fill_files_note``) or from
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

#: Seconds. The second is for a gdb that first downloads debug information from a server.
_TIMEOUT_S, _FETCHING_TIMEOUT_S = 60, 180
#: The environment variable with the servers for debug information (``man 8 debuginfod``).
_SERVERS = "DEBUGINFOD_URLS"
_FRAMES = 40
#: A frame without a function or library name.
_UNNAMED_FRAME = re.compile(r"^#\d+ +0x([0-9a-f]+) in \?\? \(\)$", re.MULTILINE)
_CORE_PATTERN = Path("/proc/sys/kernel/core_pattern")
#: gdb commands. The backtrace of the relevant thread comes first, because checkers quote the beginning.
_CRASHED = (f"backtrace {_FRAMES}",)
_HANGS = ("thread 1", f"backtrace {_FRAMES}")
_ALL = ("info threads", f"thread apply all backtrace {_FRAMES}")


@dataclass(frozen=True)
class _Mapping:
    """A part of a file that is mapped in a process, from address ``start`` to ``end``."""

    start: int
    end: int
    path: str


def collect(install: QemuInstall, folder: Path, pid: int, number: int, to: Path) -> bool:
    """Write the backtraces of a QEMU that was killed by a signal to ``to``, and remove its core file.

    The backtrace of the thread that crashed comes first. If there is no core file or no gdb, ``to`` has the
    reason.

    :param folder: QEMU's working directory. :param pid: its process id. :param number: the signal.
    :returns: whether there is a backtrace.
    """
    cores = _cores(folder, pid)
    try:
        if number == signal.SIGKILL:
            return _no_backtrace(
                to, "SIGKILL leaves no core file; the kernel sends it when memory is short (see dmesg)"
            )
        if not cores:
            where = f"no core file in {folder} (kernel.core_pattern is {_core_pattern()!r})"
            return _no_backtrace(to, where)
        core = cores[-1]
        return _run(install, _mappings_of_core(core), ("-core", str(core)), (*_CRASHED, *_ALL), to)
    finally:
        for each in cores:
            each.unlink(missing_ok=True)


def attach(install: QemuInstall, pid: int, to: Path) -> bool:
    """Write the backtraces of a running QEMU, such as one that hangs, to ``to``; its main thread comes first.

    gdb stops the process meanwhile. If gdb may not trace it (``man 2 ptrace``), ``to`` has the reason.

    :returns: whether there is a backtrace.
    """
    return _run(install, _mappings_of(pid), ("-p", str(pid)), (*_HANGS, *_ALL, "detach"), to)


def _no_backtrace(to: Path, why: str) -> bool:
    to.write_text(f"no backtrace: {why}\n")
    return False


def _core_pattern() -> str:
    try:
        return _CORE_PATTERN.read_text().strip()
    except OSError:
        return "core"


def _cores(folder: Path, pid: int) -> list[Path]:
    """The core files of process ``pid``, whose working directory was ``folder`` (``man 5 core``).

    If core files are written to another folder, only those with the pid in their name are returned, as it may
    have core files of other processes.
    """
    pattern = _core_pattern()
    if pattern.startswith("|"):
        return []
    place = folder / Path(pattern).parent
    name = Path(pattern).name.replace("%p", str(pid))
    glob = re.sub(r"%.", "*", name) + "*"  # The kernel may add the pid (kernel.core_uses_pid).
    shared = Path(pattern).is_absolute()
    found = sorted(place.glob(glob)) if place.is_dir() else []
    return [path for path in found if not shared or str(pid) in re.findall(r"\d+", path.name)]


def _mappings_of(pid: int) -> list[_Mapping]:
    """The mapped files of a process, for a backtrace, from ``/proc/PID/maps``.

    Its fields are address, permissions, offset, device, inode, path (``man 5 proc``).
    """
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
    """The mapped files of a process that left a core file; empty if the core file cannot be read."""
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
    """Run gdb with ``commands`` and write its output to ``to``, after notes of the harness."""
    gdb = shutil.which("gdb")
    if gdb is None:
        return _no_backtrace(to, "no gdb on PATH")
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
    text, notes = _gdb_output(gdb, argv)
    if not re.search(r"^#0 ", text, re.MULTILINE):
        to.write_text(f"no backtrace: {'; '.join(notes) or 'gdb printed none'}\n{text}")
        return False
    if any(m.start <= int(address, 16) < m.end for address in _UNNAMED_FRAME.findall(text) for m in own):
        notes.append(_advice_on_symbols(install))
    to.write_text("".join(f"note: {note}\n" for note in notes) + text)
    return True


def _words(option: str, commands: tuple[str, ...]) -> list[str]:
    return [word for command in commands for word in (option, command)]


def _gdb_output(gdb: str, argv: list[str]) -> tuple[str, list[str]]:
    """gdb's output and notes on problems. Debug information is downloaded only if a server is configured."""
    notes = []
    if os.environ.get(_SERVERS):
        fetching = [gdb, "-nx", "-batch", "-iex", "set debuginfod enabled on", *argv]
        text, complaint = _output(fetching, _FETCHING_TIMEOUT_S)
        if not complaint:
            return text, []
        notes.append(f"{complaint} with debug information from {_SERVERS}; this backtrace is without it")
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


def _advice_on_symbols(install: QemuInstall) -> str:
    flavours = [f"--qemu {name}" for name in install.unstripped]
    if flavours:
        return (
            f"this QEMU is stripped, so function names are missing; {' or '.join(flavours)} has all of them"
        )
    return (
        "this QEMU is stripped, so function names are missing; "
        "a flavour that is built from source, such as 7.2-src or 7.2-asan, has all of them"
    )
