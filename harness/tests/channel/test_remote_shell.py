"""The shell that waits for commands, in a real guest."""

from __future__ import annotations

import pytest

from harness.actions.hotplug import Hotplug
from harness.background import Background
from harness.holds.hold import DATA, Hold
from harness.testbed import Testbed

pytestmark = pytest.mark.qemu


def test_a_9p_file_whose_end_is_known_late(testbed: Testbed) -> None:
    """Pages that are spliced from 9p into a pipe look readable before the end of the file is known."""
    hold = Hold(testbed)
    guest, share = testbed.boot(), testbed.shares[0]
    Hotplug(guest).plug(share)
    mount = guest.mount(share)
    (share.path / "file").touch()
    with hold.requests(share, *DATA) as held:
        printing = Background(lambda: guest.succeed(f"cat {mount.mountpoint}/file; echo end"))
        held.wait_caught()
        assert guest.succeed("echo beside") == "beside\n"
    assert printing.wait() == "end\n"
    assert guest.succeed("echo again") == "again\n"


def test_a_shell_that_a_signal_ends(testbed: Testbed) -> None:
    guest = testbed.boot()
    assert guest.run("kill -9 $(exec sh -c 'echo $PPID')").returncode == 128 + 9
    assert guest.succeed("echo again") == "again\n"
