"""For each failed result of a history: since when, what changed, how often again, and how to go on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.report.nights import changes, commands
from harness.report.nights.history import Entry, History


@dataclass(frozen=True)
class Failed:
    """What is known of a failed result.

    :ivar first_bad: the id of the run in which this failure began; every later one had it as well.
    :ivar last_good: the id of the latest run before it that did not fail; ``None`` if there is none.
    :ivar changed: one line for each thing that changed between the two.
    :ivar confirmed: such as "4 of 4"; empty for a test that was not run again.
    :ivar commands: command lines to paste.
    """

    first_bad: int
    last_good: int | None
    changed: tuple[str, ...]
    confirmed: str
    commands: tuple[str, ...]


def failed(history: History) -> dict[int, Failed]:
    """What is known of each failed result, by the result's id."""
    found = {}
    for entries in history.entries.values():
        judged = [entry for entry in entries if entry.judged]
        for index, entry in enumerate(judged):
            if entry.failed:
                found[entry.result.id] = _known(judged[: index + 1])
    return found


def streak(judged: Sequence[Entry]) -> int:
    """How many of a failed test's last results failed as the last one did."""
    signature, length = judged[-1].signature, 0
    for entry in reversed(judged):
        if not entry.failed or entry.signature != signature:
            break
        length += 1
    return length


def sign(bad: Entry) -> tuple[str, ...]:
    """What failed results that probably have one cause have in common, whatever their messages say.

    That is the innermost functions of a QEMU that died, from the signature (``explore/attempt.py``);
    otherwise the guarantee that does not hold, with what found it.
    """
    checker, *more = bad.signature.split(" | ")
    return tuple(more[1:]) or (checker, *bad.result.guarantees)


def last_good(judged: Sequence[Entry]) -> Entry | None:
    """The latest result of a failed test that is no failure."""
    return next((entry for entry in reversed(judged) if not entry.failed), None)


def _known(judged: Sequence[Entry]) -> Failed:
    bad = judged[-1]
    first, good = judged[-streak(judged)], last_good(judged)
    return Failed(
        first.run.id,
        good.run.id if good else None,
        tuple(map(str, changes.between(good, first))) if good else (),
        f"{bad.failures} of {bad.attempts}" if bad.confirmations else "",
        (commands.replay(bad), commands.bisect(bad, good)),
    )
