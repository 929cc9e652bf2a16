"""Checkers judge a recorded test. They read its folder on disk and nothing else.

A checker is a function from a record to a verdict; its name is the property that it checks. The verdict of a
checker that raises is *unknown*.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from harness.artifacts import VERDICT
from harness.checkers.events_well_formed import events_well_formed
from harness.checkers.guest_kernel_quiet import guest_kernel_quiet
from harness.checkers.history_well_formed import history_well_formed
from harness.checkers.no_leak import leaks, no_leak
from harness.checkers.nothing_left_behind import nothing_left_behind
from harness.checkers.qemu_alive import qemu_alive
from harness.checkers.qemu_exited_cleanly import qemu_exited_cleanly
from harness.checkers.record import MachineRecord, Record
from harness.checkers.verdict import Checker, Finding, Judgement, Verdict, worst

#: The checkers that judge every test, in the order in which a failure reports them.
STANDARD: tuple[Checker, ...] = (
    qemu_alive,
    qemu_exited_cleanly,
    guest_kernel_quiet,
    events_well_formed,
    no_leak,
    nothing_left_behind,
    history_well_formed,
)

__all__ = [
    "STANDARD",
    "Checker",
    "Finding",
    "Judgement",
    "MachineRecord",
    "Record",
    "Verdict",
    "judge",
    "leaks",
    "worst",
]


def judge(folder: Path, checkers: Sequence[Checker] = STANDARD) -> list[Judgement]:
    """Judge the record in ``folder``, and write ``verdict.json`` there.

    The verdict is *unknown* when a checker raises or the record cannot be read.
    """
    try:
        record = Record.load(folder)
    except Exception as exc:
        judgements = [Judgement(_name(checker), Verdict.UNKNOWN, str(exc)) for checker in checkers]
    else:
        judgements = [_run(checker, record) for checker in checkers]
    verdict = {
        "verdict": worst([judgement.verdict for judgement in judgements]).value,
        "judgements": [{**vars(judgement), "verdict": judgement.verdict.value} for judgement in judgements],
    }
    (folder / VERDICT).write_text(json.dumps(verdict, indent=2) + "\n")
    return judgements


def _run(checker: Checker, record: Record) -> Judgement:
    try:
        finding = checker(record)
    except Exception as exc:
        return Judgement(_name(checker), Verdict.UNKNOWN, f"the checker crashed: {exc!r}")
    return Judgement(_name(checker), *finding)


def _name(checker: Checker) -> str:
    return getattr(checker, "__name__", repr(checker))
