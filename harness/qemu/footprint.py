"""What a QEMU holds at one moment, as far as it can be seen from outside of a stripped binary."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from harness.qemu.blockers import blocked_reasons
from harness.qemu.machine import Machine

#: QOM containers in which a plugged device, or a part of it, has its place.
_CONTAINERS = (
    "/machine/peripheral",
    "/machine/peripheral-anon",
    "/machine/unattached",
    "/objects",
    "/chardevs",
)


def footprint(machine: Machine) -> dict[str, Any]:
    """Threads, fds by what they point at, private memory, QOM children, memory regions, migration blockers.

    ``private_kib`` is dirty memory that no other process shares (``man 5 proc``, ``smaps_rollup``): the
    guest's and the code translated for it, included. Clean private pages are not counted: a page of a file
    turns from private to shared, and back, when another QEMU maps it. ``memory_regions`` are the lines of
    ``info mtree``.
    """
    proc = Path(f"/proc/{machine.pid}")
    fds = _fds(proc)
    children = {path: _children(machine, path) for path in _CONTAINERS}
    return {
        "threads": len(list((proc / "task").iterdir())),
        "fds": sum(fds.values()),
        "fd_targets": dict(sorted(fds.items())),
        "private_kib": _private_kib(proc),
        "qom_children": sum(children.values()),
        "memory_regions": len(machine.qmp.hmp("info mtree", watch=machine.watch).splitlines()),
        "blockers": len(blocked_reasons(machine)),
    }


def _fds(proc: Path) -> Counter[str]:
    found: Counter[str] = Counter()
    for entry in (proc / "fd").iterdir():
        try:
            target = str(entry.readlink())
        except OSError:
            continue  # Closed in the meantime.
        # The inode numbers of sockets and pipes say nothing; nor does that a file was deleted.
        found[re.sub(r":\[\d+\]", "", target)] += 1
    return found


def _private_kib(proc: Path) -> int:
    text = (proc / "smaps_rollup").read_text()
    return sum(int(kib) for kib in re.findall(r"^Private_Dirty:\s+(\d+) kB", text, re.MULTILINE))


def _children(machine: Machine, path: str) -> int:
    listed = machine.qmp.execute("qom-list", {"path": path}, watch=machine.watch)
    return sum(child["type"].startswith("child<") for child in listed)
