"""QEMU's pool of coroutines, which is filled before a leak hunt in a machine without a guest.

A coroutine that has ended is kept. Before 9.1, a thread uses the kept ones again only when there are more
than 64 (QEMU: ``util/qemu-coroutine.c``, ``POOL_MIN_BATCH_SIZE``, ``coroutine_delete``). Until then each
coroutine is a new allocation. A plug of virtio-9p runs two (``hw/9pfs/9p.c``, ``v9fs_reset``), so the first
32 cycles of a hunt would seem to leak them, and the hunt would be extended. The requests of a raw client fill
the pool in the warm-up.
"""

from __future__ import annotations

from harness.leaks.vmstate import save_devices
from harness.qemu.machine import Machine

_SIZE = 64


def fill(machine: Machine) -> None:
    """Fill the pool of a stopped machine's main thread.

    Saving the state of the devices flushes the disk in a coroutine (``block/io.c``, ``bdrv_flush``). The pool
    of a machine whose state cannot be saved is left as it is: its hunts take longer.
    """
    for _ in range(_SIZE + 1):
        if save_devices(machine) is None:
            return
