"""Verdicts: *valid*, *unknown* or *invalid*; unknown never passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

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
    :ivar also: the summaries of what the checker found besides, for example in another machine.
    """

    checker: str
    verdict: Verdict
    summary: str = ""
    evidence: tuple[str, ...] = ()
    also: tuple[str, ...] = ()


class Finding(NamedTuple):
    """What a checker returns; :func:`harness.checkers.judge` adds the checker's name."""

    verdict: Verdict
    summary: str = ""
    evidence: tuple[str, ...] = ()
    also: tuple[str, ...] = ()


Checker = Callable[[Record], Finding]

VALID = Finding(Verdict.VALID)


def unknown(summary: str, *evidence: str) -> Finding:
    """The verdict *unknown*: the record does not show whether the property holds."""
    return Finding(Verdict.UNKNOWN, summary, evidence)


def invalid(summary: str, *evidence: str) -> Finding:
    """The verdict *invalid*: the property does not hold."""
    return Finding(Verdict.INVALID, summary, evidence)


def merged(findings: Iterable[Finding]) -> Finding:
    """The worst of some findings; it lists the others that are not valid, so that it hides none of them."""
    bad = [finding for finding in findings if finding.verdict is not Verdict.VALID]
    if not bad:
        return VALID
    verdict = worst([finding.verdict for finding in bad])
    first = next(finding for finding in bad if finding.verdict is verdict)
    others = [text for finding in bad if finding is not first for text in (finding.summary, *finding.also)]
    return first._replace(also=(*first.also, *others))


def worst(verdicts: list[Verdict]) -> Verdict:
    """The worst of ``verdicts``: invalid, then unknown, then valid. No verdicts at all give unknown."""
    order = (Verdict.INVALID, Verdict.UNKNOWN, Verdict.VALID)
    return next((verdict for verdict in order if verdict in verdicts), Verdict.UNKNOWN)
