"""Tests that fail in some nights only, although nothing changed: how often, since when, and what differed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from harness.report.change_points import changes as change_points
from harness.report.divergence import divergence
from harness.report.nights import changes
from harness.report.nights.changes import Difference
from harness.report.nights.history import Entry, History, Place
from harness.report.nights.load import Load, compared
from harness.report.reliability import Reliability
from harness.report.summary import Outcome

#: So many of its last nights say whether a test is flaky.
WINDOW = 30
#: So many of its last nights say since when it fails as often.
_HISTORY = 60
#: A failure, its fix, and a failure that came back are three switches, and may all have been builds of QEMU.
_SWITCHES = 4


@dataclass(frozen=True)
class Onset:
    """Since when a test fails more often, or less, than before.

    :ivar first: the first result that belongs to it. :ivar changed: what changed with it.
    """

    before: Reliability
    after: Reliability
    first: Entry
    changed: tuple[Difference, ...]


@dataclass(frozen=True)
class Flaky:
    """A flaky test.

    :ivar nights: its results in the window, of which ``rate`` failed at the first attempt.
    :ivar switches: how often it began or ceased to fail from one night to the next.
    :ivar again: how often it failed when it was run again in nights in which it had failed.
    :ivar last_failure: the latest night in which it failed.
    :ivar load: of the host, when it failed and when it did not.
    """

    place: Place
    rate: Reliability
    switches: int
    again: Reliability
    signatures: tuple[tuple[str, int], ...]
    last_failure: Entry
    onset: Onset | None
    load: Load | None


def differed(one: Flaky) -> str:
    """What differed between the records of a flaky test's last failure and of a further run that passed.

    Empty where nothing did, where all further runs failed, or where their folders are gone.
    """
    failed = one.last_failure.result.artefacts
    passed = [run.artefacts for run in one.last_failure.confirmations if run.outcome == Outcome.PASSED]
    folder = next(filter(None, passed), None)
    return divergence(Path(failed), Path(folder)) if failed and folder else ""


def flaky(history: History) -> list[Flaky]:
    """The flaky tests of the newest night, those that failed most often first."""
    judged = [[entry for entry in entries if entry.judged] for entries in history.entries.values()]
    current = [some for some in judged if some and history.is_recent(some[-1].run) and is_flaky(some)]
    found = [_described(some, len(current)) for some in current]
    return sorted(found, key=lambda one: (-one.rate.failures, one.place))


def is_flaky(judged: Sequence[Entry]) -> bool:
    """Whether a test failed in some nights only, although nothing changed.

    A mixed result of one night shows it. So do two switches or more, if nothing changed at one of them, and
    four whatever changed.
    """
    window = judged[-WINDOW:]
    if any(0 < entry.failures < entry.attempts for entry in window if entry.failed):
        return True
    switched = _switches(window)
    return len(switched) >= _SWITCHES or (
        len(switched) > 1 and any(not changes.between(before, after) for before, after in switched)
    )


def recurs(judged: Sequence[Entry]) -> bool:
    """Whether the last result is a failure that a flaky test had, and lost, before.

    A failure that came each time when the test was run again is another one: it is no longer flaky.
    """
    last = judged[-1]
    if not last.failed or (last.confirmations and last.failures == last.attempts):
        return False
    window = list(judged[-WINDOW:])
    while window and window[-1].failed and window[-1].signature == last.signature:
        window.pop()
    same = any(entry.failed and entry.signature == last.signature for entry in window)
    return same and is_flaky(judged)


def _switches(judged: Sequence[Entry]) -> list[tuple[Entry, Entry]]:
    return [(before, after) for before, after in pairwise(judged) if before.failed != after.failed]


def _described(judged: Sequence[Entry], series: int) -> Flaky:
    window = judged[-WINDOW:]
    failed = [entry for entry in window if entry.failed]
    return Flaky(
        place=judged[-1].place,
        rate=_rate(window),
        switches=len(_switches(window)),
        again=Reliability(
            sum(entry.failures - 1 for entry in failed), sum(entry.attempts - 1 for entry in failed)
        ),
        signatures=tuple(Counter(entry.signature for entry in failed).most_common()),
        last_failure=failed[-1],
        onset=_onset(judged[-_HISTORY:], series),
        load=compared(failed, [entry for entry in window if not entry.failed]),
    )


def _rate(entries: Sequence[Entry]) -> Reliability:
    return Reliability(sum(entry.failed for entry in entries), len(entries))


def _onset(judged: Sequence[Entry], series: int) -> Onset | None:
    """The last change of how often a flaky test fails."""
    found = change_points([float(entry.failed) for entry in judged], series)
    if not found:
        return None
    index = found[-1].index
    start = found[-2].index if len(found) > 1 else 0
    changed = changes.between(judged[index - 1], judged[index]) if index else ()
    return Onset(_rate(judged[start:index]), _rate(judged[index:]), judged[index], changed)
