"""What a QEMU process holds at one moment; all of it can be seen without symbols."""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

from harness.errors import GuestError
from harness.qemu.blockers import blocked_reasons
from harness.qemu.machine import Machine
from harness.qemu.process import process, reading_proc
from harness.qemu.spec import MachineSpec

#: The first line of each mapping, and its private dirty memory in KiB.
_MAPPING = re.compile(r"^([0-9a-f]+-[0-9a-f]+ .*)\n(?:[A-Z].*\n)*?Private_Dirty: +(\d+) kB", re.MULTILINE)
_HEADER = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ \d+ *(.*)")
#: The guest's memory in ``memory-backend-memfd`` (QEMU: ``backends/hostmem-memfd.c``).
_SHARED_MEMORY = "/memfd:memory-backend-memfd"
#: The QOM containers that hold plugged devices and their parts.
_CONTAINERS = (
    "/machine/peripheral",
    "/machine/peripheral-anon",
    "/machine/unattached",
    "/objects",
    "/chardevs",
)


def handles(pid: int) -> dict[str, Any]:
    """Threads and fds of QEMU's process, fds also by their target; cheap enough to call after each cycle."""
    proc = Path(f"/proc/{pid}")
    threads = sorted(int(task.name) for task in (proc / "task").iterdir())
    fds = _fds(proc)
    return {
        "threads": len(threads),
        "thread_ids": threads,
        "fds": sum(fds.values()),
        "fd_targets": dict(sorted(fds.items())),
    }


def of_daemon(pid: int) -> dict[str, Any]:
    """Fds and threads of a device's daemon, and its private dirty memory in KiB.

    The guest's memory is not counted: it maps QEMU's file, shared (``man 5 proc_pid_maps``).

    :raises GuestError: when the daemon has ended.
    """
    try:
        smaps, held = Path(f"/proc/{pid}/smaps").read_text(), handles(pid)
    except OSError as exc:
        raise GuestError(f"the daemon, process {pid}, has ended") from exc
    mappings = ((_HEADER.match(header), int(kib)) for header, kib in _MAPPING.findall(smaps))
    private = sum(kib for header, kib in mappings if header is None or not header[3].endswith("s"))
    return {"daemon_fds": held["fds"], "daemon_threads": held["threads"], "daemon_kib": private}


def thread_name(pid: int, thread: int) -> str:
    """The name of one of QEMU's threads in :func:`handles`; empty when it has just ended."""
    try:
        return Path(f"/proc/{pid}/task/{thread}/comm").read_text().strip()
    except OSError:
        return ""


def open_fds(machine: Machine) -> int:
    """The number of fds that QEMU has open.

    :raises HarnessError: the root cause, when QEMU has ended.
    """
    with reading_proc(machine):
        return int(handles(machine.pid)["fds"])


def wait_open_fds(machine: Machine, count: int) -> None:
    """Wait until QEMU has exactly ``count`` fds open.

    An eventfd of a device that was removed is closed after an RCU grace period (QEMU: ``util/rcu.c``), so the
    number may fall a moment after the unplug.

    :raises WaitTimeout: after 10 seconds.
    """
    machine.wait_until(lambda: open_fds(machine) == count, what=f"{count} open files in QEMU", timeout_s=10.0)


def footprint(machine: Machine, pid: int) -> dict[str, Any]:
    """QEMU's footprint: QOM children, memory regions, migration blockers, private memory.

    ``private_kib`` is dirty memory that no other process shares (``man 5 proc``, ``smaps``), without the
    guest's own memory and the code translated for it. Clean private pages are not counted: a page of a file
    turns from private to shared, and back, when another QEMU maps it. ``memory_regions`` are the lines of
    ``info mtree``.

    :param pid: of QEMU itself (:func:`~harness.qemu.process.process`).
    """
    # Memory is read last: these commands take longer than the heap keeps free pages.
    found = counts(machine)
    with reading_proc(machine):
        smaps = Path(f"/proc/{pid}/smaps").read_text()
    return {"private_kib": private_kib(smaps, machine.spec), **found}


def counts(machine: Machine) -> dict[str, int]:
    """QEMU's footprint without its memory: QOM children, memory regions and migration blockers."""
    children = [_children(machine, path) for path in _CONTAINERS]
    regions = len(machine.qmp.hmp("info mtree", watch=machine.watch).splitlines())
    blockers = len(blocked_reasons(machine))
    return {"qom_children": sum(children), "memory_regions": regions, "blockers": blockers}


def open_inside(machine: Machine, folder: Path) -> list[str]:
    """The files and folders inside ``folder`` that QEMU has open, without the folder itself."""
    inside, found = f"{folder.resolve()}/", []
    with reading_proc(machine):
        entries = list(Path(f"/proc/{process(machine)}/fd").iterdir())
    for entry in entries:
        with contextlib.suppress(FileNotFoundError):  # QEMU has closed it meanwhile.
            found.append(str(entry.readlink()))
    return [target for target in found if target.startswith(inside)]


def _fds(proc: Path) -> Counter[str]:
    found: Counter[str] = Counter()
    folder = str(proc / "fd")
    # Called after each step of a program: pathlib takes four times as long.
    for name in os.listdir(folder):  # noqa: PTH208
        try:
            target = os.readlink(f"{folder}/{name}")  # noqa: PTH115
        except OSError:
            continue  # Closed in the meantime.
        # The inode numbers of sockets and pipes differ each time and are left out.
        found[re.sub(r":\[\d+\]", "", target)] += 1
    return found


def private_kib(smaps: str, spec: MachineSpec) -> int:
    """The private dirty memory in ``smaps``, in KiB, without the guest's memory and its translated code."""
    # smaps has the file's real path.
    memory = None if spec.memory_file is None else str(spec.memory_file.path.resolve())
    size = spec.memory_mib << 20
    mappings = ((_HEADER.match(header), int(kib)) for header, kib in _MAPPING.findall(smaps))
    return sum(kib for header, kib in mappings if header is None or not _is_guests(header, memory, size))


def _is_guests(header: re.Match[str], memory: str | None, size: int) -> bool:
    start, end, access, path = header.groups()
    if memory is not None and path.removesuffix(" (deleted)") == memory:
        return True
    if path.startswith(_SHARED_MEMORY):
        return True
    if not path and int(end, 16) - int(start, 16) == size:
        return True
    # The only executable mapping without a file is TCG's buffer (QEMU: tcg/region.c).
    return "x" in access and not path


def _children(machine: Machine, path: str) -> int:
    parent, _, name = path.rpartition("/")
    # QEMU 2.4 creates a container with its first child; a qom-list before that leaks its error object.
    if not parent and all(child["name"] != name for child in _listed(machine, "/")):
        return 0
    return sum(child["type"].startswith("child<") for child in _listed(machine, path))


def _listed(machine: Machine, path: str) -> list[dict[str, str]]:
    listed: list[dict[str, str]] = machine.qmp.execute("qom-list", {"path": path}, watch=machine.watch)
    return listed
