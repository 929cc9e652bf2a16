"""Heap profiles of a stripped QEMU: Debian's libjemalloc2 is preloaded, and every allocation is sampled.

A profile lists every live object by the stack that allocated it (in the format ``heap_v2`` of gperftools'
pprof). jemalloc writes a profile whenever a given number of bytes has been allocated (``man 3 jemalloc``,
``opt.lg_prof_interval``). :func:`profile` makes QEMU allocate that many bytes at once to get one.
"""

from __future__ import annotations

import bisect
import contextlib
import os
import re
import subprocess
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from harness.errors import QemuError, SetupError
from harness.qemu.binary import HEAP_LIBRARY, QemuInstall
from harness.qemu.machine import Machine

#: The binary logarithm of the number of bytes that are allocated between two profiles.
_LG_INTERVAL = 27
_TRIGGER = "harness-heap-profile"
_TRIAL_TIMEOUT_S = 60

#: An allocation site: its stack, innermost first, as (ELF file, offset in it).
Site = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Live:
    """The live objects of one allocation site: their number, and their size in bytes."""

    objects: int
    bytes: int


def library(install: QemuInstall) -> Path:
    """The heap library to preload into that QEMU: from its own folders, else one of ``install.profilers``.

    Each candidate is tried once a process: QEMU is started with it and has to write a profile.

    :raises NotProfiled: with the reason why the heap cannot be profiled.
    """
    if install.sanitized:
        raise NotProfiled("this QEMU uses AddressSanitizer's allocator, which jemalloc cannot profile")
    if not install.libraries:
        raise NotProfiled("a script starts this QEMU, so the libraries that it can preload are not known")
    found = [path for folder in install.libraries if (path := folder / HEAP_LIBRARY).exists()]
    refusals = []
    for candidate in dict.fromkeys([*found, *install.profilers]):
        why = _refusal(install, candidate)
        if why is None:
            return candidate
        refusals.append(f"{candidate}: {why}")
    folders = ", ".join(str(folder) for folder in install.libraries)
    raise NotFound(
        f"no {HEAP_LIBRARY} for QEMU {install.name} (apt-get install libjemalloc2): none in {folders}, "
        "and none was provisioned"
        if not refusals
        else f"{HEAP_LIBRARY} does not work in QEMU {install.name}: {'; '.join(refusals)}"
    )


class NotProfiled(SetupError):
    """The heap of a QEMU cannot be profiled; the message is the reason."""


class NotFound(NotProfiled):
    """No library that was found works; one that is provisioned may."""


_REFUSALS: dict[tuple[str, Path], str | None] = {}


def _refusal(install: QemuInstall, candidate: Path) -> str | None:
    """Why ``candidate`` does not profile the heap of that QEMU; ``None`` when it does."""
    key = (install.key, candidate)
    if key not in _REFUSALS:
        with tempfile.TemporaryDirectory() as folder:
            _REFUSALS[key] = _tried(install, candidate, Path(folder) / "tried")
    return _REFUSALS[key]


