"""Makes glibc overwrite freed memory, so that a use after free reads invalid data and not the old content."""

from __future__ import annotations

from pathlib import Path

from harness.qemu.machine import Wrapping
from harness.qemu.spec import MachineSpec

#: glibc fills freed memory with this byte, and allocated memory with its complement (``man 3 mallopt``,
#: ``M_PERTURB``). Eight such bytes are never a valid pointer.
_BYTE = 0xA5


class MallocPerturb:
    """Starts every machine of a testbed with ``MALLOC_PERTURB_``. C libraries other than glibc ignore it."""

    def wrap(self, _spec: MachineSpec, _folder: Path) -> Wrapping:
        """Let glibc overwrite what QEMU frees: see :class:`harness.testbed.LaunchTool`."""
        return Wrapping(environment={"MALLOC_PERTURB_": str(_BYTE)})

    def release(self) -> None:
        """Do nothing: glibc's overwriting of freed memory does not keep a machine from ending."""

    def close(self) -> None:
        """Do nothing: glibc's overwriting of freed memory ends with QEMU."""
