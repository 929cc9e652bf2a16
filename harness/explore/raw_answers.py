"""What the steps of the raw client have in common: the numbers of fids, and what QEMU has to answer."""

from __future__ import annotations

from collections.abc import Callable

from harness.errors import QemuError
from harness.explore.disagreement import Disagreement
from harness.explore.program import Step
from harness.explore.raw_invariants import WRITTEN
from harness.explore.raw_machine import ORIGINAL, RawMachine
from harness.explore.raw_model import FILE, MADE, ROOT, ROOTS, SECOND_ROOT, RawState
from harness.ninep.client import RawDriver
from harness.ninep.session import ANSWERED, outcome

#: The numbers of the fids of :mod:`.raw_model`, of one that a step uses for itself, and of one that never is.
FIDS = {ROOT: 1, SECOND_ROOT: 9, FILE: 2, MADE: 3}
HELPER, UNKNOWN = 100, 4711
#: Seconds, before scaling, in which QEMU must not go on while a request is held.
WINDOW_S = 0.15
EVENT_TIMEOUT_S = 20.0
BLOCKED = "blocked while mounted"

#: Performs a step in a state of the model.
Perform = Callable[[RawMachine, Step, RawState], None]


def share_of(step: Step) -> int:
    """The index of the share that a raw step is about."""
    assert step.share is not None
    return step.share


def driver_of(on: RawMachine, step: Step) -> RawDriver:
    """The driver of the device that a raw step is about."""
    return on.driver(share_of(step))


def refused(step: Step, call: Callable[[], object], *texts: str) -> None:
    """:raises Disagreement: when a raw step's command is accepted, or refused with another text."""
    try:
        call()
    except QemuError as exc:
        if not any(text in exc.desc for text in texts):
            what = f"{step}: refused with another text"
            raise Disagreement(step.do, what, details=f"{exc.desc}, expected: {texts[0]}") from exc
        return
    raise Disagreement(step.do, f"{step.do} was accepted, and has to be refused: {texts[0]}")


def expect_errno(step: Step, driver: RawDriver, kind: int, body: bytes, *errnos: str) -> None:
    """A raw step's request has to fail. :raises Disagreement: when it does not get one of these errors."""
    seen = outcome(driver, kind, body)
    if seen not in errnos:
        raise Disagreement(step.do, f"{step.do}: {seen}, expected {' or '.join(errnos)}")


def root_of(before: RawState, step: Step) -> int:
    """The number of the fid that a raw step attached."""
    return min(FIDS[fid] for fid in before.device(step).fids & ROOTS)


def expect_content(step: Step, before: RawState, seen: bytes) -> None:
    """What a raw step read. :raises Disagreement: when it is not the content of the export's file."""
    if seen != (WRITTEN if before.folder(step).written else ORIGINAL):
        raise Disagreement("content", "a read gives other content than the file has", details=repr(seen[:80]))


def expect_written(count: int) -> None:
    """What a raw step's Twrite wrote. :raises Disagreement: when that is not the whole file."""
    if count != len(WRITTEN):
        raise Disagreement("content", f"a Twrite of {len(WRITTEN)} bytes wrote {count}")


def expect_error(step: Step, driver: RawDriver, kind: int, body: bytes) -> None:
    """A raw step's request has to get an error. :raises Disagreement: when it is answered without one."""
    if outcome(driver, kind, body) == ANSWERED:
        raise Disagreement(step.do, f"{step.do} {step.value}: answered, and has to fail")
