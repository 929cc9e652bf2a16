"""Applies the known-bug ledger: a strict xfail for the one failure that an entry describes.

Marks are set in the set-up phase, never at collection: which QEMU it is, is only known then.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

from harness import ledger
from harness.checkers import Judgement, Verdict
from harness.checkers.guest_kernel_quiet import guest_kernel_quiet
from harness.errors import HarnessError, Violation
from harness.ledger import Bug
from harness.plugin.judging import JUDGEMENTS
from harness.plugin.options import MATRIX

BUG = pytest.StashKey[Bug]()
_AXES = ("qemu_name", "kernel_name", "machine_name")


class KnownBug(HarnessError):
    """A failure that the ledger explains."""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Expect the failure that the ledger lists for this scenario and this QEMU."""
    bug = _expected(item)
    if bug is not None:
        item.stash[BUG] = bug
        fixed = f"; fixed in {', '.join(bug.seen_fixed)}" if bug.seen_fixed else ""
        reason = f"{bug.id}: {bug.title} (seen in {', '.join(bug.seen_broken)}{fixed})"
        item.add_marker(pytest.mark.xfail(reason=reason, raises=KnownBug, strict=True))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Only the failure that the entry describes is the known one; any other stays a failure."""
    try:
        yield
    except (Exception, pytest.fail.Exception) as exc:  # What pytest.raises missed is the latter.
        bug = item.stash.get(BUG, None)
        if bug is None or not bug.explains(str(exc)):
            raise
        _refuse_more(bug, item.stash.get(JUDGEMENTS, []), exc)
        raise KnownBug(f"{bug.id}: {str(exc).splitlines()[0]}") from exc


def _refuse_more(bug: Bug, judgements: list[Judgement], seen: BaseException) -> None:
    """A known bug hides nothing else: what a checker found beside it is a failure.

    What the guest's kernel complains of may be the bug's own consequence, such as a task that it hangs.
    """
    more = [
        found
        for found in judgements
        if found.verdict is Verdict.INVALID
        and found.checker != guest_kernel_quiet.__name__
        and not bug.explains(found.summary)
    ]
    if more:
        details = "\n".join(line for found in more for line in (found.summary, *found.evidence))
        error = Violation(f"beside the known bug {bug.id}: {more[0].summary}", details=details)
        error.add_note(f"{bug.id} itself: {str(seen).splitlines()[0]}")
        raise error from None


def _expected(item: pytest.Item) -> Bug | None:
    callspec = getattr(item, "callspec", None)
    if callspec is None or not set(_AXES) <= callspec.params.keys():
        return None
    _, capabilities = item.config.stash[MATRIX].qemu(callspec.params["qemu_name"])
    scenario = f"{Path(item.path).name}::{getattr(item, 'originalname', item.name)}"
    return ledger.load().expected(
        scenario, callspec.id.split("-"), capabilities.version_text, callspec.params["machine_name"]
    )
