"""How often something fails: failures of attempts, with an interval.

An attempt is one run in a fresh guest; it fails or it does not. Attempts are independent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
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
        """The Wilson score interval of the reliability, with :data:`CONFIDENCE`; (0, 1) without attempts.

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
        """Whether the interval of the reliability is no wider than :data:`CLEAR_WIDTH`."""
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
        """The share of failures to expect, never 0 and never 1 (Laplace's rule of succession)."""
        return (self.failures + 1) / (self.attempts + 2)

    def __str__(self) -> str:
        low, high = (round(100 * bound) for bound in self.interval)
        return f"{self.failures} of {self.attempts} ({low} to {high} %)"
