"""A task of a real guest that hangs is seen, with its stack, within a scenario's time."""

from __future__ import annotations

import pytest

from harness.actions.hotplug import Hotplug
from harness.checkers import Record, Verdict
from harness.checkers.guest_kernel_quiet import guest_kernel_quiet
from harness.holds.hold import Hold
from harness.testbed import Testbed

pytestmark = pytest.mark.qemu


@pytest.mark.parametrize("tolerated", [False, True])
def test_a_task_that_hangs(testbed: Testbed, tolerated: bool) -> None:
    """A mkdir whose request is held keeps its folder's lock; the next one waits for that, deaf to signals.

    (kernel: ``fs/namei.c``, ``filename_create``: ``inode_lock_nested``.) The first, which waits in 9p for the
    answer, can be killed and so does not hang.
    """
    hold = Hold(testbed)
    guest = testbed.boot()
    share = testbed.shares[0]
    Hotplug(guest).plug(share)
    folder = guest.mount(share).mountpoint
    if tolerated:
        guest.tolerate(r"task mkdir:\d+ blocked|Call Trace:", why="its folder's lock is held")
    with hold.requests(share, "mkdirat"):
        guest.succeed(f"for name in a b; do mkdir {folder}/$name >/dev/null 2>&1 & done")
        guest.machine.wait_until(
            lambda: guest.machine.kernel_log.contains("</TASK>"), what="the kernel to see it", timeout_s=30
        )
    guest.wait_until_succeeds(f"ls -d {folder}/a {folder}/b", what="both folders")
    testbed.close()
    found = guest_kernel_quiet(Record.load(testbed.artifacts.folder))
    if tolerated:
        assert found.verdict is Verdict.VALID
        return
    assert found.verdict is Verdict.INVALID
    assert "INFO: task mkdir:" in found.summary
    stack = "\n".join(found.evidence)
    assert "rwsem_down_write_slowpath" in stack
    assert "filename_create" in stack
