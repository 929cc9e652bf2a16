"""The exit status of a replay inside of ``git bisect run`` (``man 1 git-bisect``): good, bad, skip, abort."""

from __future__ import annotations

from pathlib import Path

from harness.errors import HarnessError, Unsupported, UsageError
from harness.explore.replay import Replay

GOOD, BAD, SKIP, ABORT = 0, 1, 125, 128
#: How the message about a QEMU begins that cannot be used: it does not start, or lacks 9p or a machine type.
_ABOUT_QEMU = "--qemu "


def of_replay(found: Replay, signature: str = "") -> int:
    """The exit status for ``git bisect run``, from the attempts at a program.

    :param signature: the failure that is searched for; any, when it is empty. A commit that only fails
        otherwise is skipped, because it does not show whether it has the failure.
    """
    if signature in found.failures or (found.failures and not signature):
        return BAD
    if found.failures:
        return SKIP
    return GOOD if found.attempts else ABORT


def is_enough(found: Replay, signature: str = "") -> bool:
    """Whether more attempts cannot change the exit status: one failure shows that a commit is bad."""
    return of_replay(found, signature) == BAD


def of_error(error: HarnessError, qemu: str) -> int:
    """The exit status for ``git bisect run`` when no attempt could be made.

    A QEMU that is there and cannot be used is skipped. Everything else (a wrong option, a path that does not
    exist, no space) would go wrong with every commit: git stops.

    :param qemu: the value of ``--qemu``.
    """
    if isinstance(error, Unsupported):
        return SKIP
    about_qemu = isinstance(error, UsageError) and error.message.startswith(_ABOUT_QEMU)
    return SKIP if about_qemu and Path(qemu).exists() else ABORT
