"""Heap profiles of a stripped QEMU: Debian's libjemalloc2 preloaded, every allocation sampled.

The profile is written when QEMU quits. It lists, by the stack that allocated it, every object that is still
alive (jemalloc: ``man 3 jemalloc``, ``opt.prof_final``; the format is ``heap_v2`` of gperftools' pprof).
"""

from __future__ import annotations

import bisect
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from harness.errors import SetupError
from harness.qemu.binary import QemuInstall

LIBRARY = "libjemalloc.so.2"

#: An allocation site: its stack, innermost first, as (ELF file, offset in it).
Site = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Live:
    """What is alive of one site."""

    objects: int
    bytes: int


def library(install: QemuInstall) -> Path | None:
    """The library to preload into that QEMU, if its host has it."""
    return next((p for folder in install.libraries if (p := folder / LIBRARY).exists()), None)


def environment(preload: Path, prefix: Path) -> dict[str, str]:
    """Profile every allocation; one file ``PREFIX.PID.….heap`` is written at exit.

    Free pages go back to the kernel at once, so that private memory means memory in use. ``G_SLICE`` makes
    GLib before 2.76 allocate each slice by itself.
    """
    options = (
        f"prof:true,lg_prof_sample:0,prof_final:true,prof_prefix:{prefix},"
        "narenas:1,dirty_decay_ms:0,muzzy_decay_ms:0"
    )
    return {"LD_PRELOAD": str(preload), "MALLOC_CONF": options, "G_SLICE": "always-malloc"}


def find_profile(prefix: Path) -> Path:
    """The profile that a QEMU wrote.

    :raises SetupError: when it wrote none: it did not quit, or its libjemalloc cannot profile.
    """
    found = sorted(prefix.parent.glob(f"{prefix.name}.*.heap"))
    if not found:
        raise SetupError(
            f"no heap profile {prefix}.*.heap: QEMU did not quit, or {LIBRARY} was built without profiling"
        )
    return found[-1]


def read_profile(path: Path) -> dict[Site, Live]:
    """Read a profile; addresses become offsets in their files, so that two runs can be compared.

    :raises SetupError: when it is no such profile.
    """
    text = path.read_text(errors="replace")
    heap, found, mapped = text.partition("MAPPED_LIBRARIES:")
    if not text.startswith("heap_v2/") or not found:
        raise SetupError(f"{path} is no heap profile of jemalloc")
    place = _Mapping(mapped)
    live: dict[Site, Live] = defaultdict(lambda: Live(0, 0))
    for match in re.finditer(r"^@ (.*)\n\s+t\*: (\d+): (\d+)", heap, re.MULTILINE):
        site = tuple(place.of(int(address, 16)) for address in match[1].split())
        before = live[site]
        live[site] = Live(before.objects + int(match[2]), before.bytes + int(match[3]))
    return dict(live)


class _Mapping:
    """From addresses to files, by ``/proc/PID/maps``."""

    def __init__(self, maps: str) -> None:
        pattern = r"^([0-9a-f]+)-([0-9a-f]+) \S+ ([0-9a-f]+) \S+ \d+ *(.*)$"
        self._segments = sorted(
            (int(start, 16), int(end, 16), int(offset, 16), path)
            for start, end, offset, path in re.findall(pattern, maps, re.MULTILINE)
        )
        self._starts = [segment[0] for segment in self._segments]

    def of(self, address: int) -> tuple[str, int]:
        index = bisect.bisect(self._starts, address) - 1
        if index >= 0:
            start, end, offset, path = self._segments[index]
            if start <= address < end:
                return path, address - start + offset
        return "?", 0
