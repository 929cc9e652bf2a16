"""When enough attempts at a program were made to decide whether it still fails as often as another.

An attempt is one run of a program in a fresh guest; it fails or it does not. Attempts are independent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from harness.report.reliability import Reliability


class Decision(StrEnum):
    """What a sequential test says about a program."""

    #: It fails as often as it has to.
    YES = "yes"
    #: It fails clearly less often, or never.
    NO = "no"
    #: More attempts are needed.
    OPEN = "open"


@dataclass(frozen=True)
class SequentialTest:
    """Whether a program still fails as often as another one: Wald's sequential probability ratio test.

    The likelihood of what was seen under ``wanted`` is compared with that under ``too_little``. By Ville's
    inequality the test says YES with a probability of at most ``wrong_yes`` when the program fails at most as
    often as ``too_little``, and NO with at most ``wrong_no`` when it fails at least as often as ``wanted``,
    however long the test goes on (A. Wald, "Sequential Tests of Statistical Hypotheses", 1945).

    :ivar wanted: the share of failing attempts of the other program, between 0 and 1.
    :ivar too_little: the share at which the failure counts as lost; less than ``wanted``.
    """

    wanted: float
    too_little: float
    wrong_yes: float
    wrong_no: float

    def __post_init__(self) -> None:
        if not 0 < self.too_little < self.wanted < 1:
            raise ValueError(f"not in order: 0, {self.too_little}, {self.wanted}, 1")

    def decide(self, seen: Reliability) -> Decision:
        """The decision of the sequential test after these attempts."""
        passes = seen.attempts - seen.failures
        ratio = seen.failures * math.log(self.wanted / self.too_little)
        ratio += passes * math.log((1 - self.wanted) / (1 - self.too_little))
        if ratio >= -math.log(self.wrong_yes):
            return Decision.YES
        return Decision.NO if ratio <= math.log(self.wrong_no) else Decision.OPEN


#: The probability that a minimisation loses the failure's reliability unnoticed.
_WRONG_RESULT = 0.05
#: The most validations of one minimisation.
MOST_VALIDATIONS = 5
#: The probability that one decision of the search drops, or keeps, a step wrongly. The first kind is found by
#: the validation; the second makes the program longer, but not wrong.
_WRONG_DROP, _WRONG_KEEP = 0.25, 0.19


def for_search(original: Reliability) -> SequentialTest:
    """The sequential test with which a smaller program replaces ``original`` for the time being.

    The failure counts as lost when the program fails less than half as often. The smaller programs are all
    compared with the original, so reliability is not lost bit by bit. Of a program that fails always, two or
    three failures in a row are needed for a YES, and one or two attempts that pass are enough for a NO.
    """
    wanted = original.estimate
    return SequentialTest(wanted, wanted / 2, _WRONG_DROP, _WRONG_KEEP)


def for_validation(original: Reliability) -> SequentialTest:
    """The sequential test that a smallest program has to pass, so that nothing was dropped wrongly.

    With at most :data:`MOST_VALIDATIONS` of them, a program that fails less than half as often as the
    original passes one with a probability of less than 5 %, however many steps were dropped before.
    """
    wanted = original.estimate
    return SequentialTest(wanted, wanted / 2, _WRONG_RESULT / MOST_VALIDATIONS, _WRONG_KEEP)
