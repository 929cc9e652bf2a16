"""The benchmarks: the candidates of each, and what one turn of a candidate does."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from harness.actions.hotplug import Hotplug
from harness.actions.migration import Migration
from harness.artifacts import Artifacts
from harness.bench.baselines import bare_boot, has_labgrid, labgrid_boot
from harness.bench.profile import stages
from harness.bench.timing import Turn
from harness.channel.qmp import Qmp
from harness.deadline import Deadline, wait_until
from harness.errors import SetupError
from harness.guest.guest import Guest
from harness.history import History, read
from harness.provision import Cache, default_cache_root
from harness.reaper import RunFolder
from harness.restore.store import TemplateStore
from harness.testbed import Cell, Testbed

#: Commands in one turn of the QMP benchmark. Each is sent after the answer to the previous one.
ROUND_TRIPS = 1000
_GREETING_TIMEOUT_S = 20.0
_numbers = itertools.count(1)


def start(cell: Cell, run: RunFolder) -> dict[str, Turn]:
    """From no QEMU to a guest's first answer over SSH: by a bare script, by labgrid, and by the harness."""
    plain = replace(cell, templates=TemplateStore(Cache(default_cache_root()), plain=lambda _: True))
    labgrid: dict[str, Turn] = {"labgrid, booted": lambda: labgrid_boot(cell, run)} if has_labgrid() else {}
    return {
        "bare script, booted": lambda: bare_boot(cell, run),
        **labgrid,
        "harness, booted": lambda: _testbed_start(cell, run, cold=True),
        "harness, restored from a plain stream": lambda: _testbed_start(plain, run, cold=False),
        "harness, restored": lambda: _testbed_start(cell, run, cold=False),
        "harness, restored, and one process run": lambda: _testbed_start(cell, run, cold=False, warm=True),
    }


def cycle(cell: Cell, run: RunFolder) -> dict[str, Turn]:
    """A share is plugged, mounted, used once, unmounted and unplugged."""
    return {
        "booted guest": lambda: _testbed_cycle(cell, run, cold=True),
        "restored guest": lambda: _testbed_cycle(cell, run, cold=False),
    }


def migrate(cell: Cell, run: RunFolder) -> dict[str, Turn]:
    """A guest with an unmounted share migrates, until it answers over SSH on the destination."""
    return {
        "booted guest": lambda: _testbed_migrate(cell, run, cold=True),
        "restored guest": lambda: _testbed_migrate(cell, run, cold=False),
    }


def qmp(cell: Cell, run: RunFolder) -> dict[str, Turn]:
    """A thousand round trips on QMP: over a bare socket, and through the harness, which records each."""
    return {
        "bare socket": lambda: _bare_round_trips(cell, run),
        "harness": lambda: _round_trips(cell, run),
    }


def profile(cell: Cell, run: RunFolder) -> dict[str, float]:
    """The seconds of each stage of one restored guest's start (:func:`harness.bench.profile.stages`)."""
    with _testbed(cell, run) as testbed:
        _boot(testbed, cold=False)
    return stages(read(testbed.artifacts.history))


@contextlib.contextmanager
def _testbed(cell: Cell, run: RunFolder) -> Iterator[Testbed]:
    artifacts = Artifacts.create(run.path, f"bench{next(_numbers)}")
    with contextlib.closing(Testbed(cell, run, artifacts)) as testbed:
        yield testbed


def _testbed_start(cell: Cell, run: RunFolder, *, cold: bool, warm: bool = False) -> float:
    with _testbed(cell, run) as testbed:
        clock = Deadline.after(0)
        guest = _boot(testbed, cold=cold)
        if warm:  # The first answer of a restored guest comes from its shell, without a new process.
            guest.succeed("true")
        return clock.elapsed_s


def _boot(testbed: Testbed, *, cold: bool) -> Guest:
    guest = testbed.boot(cold=cold)
    if not cold and not guest.machine.spec.from_template:
        raise SetupError("the guest was booted, not restored: 'guest:started' in the history has the reason")
    return guest


def _testbed_cycle(cell: Cell, run: RunFolder, *, cold: bool) -> float:
    with _testbed(cell, run) as testbed:
        guest, share = _boot(testbed, cold=cold), testbed.shares[0]
        hotplug, clock = Hotplug(guest), Deadline.after(0)
        hotplug.plug(share)
        mount = guest.mount(share)
        mount.expect_usable()
        mount.unmount()
        hotplug.unplug(share)
        return clock.elapsed_s


def _testbed_migrate(cell: Cell, run: RunFolder, *, cold: bool) -> float:
    with _testbed(cell, run) as testbed:
        guest = _boot(testbed, cold=cold)
        Hotplug(guest).plug(testbed.shares[0])
        clock = Deadline.after(0)
        Migration(guest, testbed).migrate()
        return clock.elapsed_s


@contextlib.contextmanager
def _bare_qemu(cell: Cell, run: RunFolder) -> Iterator[Path]:
    """A QEMU without a machine (``-machine none``); yields the folder with its ``qmp.sock``."""
    folder = run.path / f"qmp{next(_numbers)}"
    folder.mkdir()
    listening = ("-chardev", f"socket,id=qmp,path={folder / 'qmp.sock'},server=on,wait=off")
    argv = cell.qemu.argv("-machine", "none", "-nodefaults", "-display", "none", *listening)
    process = subprocess.Popen(
        [*argv, "-mon", "chardev=qmp,mode=control"],
        env={**run.environment(), **cell.qemu.environment},
        stdin=subprocess.DEVNULL,
    )
    try:
        # The socket file is not enough: QEMU binds the socket before it listens.
        listens = partial(_listens, folder / "qmp.sock")
        wait_until(listens, what="the QMP socket", timeout_s=_GREETING_TIMEOUT_S)
        yield folder
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        return connection.connect_ex(str(path)) == 0


def _bare_round_trips(cell: Cell, run: RunFolder) -> float:
    command = json.dumps({"execute": "query-status"}).encode() + b"\n"
    with _bare_qemu(cell, run) as folder, socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(folder / "qmp.sock"))
        with connection.makefile("rb") as answers:
            answers.readline()
            connection.sendall(b'{"execute": "qmp_capabilities"}\n')
            answers.readline()
            clock = Deadline.after(0)
            for _ in range(ROUND_TRIPS):
                connection.sendall(command)
                json.loads(answers.readline())
            return clock.elapsed_s


def _round_trips(cell: Cell, run: RunFolder) -> float:
    with _bare_qemu(cell, run) as folder:
        history = History(folder / "history.ndjson")
        client = Qmp("bench", folder / "qmp.sock", history, folder / "qmp.ndjson")
        try:
            client.connect(timeout_s=_GREETING_TIMEOUT_S)
            clock = Deadline.after(0)
            for _ in range(ROUND_TRIPS):
                client.execute("query-status")
            return clock.elapsed_s
        finally:
            client.close()
            history.close()


BENCHMARKS: Mapping[str, Callable[[Cell, RunFolder], dict[str, Turn]]] = {
    "start": start,
    "cycle": cycle,
    "migrate": migrate,
    "qmp": qmp,
}
