"""One attempt at a program in a fresh guest: how it ended, and the signature of its failure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class Ending(StrEnum):
    """How an attempt ended."""

    #: All steps were made, and every invariant held.
    PASSED = "passed"
    #: An invariant did not hold: QEMU is at fault.
    FAILED = "failed"
    #: The host or the harness is at fault, or the record is inconclusive: it says nothing about QEMU.
    ERROR = "error"


#: What differs between two runs of the same failure: numbers, addresses, paths and the names of folders.
_VARYING = (
    (re.compile(r"0x[0-9a-f]+"), "HEX"),
    (re.compile(r"(/[^\s'\":,;]+)+"), "/…"),
    (re.compile(r"\d+(\.\d+)?"), "N"),
)


@dataclass(frozen=True)
class Failure:
    """A broken invariant.

    :ivar checker: the checker or invariant that found it, such as ``qemu_alive`` or ``blocked_reasons``.
    :ivar message: one line, the first one of the error.
    :ivar guarantee: the guarantee that it breaks; the empty string when that is not known.
    :ivar frames: for a QEMU that died, the innermost functions of the backtrace that concern the device.
    :ivar step: the index of the step at which it was seen; ``None`` for the end of the program.
    """

    checker: str
    message: str
    guarantee: str = ""
    frames: tuple[str, ...] = ()
    step: int | None = None

    @property
    def signature(self) -> str:
        """What failures with the same cause have in common: checker, normalised message, and frames."""
        normal = self.message
        for pattern, instead in _VARYING:
            normal = pattern.sub(instead, normal)
        return " | ".join((self.checker, normal, *self.frames[:3]))


@dataclass(frozen=True)
class Attempt:
    """The result of one attempt.

    :ivar failure: the failure when ``ending`` is FAILED.
    :ivar error: one line when ``ending`` is ERROR.
    :ivar seconds: how long it took.
    :ivar artifacts: the folder with its record, if it was kept.
    """

    ending: Ending
    failure: Failure | None = None
    error: str = ""
    seconds: float = 0.0
    artifacts: Path | None = None
