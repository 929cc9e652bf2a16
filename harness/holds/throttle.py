"""The other kind of hold: a share so slow that a request stays in QEMU's throttle, in a coroutine timer.

Portable, and without a worker thread: unrealize destroys the timers, so it shows other faults than a held
system call does (QEMU: ``fsdev/qemu-fsdev-throttle.c``, ``fsdev_co_throttle_request``).
"""

from __future__ import annotations

from dataclasses import replace

from harness.qemu.spec import Share


def throttled(share: Share, *, bytes_per_s: int) -> Share:
    """The same share with ``throttling.bps-total``, in bytes a second."""
    options = {**share.fsdev_options, "throttling.bps-total": str(bytes_per_s)}
    return replace(share, fsdev_options=options)
