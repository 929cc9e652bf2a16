"""A heap whose freed memory is overwritten: whoever still reads it meets nonsense, and not what was there."""

from __future__ import annotations

from pathlib import Path

from harness.qemu.machine import Wrapping
from harness.qemu.spec import MachineSpec

#: glibc fills what is freed with this byte, and what is allocated with its complement (``man 3 mallopt``,
#: ``M_PERTURB``). As a pointer, eight of them are an address that no process has.
_BYTE = 0xA5


class MallocPerturb:
    """Starts every machine of a testbed with such a heap. A C library other than glibc takes no notice."""

    def wrap(self, _spec: MachineSpec, _folder: Path) -> Wrapping:
        """See :class:`harness.testbed.LaunchTool`."""
        return Wrapping(environment={"MALLOC_PERTURB_": str(_BYTE)})

    def release(self) -> None:
        """Nothing is in anybody's way."""

    def close(self) -> None:
        """Nothing is left."""
