"""Raw steps that hold the system calls of requests, or make them fail."""

from __future__ import annotations

import errno
from contextlib import ExitStack

from harness.explore.disagreement import Disagreement
from harness.explore.program import Step
from harness.explore.raw_answers import (
    FIDS,
    UNKNOWN,
    Perform,
    driver_of,
    expect_content,
    expect_errno,
    expect_written,
    share_of,
)
from harness.explore.raw_invariants import WRITTEN
from harness.explore.raw_machine import ORIGINAL, InFlight, RawMachine
from harness.explore.raw_model import ATTACH, FILE, READ_HIGH_TAG, ROOT, RawState
from harness.holds.hold import DATA, FSYNC, STAT, Held
from harness.ninep import messages as p9
from harness.ninep.client import FlushedError, NineError, RawDriver, Request
from harness.ninep.messages import T

#: A tag that no other request of a short program has: they are counted from 1.
_OWN_TAG = 0x7FF0
_CALLS = {"read": DATA, READ_HIGH_TAG: DATA, "write": DATA, "fsync": FSYNC, ATTACH: STAT}
#: Tags are numbers of 16 bits without a sign.
_TAGS = {READ_HIGH_TAG: 0x9000}
_READ = (T.READ, p9.read(FIDS[FILE], 0, 2 * len(ORIGINAL)))
_REQUESTS: dict[str, tuple[T, bytes]] = {
    "read": _READ,
    READ_HIGH_TAG: _READ,
    "write": (T.WRITE, p9.write(FIDS[FILE], 0, WRITTEN)),
    "fsync": (T.FSYNC, p9.fsync(FIDS[FILE])),
    ATTACH: (T.ATTACH, p9.attach(FIDS[ROOT])),
}


def _hold(on: RawMachine, step: Step, _before: RawState) -> None:
    """The raw step ``hold``: send a request, and hold its system call in the worker thread."""
    assert on.hold is not None
    number, what = share_of(step), str(step.value)
    driver, stack = on.driver(number), ExitStack()
    held: Held = stack.enter_context(on.hold.requests(on.shares[number], *_CALLS[what]))
    request = driver.send(*_REQUESTS[what], tag=_TAGS.get(what))
    on.in_flight[number] = InFlight(held, request, stack)
    held.wait_caught()


def _fail(on: RawMachine, step: Step, _before: RawState) -> None:
    """The raw step ``fail``: the host's system call fails, and the guest gets its errno."""
    assert on.hold is not None
    what = str(step.value)
    driver = driver_of(on, step)
    with on.hold.failing(on.shares[share_of(step)], errno.ENOSPC, *_CALLS[what]):
        # QEMU's v9fs_attach answers every error of the host with EINVAL.
        expect_errno(step, driver, *_REQUESTS[what], "EINVAL" if what == ATTACH else "ENOSPC")


def _statfs_of_nothing(on: RawMachine, step: Step, _before: RawState) -> None:
    """A raw step: the host's file system reports a block size of 0, as one in user space may."""
    assert on.hold is not None
    driver = driver_of(on, step)
    with on.hold.without_block_size(on.shares[share_of(step)]):
        driver.call(T.STATFS, p9.fid(FIDS[FILE]))


def _short_write(on: RawMachine, step: Step, _before: RawState) -> None:
    """The raw step ``short_write``: the host writes half of what it is asked to.

    What is acknowledged has been written (QEMU goes on).
    """
    assert on.hold is not None
    driver, share = driver_of(on, step), on.shares[share_of(step)]
    with on.hold.halving(share):
        done = driver.write(FIDS[FILE], 0, WRITTEN)
    if (share.path / "file").read_bytes()[:done] != WRITTEN[:done]:
        raise Disagreement("content", "a write that the host did in part is acknowledged as complete")
    driver.write(FIDS[FILE], 0, WRITTEN)


def _flush(on: RawMachine, step: Step, before: RawState) -> None:
    """The raw step ``flush``: it waits for a held request; a Tflush of nothing is answered at once."""
    driver = driver_of(on, step)
    if step.value == "itself":
        driver.flush(_OWN_TAG, tag=_OWN_TAG)
        return
    one = on.in_flight.get(share_of(step)) if before.device(step).held else None
    if one is None:
        driver.flush(UNKNOWN)
        return
    answered = driver.answered()
    one.flushes.append(driver.send(T.FLUSH, p9.flush(one.request.tag)))
    one.held.in_flight()  # It sends a QMP command: QEMU has read the Tflush when that is answered.
    if driver.answered() != answered:
        high = " of a tag above 0x7fff" if before.device(step).held == READ_HIGH_TAG else ""
        raise Disagreement(step.do, f"Tflush{high} was answered before the request that it flushes")


def release(on: RawMachine, step: Step, before: RawState) -> None:
    """The raw step ``release``: the held request is answered, or returned without an answer if flushed."""
    number, what = share_of(step), before.device(step).held
    one, driver = on.in_flight.pop(number), on.driver(number)
    one.stack.close()
    if one.flushes:
        for flush in one.flushes:
            driver.wait_answer(flush)
        try:
            driver.wait_answer(one.request)
        except (FlushedError, NineError):
            return
    _expect_answer(step, before, what, driver, one.request)


def _expect_answer(step: Step, before: RawState, what: str, driver: RawDriver, request: Request) -> None:
    answer = driver.wait_answer(request)
    if what in ("read", READ_HIGH_TAG):
        expect_content(step, before, answer[4:])
    elif what == "write":
        expect_written(int.from_bytes(answer[:4], "little"))
    elif what == ATTACH:
        driver.fids.add(FIDS[ROOT])


STEPS: dict[str, Perform] = {
    "hold": _hold,
    "release": release,
    "fail": _fail,
    "short_write": _short_write,
    "statfs_of_nothing": _statfs_of_nothing,
    "flush": _flush,
}