def _tried(install: QemuInstall, candidate: Path, prefix: Path) -> str | None:
    added = environment(candidate, prefix, at_exit=True)
    try:
        done = subprocess.run(
            install.argv("--version"),
            env={**os.environ, **install.environment, **added},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TRIAL_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        return f"--version: {exc}"
    printed = (done.stderr.decode(errors="replace").strip().splitlines() or ["nothing"])[0]
    try:
        if any(live.objects for path in _profiles(prefix) for live in read_profile(path).values()):
            return None
    except SetupError as exc:
        return str(exc)
    return f"QEMU wrote no profile; exit status {done.returncode}, it printed: {printed}"


def environment(preload: Path, prefix: Path, *, at_exit: bool = False) -> dict[str, str]:
    """The environment in which QEMU's heap is profiled: each allocation, into ``PREFIX.PID.SEQ.iSEQ.heap``.

    Free pages return to the kernel within 10 ms, so that private memory means memory in use. Returning them
    at once would take a third of QEMU's time; pages that are never returned are never merged, and memory
    grows. ``G_SLICE`` makes GLib before 2.76 allocate each slice separately.

    :param at_exit: write one more profile, ``PREFIX.PID.SEQ.f.heap``, when the process ends.
    """
    options = (
        f"prof:true,lg_prof_sample:0,lg_prof_interval:{_LG_INTERVAL},prof_prefix:{prefix},"
        f"narenas:1,dirty_decay_ms:10,muzzy_decay_ms:0,prof_final:{str(at_exit).lower()}"
    )
    return {"LD_PRELOAD": str(preload), "MALLOC_CONF": options, "G_SLICE": "always-malloc"}


def profile(machine: Machine, prefix: Path) -> Path:
    """Make a QEMU that was started with :func:`environment` write a heap profile, and return its path.

    First, a ``device_add`` that QEMU refuses frees everything that waits for an RCU grace period (QEMU:
    ``system/qdev-monitor.c``, ``qmp_device_add``, ``drain_call_rcu``). Then one large allocation, the buffer
    of a ``ringbuf`` character device that is never used, makes jemalloc write the profile
    (``chardev/char-ringbuf.c``, ``qemu_chr_open_ringbuf``).

    :raises SetupError: when no profile was written: this libjemalloc was built without profiling.
    """
    with contextlib.suppress(QemuError):
        machine.qmp.execute("device_add", {"driver": _TRIGGER}, watch=machine.watch)
    before = set(_profiles(prefix))
    backend = {"type": "ringbuf", "data": {"size": 1 << _LG_INTERVAL}}
    machine.qmp.execute("chardev-add", {"id": _TRIGGER, "backend": backend}, watch=machine.watch)
    machine.qmp.execute("chardev-remove", {"id": _TRIGGER}, watch=machine.watch)
    written = set(_profiles(prefix)) - before
    if not written:
        raise SetupError(f"no heap profile {prefix}.*.heap: {HEAP_LIBRARY} was built without profiling")
    return max(written, key=lambda path: int(path.name.split(".")[-3]))


def _profiles(prefix: Path) -> list[Path]:
    return list(prefix.parent.glob(f"{prefix.name}.*.heap"))


def read_profile(path: Path) -> dict[Site, Live]:
    """Read a heap profile; addresses become offsets in ELF files, so that two runs can be compared.

    :raises SetupError: when the file is no heap profile of jemalloc.
    """
    text = path.read_text(errors="replace")
    heap, found, mapped = text.partition("MAPPED_LIBRARIES:")
    if not text.startswith("heap_v2/") or not found:
        raise SetupError(f"{path} is no heap profile of jemalloc")
    place = cache(_Mapping(mapped).of)
    live: dict[Site, Live] = defaultdict(lambda: Live(0, 0))
    for match in re.finditer(r"^@ (.*)\n\s+t\*: (\d+): (\d+)", heap, re.MULTILINE):
        site = tuple(map(place, match[1].split()))
        before = live[site]
        live[site] = Live(before.objects + int(match[2]), before.bytes + int(match[3]))
    return dict(live)


class _Mapping:
    """Translates addresses to files and offsets, by ``/proc/PID/maps``."""

    def __init__(self, maps: str) -> None:
        pattern = r"^([0-9a-f]+)-([0-9a-f]+) \S+ ([0-9a-f]+) \S+ \d+ *(.*)$"
        self._segments = sorted(
            (int(start, 16), int(end, 16), int(offset, 16), path)
            for start, end, offset, path in re.findall(pattern, maps, re.MULTILINE)
        )
        self._starts = [segment[0] for segment in self._segments]

    def of(self, hexadecimal: str) -> tuple[str, int]:
        address = int(hexadecimal, 16)
        index = bisect.bisect(self._starts, address) - 1
        if index >= 0:
            start, end, offset, path = self._segments[index]
            if start <= address < end:
                return path, address - start + offset
        return "?", 0
