from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from harness.artifacts import Artifacts
from harness.deadline import TimeoutScale, wait_until
from harness.history import History
from harness.qemu.binary import QemuInstall
from harness.qemu.machine import Machine
from harness.reaper import RunFolder
from harness.tests.qemu.specs import spec

Launch = Callable[..., Machine]
_PROGRAM = Path(__file__).with_name("fake_qemu.py")
_numbers = itertools.count()


@pytest.fixture(scope="module")
def run() -> Iterator[RunFolder]:
    folder = RunFolder()
    yield folder
    folder.close()


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    (tmp_path / "test").mkdir()
    made = History(tmp_path / "test" / "history.ndjson")
    yield made
    made.close()


@pytest.fixture
def launch(tmp_path: Path, run: RunFolder, history: History) -> Iterator[Launch]:
    """Starts fake QEMUs, and ends those that a test leaves running."""
    made_so_far: list[Machine] = []
    artifacts = Artifacts(tmp_path / "test")
    disk = tmp_path / "disk.qcow2"
    disk.write_text("a disk")

    def start(
        mode: str = "",
        *,
        name: str = "source",
        source: Machine | None = None,
        any_port: bool = True,
        listening: bool = False,
    ) -> Machine:
        """:param listening: have the fake open its socket before the time runs in which it has to greet."""
        install = QemuInstall(
            "fake",
            _PROGRAM,
            (sys.executable, "-S", "-E", str(_PROGRAM)),
            environment={"FAKE": mode},
            any_port=any_port,
        )
        made = replace(spec(qemu=install, disk=disk), name=name, shares=())
        folder = run.path / f"m{next(_numbers)}"

        def on_started(_: Machine) -> None:
            if listening:
                wait_until((folder / "qmp.sock").exists, what="the fake's socket", timeout_s=120)

        machine = Machine.launch(
            made,
            run,
            folder,
            artifacts.machine(name, first=not made_so_far),
            history,
            timeout_scale=TimeoutScale(),
            source=source,
            on_started=on_started,
        )
        made_so_far.append(machine)
        return machine

    yield start
    for machine in made_so_far:
        machine.close()
