"""Gives QEMU exports with several file systems, without root: mounts that QEMU alone sees."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from harness.errors import Unsupported
from harness.qemu.machine import Machine, Wrapping
from harness.qemu.spec import MachineSpec
from harness.testbed import Testbed

_NAMESPACES = ("unshare", "--user", "--map-root-user", "--mount")
#: Mounts an empty tmpfs on each of the first $1 folders, then becomes the command that follows them.
_MOUNT = """
left=$1; shift
while [ "$left" -gt 0 ]; do mount -t tmpfs none "$1" || exit; shift; left=$((left - 1)); done
exec "$@"
"""
_PROBE_TIMEOUT_S = 60


class FileSystems:
    """An empty tmpfs on each of some folders, in the mount namespace of the machines of one testbed.

    To be created before they are launched. Each machine has file systems of its own.

    :param folders: folders that exist.
    :raises Unsupported: on a host that does not permit it (``man 7 user_namespaces``).
    """

    def __init__(self, testbed: Testbed, folders: Sequence[Path]) -> None:
        script = ("sh", "-c", _MOUNT, "sh", str(len(folders)), *map(str, folders))
        self._prefix = (*_NAMESPACES, *script)
        if why := _why_not(self._prefix):
            raise Unsupported(f"this host lets QEMU have no mounts of its own: {why}")
        testbed.attach(self)

    @staticmethod
    def stat(machine: Machine, path: Path) -> os.stat_result:
        """``stat()`` of a file as ``machine`` sees it (``man 5 proc``, ``/proc/PID/root``)."""
        return Path(f"/proc/{machine.pid}/root{path}").stat()

    def wrap(self, spec: MachineSpec, folder: Path) -> Wrapping:  # noqa: ARG002
        """Start QEMU in a mount namespace of its own; the process stays the same."""
        return Wrapping(prefix=self._prefix)

    def release(self) -> None:
        """Nothing to do: the mounts do not keep a machine from ending."""

    def close(self) -> None:
        """Nothing to do: the mounts end with their process."""


def _why_not(prefix: tuple[str, ...]) -> str:
    """The error of a command that is started under ``prefix``; empty when there is none."""
    if shutil.which(prefix[0]) is None:
        return f"no {prefix[0]} (util-linux)"
    done = subprocess.run(
        [*prefix, "true"], capture_output=True, text=True, check=False, timeout=_PROBE_TIMEOUT_S
    )
    lines = done.stderr.strip().splitlines() or [f"{prefix[0]} exited with {done.returncode}"]
    return lines[-1] if done.returncode else ""
