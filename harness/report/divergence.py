"""What differed between the records of a flaky test: one of a run that failed, one of a run that passed.

Two runs of a test never make the same steps in the same order: what they poll takes other numbers of turns,
and threads interleave. So the records are compared by what each actor did at all, how it ended, and how long
it took at most.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from harness.artifacts import HISTORY
from harness.history import Head, Kind, heads

#: An operation took longer in one of the runs when it took so many times as long, and so many seconds more.
_FACTOR, _LONGER_S = 3.0, 0.5
#: So many steps are named.
_MOST = 3
_ENDED = {Kind.OK: "", Kind.FAIL: " (failed)", Kind.INFO: " (outcome unknown)"}


def divergence(failed: Path, passed: Path) -> str:
    """What differed between the record of a run that failed and of one that passed, in one line.

    Empty where nothing did, or where a folder has no record, such as one of another host.

    :param failed: the artefact folder of the run that failed. :param passed: that of the other one.
    """
    of_failed, of_passed = heads(failed / HISTORY), heads(passed / HISTORY)
    if not of_failed or not of_passed:
        return ""
    bad, good = _steps(of_failed), _steps(of_passed)
    parts = [
        _named("only when it failed", [step for step in bad if step not in good]),
        _named("only when it passed", [step for step in good if step not in bad]),
        _slower(bad, good),
    ]
    return "; ".join(filter(None, parts))


def _steps(entries: Sequence[Head]) -> dict[str, float]:
    """Each step of a record in the order of its first time: its longest duration in seconds.

    That of a step that never ended, and of an event, is 0.
    """
    ends = {end.op: end for end in entries if end.op is not None and end.kind in _ENDED}
    found: dict[str, float] = {}
    for number, entry in enumerate(entries):
        if entry.kind is Kind.EVENT:
            found.setdefault(f"{entry.actor}: {_name(entry.f)}", 0.0)
        elif entry.kind is Kind.INVOKE:
            end = ends.get(number)
            ended = " (no end)" if end is None else _ENDED[end.kind]
            step = f"{entry.actor}: {_name(entry.f)}{ended}"
            found[step] = max(found.get(step, 0.0), 0.0 if end is None else end.t_s - entry.t_s)
    return found


def _name(operation: str) -> str:
    return operation.removeprefix("qmp:").removeprefix("event:")


def _named(title: str, steps: Sequence[str]) -> str:
    more = f" and {len(steps) - _MOST} more" if len(steps) > _MOST else ""
    return f"{title}: {', '.join(steps[:_MOST])}{more}" if steps else ""


def _slower(bad: dict[str, float], good: dict[str, float]) -> str:
    """The step whose longest duration differs most."""
    different: Iterable[tuple[float, str]] = (
        (abs(bad[step] - good[step]), step)
        for step in bad
        if step in good
        and abs(bad[step] - good[step]) >= _LONGER_S
        and max(bad[step], good[step]) >= _FACTOR * min(bad[step], good[step])
    )
    _, step = max(different, default=(0.0, ""))
    return f"{step} took {bad[step]:.1f} s when it failed, {good[step]:.1f} s when it passed" if step else ""
