"""The shell that waits for commands, in a real guest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.actions.hotplug import Hotplug
from harness.artifacts import Artifacts
from harness.background import Background
from harness.guest.lab import Lab
from harness.holds.hold import DATA, Hold
from harness.matrix import DEFAULT, Matrix, Selection
from harness.reaper import RunFolder

pytestmark = pytest.mark.qemu


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    run = RunFolder()
    matrix = Matrix(Selection(machines=("pc",), accel="tcg"))
    made = Lab(matrix.cell(DEFAULT, DEFAULT, "pc"), run, Artifacts.create(tmp_path, "shell"))
    yield made
    made.close()
    run.close()


def test_a_file_of_9p_whose_end_comes_late(lab: Lab) -> None:
    """What is spliced into a pipe from 9p looks readable before it is known that there is nothing."""
    hold = Hold(lab)
    guest, share = lab.boot(), lab.shares[0]
    Hotplug(guest).plug(share)
    mount = guest.mount(share)
    (share.path / "file").touch()
    with hold.requests(share, *DATA) as held:
        printing = Background(lambda: guest.succeed(f"cat {mount.mountpoint}/file; echo end"))
        held.wait_caught()
        assert guest.succeed("echo beside") == "beside\n"
    assert printing.wait() == "end\n"
    assert guest.succeed("echo again") == "again\n"


def test_what_a_signal_ends(lab: Lab) -> None:
    guest = lab.boot()
    assert guest.run("kill -9 $(exec sh -c 'echo $PPID')").returncode == 128 + 9
    assert guest.succeed("echo again") == "again\n"
