"""Verdicts: *valid*, *unknown* or *invalid*; unknown never passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from harness.checkers.record import Record


class Verdict(str, Enum):
    """The verdict of a checker on a record."""

    VALID = "valid"
    UNKNOWN = "unknown"
    INVALID = "invalid"


@dataclass(frozen=True)
class Judgement:
    """The verdict of one checker, with evidence.

    :ivar summary: one line, which is the first line of a failure's message.
    """

    checker: str
    verdict: Verdict
    summary: str = ""
    evidence: tuple[str, ...] = ()


#: What a checker returns: verdict, summary, evidence. :func:`harness.checkers.judge` adds the checker's name.
Finding = tuple[Verdict, str, tuple[str, ...]]
Checker = Callable[[Record], Finding]

VALID: Finding = (Verdict.VALID, "", ())


def unknown(summary: str, *evidence: str) -> Finding:
    """The verdict *unknown*: the record does not show whether the property holds."""
    return Verdict.UNKNOWN, summary, evidence


def invalid(summary: str, *evidence: str) -> Finding:
    """The verdict *invalid*: the property does not hold."""
    return Verdict.INVALID, summary, evidence


def worst(verdicts: list[Verdict]) -> Verdict:
    """The worst of ``verdicts``: invalid, then unknown, then valid. No verdicts at all give unknown."""
    order = (Verdict.INVALID, Verdict.UNKNOWN, Verdict.VALID)
    return next((verdict for verdict in order if verdict in verdicts), Verdict.UNKNOWN)
