"""A QEMU that may have few files open, so that a guest soon has more open than that."""

from __future__ import annotations

import shutil
from pathlib import Path

from harness.errors import Unsupported
from harness.qemu.machine import Wrapping
from harness.qemu.spec import MachineSpec
from harness.testbed import Testbed


class OpenFileLimit:
    """``RLIMIT_NOFILE`` of the machines of one testbed; it has to exist before they are launched.

    QEMU reads the limit when it starts, and begins to close the files of idle fids when the guest has more
    open than two thirds of it (``hw/9pfs/9p.c``, ``v9fs_set_fd_limit`` and ``v9fs_reclaim_fd``).

    :raises Unsupported: on a host without ``prlimit`` (``man 1 prlimit``, util-linux).
    """

    def __init__(self, testbed: Testbed, count: int) -> None:
        found = shutil.which("prlimit")
        if found is None:
            raise Unsupported("this host has no prlimit (util-linux) to limit QEMU's open files with")
        self._prefix = (found, f"--nofile={count}:{count}")
        testbed.attach(self)

    def wrap(self, spec: MachineSpec, folder: Path) -> Wrapping:  # noqa: ARG002
        """Start QEMU with the limit."""
        return Wrapping(prefix=self._prefix)

    def release(self) -> None:
        """Nothing stands in the machines' way."""

    def close(self) -> None:
        """Nothing is left of it."""
