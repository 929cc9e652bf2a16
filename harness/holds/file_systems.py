"""Gives QEMU exports with several file systems, without root: mounts that QEMU alone sees."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from harness.errors import Unsupported
from harness.qemu.machine import Machine, Wrapping
from harness.qemu.spec import MachineSpec
from harness.testbed import Testbed

#: ``unshare`` becomes the command that it starts, so the process stays the same (``man 1 unshare``).
_START = ("unshare", "--user", "--map-root-user", "--mount")
_ENTER = ("nsenter", "--user", "--mount", "--preserve-credentials", "--target")
_MOUNT = ("mount", "-t", "tmpfs", "none")
_TIMEOUT_S = 60


class FileSystems:
    """Mounts file systems for the machines of one testbed; to be created before they are launched.

    :raises Unsupported: on a host that does not permit it (``man 7 user_namespaces``).
    """

    def __init__(self, testbed: Testbed) -> None:
        # On a folder that everybody has: the mount ends with the command.
        if why := _why_not(*_START, *_MOUNT, "/mnt"):
            raise Unsupported(f"this host lets QEMU have no mounts of its own: {why}")
        testbed.attach(self)

    @staticmethod
    def mount(machine: Machine, folder: Path) -> None:
        """Mount an empty tmpfs on a folder, as ``machine`` alone sees it.

        :raises Unsupported: when it is refused.
        """
        if why := _why_not(*_ENTER, str(machine.pid), *_MOUNT, str(folder)):
            raise Unsupported(f"nothing can be mounted for QEMU on {folder}: {why}")

    @staticmethod
    def stat(machine: Machine, path: Path) -> os.stat_result:
        """``stat()`` of a file as ``machine``, with its file systems, sees it.

        Source: ``man 5 proc``, ``/proc/PID/root``.
        """
        return Path(f"/proc/{machine.pid}/root{path}").stat()

    def wrap(self, spec: MachineSpec, folder: Path) -> Wrapping:  # noqa: ARG002
        """Start QEMU in a new mount namespace."""
        return Wrapping(prefix=_START)

    def release(self) -> None:
        """Nothing to do: file systems that QEMU alone sees do not keep a machine from ending."""

    def close(self) -> None:
        """Nothing to do: file systems that QEMU alone sees end with its process."""


def _why_not(*command: str) -> str:
    """Run a command that mounts a file system for QEMU; returns its error, or nothing when it succeeded."""
    if shutil.which(command[0]) is None:
        return f"no {command[0]} (util-linux)"
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
    lines = done.stderr.strip().splitlines() or [f"{command[0]} exited with {done.returncode}"]
    return lines[0] if done.returncode else ""
