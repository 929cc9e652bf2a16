"""The second kind of hold: a share so slow that a request stays in QEMU's throttle, in a coroutine timer.

It works on every host and occupies no worker thread. Unrealize destroys the timers, so it finds other faults
than a held system call does (QEMU: ``fsdev/qemu-fsdev-throttle.c``, ``fsdev_co_throttle_request``).
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
    """Check that this QEMU can throttle an fsdev (it came with 2.10).

    :raises Unsupported: when it cannot.
    """
    require_options(qemu, "-fsdev", f"local,id=slow,path=/,security_model=none,{_OPTION}=1")
