"""The circumstances of a run, for its summary and its history."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib import metadata

from harness.layout import checkout
from harness.qemu.identity import identity
from harness.report.summary import About, OfCell, OfQemu
from harness.testbed import Cell

_DISTRIBUTION = "virtio-9p-harness"
_TIMEOUT_S = 30


def now() -> str:
    """The time of a run's circumstances: ISO 8601 in UTC, with microseconds.

    Texts in this form sort as times do.
    """
    return at(datetime.now(UTC).timestamp())


def at(timestamp: float) -> str:
    """A POSIX timestamp in the form of a run's circumstances."""
    return datetime.fromtimestamp(timestamp, UTC).isoformat(timespec="microseconds")


def load() -> float:
    """The load average of one minute of a run's host, one of its circumstances."""
    return round(os.getloadavg()[0], 2)


def about(options: Sequence[str], cells: Iterable[Cell] = ()) -> About:
    """What can be said of a run's circumstances when it begins.

    :param options: what the user gave. :param cells: what it runs on.
    """
    listed = list(cells)
    commit, dirty = _commit()
    return About(
        begun=now(),
        host=platform.node(),
        cores=len(os.sched_getaffinity(0)),
        load_begin=load(),
        harness_version=_version(),
        harness_commit=commit,
        harness_dirty=dirty,
        options=tuple(options),
        qemus=_qemus(listed),
        cells=tuple(_of_cell(cell) for cell in listed),
    )


def _qemus(cells: Iterable[Cell]) -> tuple[OfQemu, ...]:
    installed = {cell.qemu.name: cell for cell in cells}
    return tuple(_of_qemu(cell) for cell in installed.values())


def _of_qemu(cell: Cell) -> OfQemu:
    found = identity(cell.qemu, cell.capabilities)
    return OfQemu(
        name=cell.qemu.name,
        version=cell.capabilities.version_text,
        package_version=found.package_version,
        build_id=found.build_id,
        git_describe=found.git_describe,
        path=str(cell.qemu.binary),
    )


def _of_cell(cell: Cell) -> OfCell:
    return OfCell(
        qemu=cell.qemu.name,
        arch=cell.machine_type.architecture.name,
        kernel=cell.image.name,
        kernel_version=cell.image.kernel_version,
        machine=cell.machine_type.name,
        accelerator=cell.accel.name,
    )


def _version() -> str:
    try:
        return metadata.version(_DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "unknown"


def _commit() -> tuple[str | None, bool]:
    """The harness's commit, of a run's circumstances, and whether tracked files differ from it."""
    root = checkout()
    if root is None:
        return None, False
    commit, changed = (
        _git(str(root), *arguments)
        for arguments in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
    )
    return (commit, bool(changed)) if commit else (None, False)


def _git(folder: str, *arguments: str) -> str:
    argv = ["git", "-C", folder, *arguments]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
