"""How many workers ``-n auto`` starts: by the cores and memory that this process may use.

Control groups limit both.

Sources: kernel ``Documentation/admin-guide/cgroup-v2.rst`` (``cpu.max``, ``memory.max``, ``memory.current``),
``Documentation/scheduler/sched-bwc.rst`` and ``admin-guide/cgroup-v1/memory.rst`` for v1; ``man 7 cgroups``
for ``/proc/self/cgroup``. A group is limited by each group above it as well. The cores
of its ``cpuset`` are those of ``sched_getaffinity``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import psutil

_MOUNTED = Path("/sys/fs/cgroup")
_OF_PROCESS = Path("/proc/self/cgroup")
#: In v1 "no limit" is a number: the largest multiple of a page that fits. More than this is none.
_NO_LIMIT = 1 << 60
#: Workers a core. Scenarios wait most of the time: for the guest, or for the end of a window.
_WORKERS_PER_CORE = 3
#: Two machines, each with its guest's memory and what QEMU needs itself, and the harness.
_WORKER_BYTES = 900 << 20


def workers() -> int:
    """How many workers ``-n auto`` starts in a run with guests: by cores and memory."""
    return max(1, min(cores() * _WORKERS_PER_CORE, available_bytes() // _WORKER_BYTES))


def cores(mounted: Path = _MOUNTED, of_process: Path = _OF_PROCESS) -> int:
    """How many cores this process can use at the same time: at least one."""
    quotas = [quota for folder in _folders(mounted, of_process, "cpu") if (quota := _quota(folder))]
    return max(1, min(len(os.sched_getaffinity(0)), *(math.floor(quota) for quota in quotas), 1 << 20))


def available_bytes(mounted: Path = _MOUNTED, of_process: Path = _OF_PROCESS) -> int:
    """How many bytes this process can allocate without swapping, and without being killed."""
    left = [room for folder in _folders(mounted, of_process, "memory") if (room := _room(folder)) is not None]
    return max(0, min([psutil.virtual_memory().available, *left]))


def _folders(mounted: Path, of_process: Path, controller: str) -> Iterator[Path]:
    """The control group that limits the number of workers, and each above it."""
    for hierarchy, controllers, group in _groups(of_process):
        if hierarchy == "0":
            top = mounted if (mounted / "cgroup.controllers").exists() else mounted / "unified"
        elif controller in controllers.split(","):
            top = next((f for f in (mounted / controllers, mounted / controller) if f.is_dir()), mounted)
        else:
            continue
        folder = top / group.lstrip("/")
        # In a container the path is the host's, while the group's own files are at the top.
        folder = folder if folder.is_dir() else top
        yield folder
        yield from (above for above in folder.parents if above.is_relative_to(top))


def _groups(of_process: Path) -> list[tuple[str, str, str]]:
    try:
        lines = of_process.read_text().splitlines()
    except OSError:
        return []
    split = (line.split(":", 2) for line in lines)
    return [(words[0], words[1], words[2]) for words in split if len(words) == 3]


def _quota(folder: Path) -> float | None:
    """The cores that a control group allows.

    ``cpu.max`` is "QUOTA PERIOD" or "max PERIOD"; v1 has two files, -1 for none.
    """
    words = (_read(folder / "cpu.max") or "").split()
    if not words:
        words = [_read(folder / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period")]
    if len(words) != 2 or not all(word.isdigit() for word in words) or int(words[1]) == 0:
        return None
    return int(words[0]) / int(words[1])


def _room(folder: Path) -> int | None:
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        most, now = _read(folder / limit) or "", _read(folder / used) or ""
        if most.isdigit() and now.isdigit() and int(most) < _NO_LIMIT:
            return int(most) - int(now) + _reclaimable(folder)
    return None


def _reclaimable(folder: Path) -> int:
    """The memory of a control group that can be reclaimed.

    Inactive page cache counts as used, and is freed when memory is needed (``memory.stat``).
    """
    lines = (_read(folder / "memory.stat") or "").splitlines()
    stat = dict(words for line in lines if len(words := line.split()) == 2)
    found = stat.get("total_inactive_file", stat.get("inactive_file", "0"))
    return int(found) if found.isdigit() else 0


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
