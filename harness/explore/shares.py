"""The shares of a program, as they are declared at launch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from harness.explore.program import ShareKind
from harness.holds.throttle import require_throttling, throttled
from harness.qemu.spec import Share
from harness.testbed import Testbed

#: A throttle that exists and delays no request; bytes a second.
_THROTTLE = 64 << 20


def declared(testbed: Testbed, kinds: Sequence[ShareKind]) -> tuple[Share, ...]:
    """The shares of these kinds, made of the testbed's pool.

    :raises Unsupported: when this QEMU cannot throttle an fsdev.
    """
    shares: list[Share] = []
    for kind, share in zip(kinds, testbed.shares, strict=False):
        made = replace(share, security_model=kind.security_model)
        if kind.throttled:
            require_throttling(testbed.cell.qemu)
            made = throttled(made, bytes_per_s=_THROTTLE)
        if kind.fsdev_of is not None:
            made = share.beside(_owner(shares, kinds, kind.fsdev_of))
        shares.append(made)
    return tuple(shares)


def _owner(shares: Sequence[Share], kinds: Sequence[ShareKind], share: int) -> Share:
    """The share of a program that has the fsdev itself, for one that uses another's."""
    of = kinds[share].fsdev_of
    return shares[share] if of is None else _owner(shares, kinds, of)
