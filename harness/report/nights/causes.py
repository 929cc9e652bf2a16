"""Failures that probably have one cause: they began together, and show the same thing.

A fault of QEMU makes many tests fail, each with its own message. What is to be looked at is the change
between two nights, once, and not each message.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from operator import attrgetter

from harness.report.nights import commands
from harness.report.nights.changes import Difference
from harness.report.nights.failed import sign
from harness.report.nights.history import Entry
from harness.report.nights.regressions import Regression
from harness.report.reliability import Reliability


@dataclass(frozen=True)
class Cause:
    """Failures of one guarantee, or with one backtrace, that began with the same change of one QEMU.

    :ivar ways: the failures, one for each signature, the most certain first.
    """

    ways: tuple[Regression, ...]

    @property
    def main(self) -> Regression:
        """The failure with the most certain way to fail, of those with one cause."""
        return self.ways[0]

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The latest result of each test that fails for this cause."""
        return tuple(entry for way in self.ways for entry in way.entries)

    @property
    def guarantees(self) -> tuple[str, ...]:
        """The guarantees that do not hold, for this cause."""
        return tuple(dict.fromkeys(one for entry in self.entries for one in entry.result.guarantees))

    @property
    def evidence(self) -> Entry:
        """The result to look at for a cause: of the most certain way, with its folder if one has it."""
        with_folder = (entry for entry in self.entries if commands.artefacts(entry) is not None)
        return next(with_folder, self.entries[0])

    @property
    def longest(self) -> Regression:
        """The failure of this cause whose test had not failed for most nights before."""
        return max(self.ways, key=lambda way: way.good_nights)

    @property
    def changed(self) -> tuple[Difference, ...]:
        """What changed between the last good night and the first bad one of a cause."""
        return self.main.changed

    @property
    def is_confirmed(self) -> bool | None:
        """Whether each test of this cause failed each time again; ``None`` when none was run again."""
        known = [way.is_confirmed for way in self.ways if way.is_confirmed is not None]
        return all(known) if known else None

    @property
    def reliability(self) -> Reliability:
        """How often the tests of a cause failed in their latest night, with their further runs."""
        found = [way.reliability for way in self.ways]
        return Reliability(sum(one.failures for one in found), sum(one.attempts for one in found))

    @property
    def certainty(self) -> tuple[bool, float, int]:
        """What causes are sorted by: errors of the host come last, and what was not run again before them."""
        share = self.reliability.interval[0] if self.is_confirmed is not None else 0.0
        return not self.main.is_of_the_host, share, len(self.entries)


def causes(found: Iterable[Regression]) -> tuple[Cause, ...]:
    """The causes of some failures, the most certain first.

    What fails only sometimes is another cause than what fails each time, and an error of the host is another
    one than a failure of QEMU.
    """
    groups: dict[tuple[object, ...], list[Regression]] = defaultdict(list)
    for one in found:
        groups[_together(one)].append(one)
    certainty = attrgetter("certainty")
    made = (Cause(tuple(sorted(same, key=certainty, reverse=True))) for same in groups.values())
    return tuple(sorted(made, key=certainty, reverse=True))


def _together(one: Regression) -> tuple[object, ...]:
    first, good = one.first_bad, one.last_good
    return (
        sign(first),
        first.place.qemu,
        first.night,
        good.night if good is not None else "",
        one.changed,
        one.is_of_the_host,
        one.is_confirmed is False,
    )
