"""Limits the number of files that QEMU may have open, so that a guest soon reaches the limit."""

from __future__ import annotations

import shutil
from pathlib import Path

from harness.errors import Unsupported
from harness.qemu.machine import Wrapping
from harness.qemu.spec import MachineSpec
from harness.testbed import Testbed


class OpenFileLimit:
    """``RLIMIT_NOFILE`` of the machines of one testbed; to be created before they are launched.

    QEMU reads the limit when it starts. It begins to close the files of idle fids when the guest has more
    files open than two thirds of the limit (``hw/9pfs/9p.c``, ``v9fs_set_fd_limit`` and ``v9fs_reclaim_fd``).

    :raises Unsupported: on a host without ``prlimit`` (``man 1 prlimit``, util-linux).
    """

    def __init__(self, testbed: Testbed, count: int) -> None:
        found = shutil.which("prlimit")
        if found is None:
            raise Unsupported("this host has no prlimit (util-linux) to limit QEMU's open files with")
        self._prefix = (found, f"--nofile={count}:{count}")
        testbed.attach(self)

    def wrap(self, spec: MachineSpec, folder: Path) -> Wrapping:  # noqa: ARG002
        """Start QEMU with the limit of open files."""
        return Wrapping(prefix=self._prefix)

    def release(self) -> None:
        """Nothing to do: the limit of open files does not keep a machine from ending."""

    def close(self) -> None:
        """Nothing to do: the limit of open files ends with QEMU's process."""
