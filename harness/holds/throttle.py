"""The other kind of hold: a share so slow that a request stays in QEMU's throttle, in a coroutine timer.

Portable, and without a worker thread: unrealize destroys the timers, so it shows other faults than a held
system call does (QEMU: ``fsdev/qemu-fsdev-throttle.c``, ``fsdev_co_throttle_request``).
"""

from __future__ import annotations

from dataclasses import replace

from harness.qemu.binary import QemuInstall, require_options
from harness.qemu.spec import Share

_OPTION = "throttling.bps-total"


def throttled(share: Share, *, bytes_per_s: int) -> Share:
    """The same share with ``throttling.bps-total``, in bytes a second; see :func:`require_throttling`."""
    options = {**share.fsdev_options, _OPTION: str(bytes_per_s)}
    return replace(share, fsdev_options=options)


def require_throttling(qemu: QemuInstall) -> None:
    """:raises Unsupported: when this QEMU's fsdev cannot be throttled (it came with 2.10)."""
    require_options(qemu, "-fsdev", f"local,id=slow,path=/,security_model=none,{_OPTION}=1")
