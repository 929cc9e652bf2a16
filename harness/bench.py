"""What things take, measured side by side: every contestant once a round, so that a noisy host hits them all.

Absolute times say as much about the host as about the harness; the ratios are what to compare.
"""

from __future__ import annotations

import itertools
import shutil
import socket
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import paramiko

from harness.actions.hotplug import Hotplug
from harness.artifacts import Artifacts
from harness.deadline import Deadline, wait_until
from harness.errors import SetupError
from harness.guest.guest import BOOT_TIMEOUT_S, Guest
from harness.guest.lab import Cell, Lab
from harness.qemu.argv import MachinePaths, render
from harness.reaper import RunFolder

#: Returns the seconds that one turn took.
Turn = Callable[[], float]
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Row:
    """One contestant's times in seconds; ``ratio`` is the first contestant's median over this one's."""

    name: str
    rounds: int
    median_s: float
    min_s: float
    max_s: float
    ratio: float


def race(contestants: Mapping[str, Turn], rounds: int, report: Callable[[str], None]) -> list[Row]:
    """Let each contestant take its turn, ``rounds`` times in a row of all.

    :param report: told of each round.
    :raises HarnessError: when a turn fails; there is no result then.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(1, rounds + 1):
        report(f"round {number} of {rounds} …")
        for name, turn in contestants.items():
            times[name].append(turn())
    return rows(times)


def rows(times: Mapping[str, Sequence[float]]) -> list[Row]:
    """The table: the first contestant is what the others are compared to."""
    first = statistics.median(next(iter(times.values())))
    return [
        Row(name, len(took), median := statistics.median(took), min(took), max(took), first / median)
        for name, took in times.items()
    ]


def start(cell: Cell, run: RunFolder) -> dict[str, Turn]:
    """From nothing to a guest's first answer over SSH: a bare script, our boot, our restore."""
    return {
        "bare script, booted": lambda: bare_boot(cell, run),
        "harness, booted": lambda: _lab_start(cell, run, cold=True),
        "harness, restored": lambda: _lab_start(cell, run, cold=False),
    }


def cycle(cell: Cell, run: RunFolder) -> dict[str, Turn]:
    """A share's life in a guest: plug, mount, a round trip, umount, unplug."""
    return {
        "booted guest": lambda: _lab_cycle(cell, run, cold=True),
        "restored guest": lambda: _lab_cycle(cell, run, cold=False),
    }


def _lab(cell: Cell, run: RunFolder) -> Lab:
    return Lab(cell, run, Artifacts.create(run.path, f"bench{next(_numbers)}"))


def _lab_start(cell: Cell, run: RunFolder, *, cold: bool) -> float:
    lab = _lab(cell, run)
    clock = Deadline.after(0)
    try:
        _boot(lab, cold=cold)
        return clock.elapsed_s
    finally:
        lab.close()


def _boot(lab: Lab, *, cold: bool) -> Guest:
    guest = lab.boot(cold=cold)
    if not cold and guest.machine.spec.memory_file is None:
        raise SetupError("there is no template to restore from: 'guest:born' in the history says why")
    return guest


def _lab_cycle(cell: Cell, run: RunFolder, *, cold: bool) -> float:
    lab = _lab(cell, run)
    try:
        guest, share = _boot(lab, cold=cold), lab.shares[0]
        hotplug, clock = Hotplug(guest), Deadline.after(0)
        hotplug.plug(share)
        mount = guest.mount(share)
        mount.expect_usable()
        mount.unmount()
        hotplug.unplug(share)
        return clock.elapsed_s
    finally:
        lab.close()


def bare_boot(cell: Cell, run: RunFolder) -> float:
    """What a plain script does: start QEMU, try SSH until a command is answered, kill QEMU."""
    folder = run.path / f"bare{next(_numbers)}"
    folder.mkdir()
    paths = MachinePaths(*(folder / name for name in ("qmp", "console", "disk", "kernel.log", "console.log")))
    spec, port = cell.spec("bare", (), frozenset()), _free_port()
    shutil.copyfile(spec.disk, paths.disk)
    argv = [word.replace("127.0.0.1:0-", f"127.0.0.1:{port}-") for word in render(spec, paths)]
    key = paramiko.Ed25519Key.from_private_key_file(str(cell.image.client_key))
    clock = Deadline.after(0)
    with (folder / "qemu.log").open("wb") as log:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**run.environment(), **spec.qemu.environment},
        )
    try:
        wait_until(
            lambda: _answers(port, key),
            what="the bare script's guest",
            timeout_s=cell.accel.pace.seconds(BOOT_TIMEOUT_S),
            interval_s=0.1,
        )
        return clock.elapsed_s
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _answers(port: int, key: paramiko.PKey) -> bool:
    with paramiko.SSHClient() as client:
        client.set_missing_host_key_policy(paramiko.AutoAddPolicy())
        try:
            client.connect(
                "127.0.0.1", port, "root", pkey=key, allow_agent=False, look_for_keys=False, timeout=2
            )
            return client.exec_command("true")[1].channel.recv_exit_status() == 0
        except (OSError, EOFError, paramiko.SSHException):
            return False


def _free_port() -> int:
    """A port that nobody has now: good enough for a script, as scripts do."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


CONTESTS: Mapping[str, Callable[[Cell, RunFolder], dict[str, Turn]]] = {"start": start, "cycle": cycle}
