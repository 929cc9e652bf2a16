"""How reliable a failure is: its interval, and when enough attempts were made to decide.

An attempt is one run of a program in a fresh guest; it fails or it does not. Attempts are independent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from statistics import NormalDist

#: The confidence of every interval that is printed.
CONFIDENCE = 0.95
#: A reliability is clear when its interval is no wider than this. 20 equal results in a row are enough.
CLEAR_WIDTH = 0.165
#: More attempts are never asked for, however unreliable a failure is.
_MOST_ATTEMPTS = 10_000


@dataclass(frozen=True)
class Reliability:
    """How often a failure came.

    :ivar failures: the attempts that failed, of ``attempts``. Errors of the infrastructure are in neither.
    """

    failures: int = 0
    attempts: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.failures <= self.attempts:
            raise ValueError(f"{self.failures} failures of {self.attempts} attempts")

    def with_attempt(self, failed: bool) -> Reliability:
        """The reliability after one more attempt."""
        return Reliability(self.failures + failed, self.attempts + 1)

    @property
    def interval(self) -> tuple[float, float]:
        """The Wilson score interval with :data:`CONFIDENCE`; (0, 1) without attempts.

        Unlike the normal approximation it is right for few attempts, and for none or all that fail (E. B.
        Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", 1927).
        """
        if not self.attempts:
            return 0.0, 1.0
        z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
        share, z2n = self.failures / self.attempts, z * z / self.attempts
        centre = (share + z2n / 2) / (1 + z2n)
        half = z * math.sqrt(share * (1 - share) / self.attempts + z2n / self.attempts / 4) / (1 + z2n)
        return max(0.0, centre - half), min(1.0, centre + half)

    @property
    def is_clear(self) -> bool:
        """Whether the interval is no wider than :data:`CLEAR_WIDTH`."""
        low, high = self.interval
        return high - low <= CLEAR_WIDTH

    def attempts_needed(self) -> int:
        """How many more attempts make the reliability clear, if they fail as often as those until now."""
        if self.is_clear:
            return 0
        share = self.failures / self.attempts if self.attempts else 1.0
        total = self.attempts + 1
        while total < _MOST_ATTEMPTS and not Reliability(round(share * total), total).is_clear:
            total += 1
        return total - self.attempts

    @property
    def estimate(self) -> float:
        """The expected share of failures, never 0 and never 1 (Laplace's rule of succession)."""
        return (self.failures + 1) / (self.attempts + 2)

    def __str__(self) -> str:
        low, high = (round(100 * bound) for bound in self.interval)
        return f"{self.failures} of {self.attempts} ({low} to {high} %)"


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
        """The decision after these attempts."""
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
    """The test with which a smaller program replaces ``original`` for the time being.

    The failure counts as lost when the program fails less than half as often. The smaller programs are all
    compared with the original, so reliability is not lost bit by bit. Of a program that fails always, two or
    three failures in a row are needed for a YES, and one or two attempts that pass are enough for a NO.
    """
    wanted = original.estimate
    return SequentialTest(wanted, wanted / 2, _WRONG_DROP, _WRONG_KEEP)


def for_validation(original: Reliability) -> SequentialTest:
    """The test that the result of a minimisation has to pass, so that nothing was dropped wrongly.

    With at most :data:`MOST_VALIDATIONS` of them, a program that fails less than half as often as the
    original passes one with a probability of less than 5 %, however many steps were dropped before.
    """
    wanted = original.estimate
    return SequentialTest(wanted, wanted / 2, _WRONG_RESULT / MOST_VALIDATIONS, _WRONG_KEEP)
