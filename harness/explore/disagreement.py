"""The error of a QEMU that does not do what the model says, and the one line that names it."""

from __future__ import annotations

import re

from harness.errors import Violation

#: QEMU's list of reasons has paths, and its length differs between programs.
_LIST = re.compile(r": \[.*\]$")


class Disagreement(Violation):
    """QEMU disagrees with the model.

    :ivar checker: the invariant that does not hold, or the step that QEMU did not do as it should.
    :ivar guarantee: the guarantee that it breaks; the empty string for that of the step.
    """

    def __init__(self, checker: str, message: str, *, details: str = "", guarantee: str = "") -> None:
        self.checker, self.guarantee = checker, guarantee
        super().__init__(message, details=details)


def shortened(message: str) -> str:
    """What a disagreement quotes of QEMU's message: the first line, without a list at its end."""
    return _LIST.sub("", message.splitlines()[0]) if message else ""
