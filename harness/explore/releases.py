"""Bisection over the provisioned QEMUs: each is run, because a fix comes to stable branches in any order."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from packaging.version import Version

from harness.errors import UsageError
from harness.explore.bisect import CONFIDENCE
from harness.explore.candidate import RUNS, Ask, Judge, Report, Tally, Verdict
from harness.explore.observations import Observations

#: Each release is run so often before it is known how often the program fails.
_SAMPLE = 3


@dataclass(frozen=True)
class Release:
    """The result of one QEMU.

    :ivar name: as for ``--qemu``. :ivar version: such as ``7.2.22``.
    """

    name: str
    version: str
    verdict: Verdict
    tally: Tally

    def __str__(self) -> str:
        return self.name if self.name == self.version else f"{self.name} ({self.version})"


@dataclass(frozen=True)
class Releases:
    """The results, the oldest version first.

    :ivar signature: the failure that was looked for; empty when there was none.
    :ivar confidence: a lower bound of the probability that every verdict is right.
    """

    results: tuple[Release, ...]
    signature: str
    confidence: float

    def changes(self) -> Iterator[tuple[Release, Release]]:
        """Two neighbouring releases that behave otherwise; those that were skipped are left out."""
        judged = [one for one in self.results if one.verdict is not Verdict.SKIPPED]
        return ((one, other) for one, other in pairwise(judged) if one.verdict is not other.verdict)

    def ledger(self) -> str:
        """What the releases showed, as lines of an entry of the ledger (``images/known-bugs.toml``).

        A range begins and ends at versions that were run: what is outside of them is not known.
        """
        lines = [
            *(_line("affected", self._ranges(Verdict.BAD)), _line("unaffected", self._ranges(Verdict.GOOD))),
            *(_line("seen_broken", self._of(Verdict.BAD)), _line("seen_fixed", self._of(Verdict.GOOD))),
        ]
        return "\n".join(lines)

    def _of(self, verdict: Verdict) -> list[str]:
        return list(dict.fromkeys(one.version for one in self.results if one.verdict is verdict))

    def _ranges(self, verdict: Verdict) -> list[str]:
        judged = [one for one in self.results if one.verdict is not Verdict.SKIPPED]
        runs = [list(group) for of, group in groupby(judged, lambda one: one.verdict) if of is verdict]
        return [_range(run[0].version, run[-1].version) for run in runs]


def run_all(
    versions: Mapping[str, str],
    ask: Ask,
    *,
    observations: Observations | None = None,
    confidence: float = CONFIDENCE,
    any_failure: bool = False,
    report: Report = lambda _: None,
) -> Releases:
    """Run what is bisected on every release.

    :param versions: the version of each, by name. :param ask: makes one run on a QEMU of that name.
    :raises UsageError: when no release can be judged.
    :raises SetupError: when the host or the harness fails again and again.
    """
    names = sorted(versions, key=lambda name: (Version(versions[name]), name))
    risk = (1 - confidence) / max(1, len(names))
    judge = Judge(ask, observations or Observations(), risk=risk, any_failure=any_failure)
    for name in names:
        report(f"QEMU {name}: {judge.sample(name, _SAMPLE)}")
    bad = [name for name in names if judge.tallies[name].failed]
    if bad:
        judge.measure(bad[-1])
    for name in names:
        if not bad:
            judge.sample(name, RUNS)
        elif judge.verdict(name) is not Verdict.SKIPPED:
            report(f"QEMU {name}: {judge.tallies[name]}")
    results = tuple(
        Release(name, versions[name], _verdict(judge.tallies[name]), judge.tallies[name]) for name in names
    )
    if results and all(one.verdict is Verdict.SKIPPED for one in results):
        raise UsageError(f"none of these QEMUs can be judged; {results[-1]}: {results[-1].tally.skip}")
    risks = [judge.risk_of(one.name) for one in results if one.verdict is Verdict.GOOD] if bad else []
    return Releases(results, judge.signature, max(0.0, 1 - sum(risks)))


def _verdict(tally: Tally) -> Verdict:
    if tally.skip:
        return Verdict.SKIPPED
    return Verdict.BAD if tally.failed else Verdict.GOOD


def _range(first: str, last: str) -> str:
    return f"=={first}" if first == last else f">={first},<={last}"


def _line(name: str, values: Sequence[str]) -> str:
    return f"{name} = {json.dumps(values)}"  # Lists of strings are alike in TOML.
