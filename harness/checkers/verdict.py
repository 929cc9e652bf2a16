"""Verdicts: *valid*, *unknown* or *invalid*; unknown never passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from harness.checkers.record import Record


class Verdict(str, Enum):
    """What a checker says of a record."""

    VALID = "valid"
    UNKNOWN = "unknown"
    INVALID = "invalid"


@dataclass(frozen=True)
class Judgement:
    """A checker's word on a record; ``summary`` is one line, the first of a failure's message."""

    checker: str
    verdict: Verdict
    summary: str = ""
    evidence: tuple[str, ...] = ()


#: What a checker returns: its name is added by :func:`harness.checkers.judge`.
Finding = tuple[Verdict, str, tuple[str, ...]]
Checker = Callable[[Record], Finding]

VALID: Finding = (Verdict.VALID, "", ())


def unknown(summary: str, *evidence: str) -> Finding:
    """The record does not show it either way."""
    return Verdict.UNKNOWN, summary, evidence


def invalid(summary: str, *evidence: str) -> Finding:
    """The property does not hold."""
    return Verdict.INVALID, summary, evidence


def worst(verdicts: list[Verdict]) -> Verdict:
    """Invalid before unknown before valid; unknown for none at all."""
    order = (Verdict.INVALID, Verdict.UNKNOWN, Verdict.VALID)
    return next((verdict for verdict in order if verdict in verdicts), Verdict.UNKNOWN)
