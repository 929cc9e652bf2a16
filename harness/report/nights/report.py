"""All that a history says about the newest night, as one value, and as data for JSON."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from harness.report.nights import commands
from harness.report.nights.causes import Cause, causes
from harness.report.nights.changes import Difference
from harness.report.nights.flaky import Flaky, differed, flaky
from harness.report.nights.history import Entry, History, Place
from harness.report.nights.missing import Missing, missing
from harness.report.nights.regressions import Failures, Fix, Regression, failures
from harness.report.nights.trends import Trend, Trends, trends
from harness.report.reliability import Reliability


@dataclass(frozen=True)
class Report:
    """What a history says about its newest night.

    :ivar since: from when on something is new; ``None`` for the newest night.
    """

    history: History
    since: datetime | None
    failures: Failures
    flaky: tuple[Flaky, ...]
    trends: Trends
    missing: Missing

    @property
    def nothing_judged(self) -> bool:
        """Whether the newest night says nothing: no test ran, or all were skipped."""
        recent = (run for run in self.history.runs if self.history.is_recent(run))
        return not any(entry.judged for run in recent for entry in self.history.by_run.get(run.id, ()))


def report(history: History, since: datetime | None = None) -> Report:
    """Read a history, and put together all that it says about the newest night.

    :param since: what began then or later is new; by default what began in the newest night.
    """
    return Report(
        history,
        since,
        failures(history, since),
        tuple(flaky(history)),
        trends(history, since),
        missing(history),
    )


def as_data(of: Report) -> dict[str, Any]:
    """The report as plain data, as ``harness nights --json`` prints it."""
    lost = of.missing
    return {
        "newest": of.history.newest.isoformat(),
        "since": of.since.isoformat() if of.since else None,
        "runs": len(of.history.runs),
        "nights": len(set(of.history.nights.values())),
        "new": [_cause(one) for one in causes(of.failures.new)],
        "standing": [_cause(one) for one in causes(of.failures.standing)],
        "fixed": [_fix(one) for one in of.failures.fixed],
        "ended": [_fix(one) for one in of.failures.ended],
        "met": [_fix(one) for one in of.failures.met],
        "flaky": [_flaky(one) for one in of.flaky],
        "trends": [_trend(one) for one in of.trends.found],
        "series": of.trends.series,
        "nights_needed": of.trends.needed,
        "skipped": [
            {"why": one.reason, "tests": _places(one.places), "last_run": one.last_run.run.begun}
            for one in lost.skips
        ],
        "gone": [
            {"tests": _places(one.places), "now": one.now.begun, "before": one.before.begun}
            for one in lost.gone
        ],
        "gone_cells": [
            {
                "qemu": one.qemu,
                "arch": one.arch,
                "kernel": one.kernel,
                "machine_type": one.machine_type,
                "last": one.last.run.begun,
            }
            for one in lost.gone_cells
        ],
        "incomplete": [
            {
                "run": one.run.uuid,
                "begun": one.run.begun,
                "results": one.results,
                "expected": one.run.expected,
                "running": [running.nodeid for running in one.running],
            }
            for one in lost.incomplete
        ],
        "not_asserted": [
            {
                "guarantee": one.guarantee,
                "qemu": one.qemu,
                "why": one.why,
                "asserted": one.asserted.run.begun if one.asserted else None,
            }
            for one in lost.not_asserted
        ],
    }


def _cause(one: Cause) -> dict[str, Any]:
    main, longest, evidence = one.main, one.longest, one.evidence
    return {
        "guarantees": list(one.guarantees),
        "signature": main.signature,
        "cause": main.cause,
        "tests": _places(entry.place for entry in one.entries),
        "ways": [_way(way) for way in one.ways],
        "first_bad": _night(longest.first_bad),
        "last_good": _night(longest.last_good),
        "good_nights": longest.good_nights,
        "bad_nights": longest.bad_nights,
        "changed": _differences(one.changed),
        "again": _again(one),
        "of_the_host": main.is_of_the_host,
        "artefacts": evidence.result.artefacts,
        "timeline": commands.timeline(evidence),
        "replay": commands.replay(evidence),
        "bisect": commands.bisect(evidence, longest.last_good),
    }


def _way(one: Regression) -> dict[str, Any]:
    return {
        "signature": one.signature,
        "cause": one.cause,
        "before": one.before,
        "tests": _places(entry.place for entry in one.entries),
        "again": _again(one),
        "artefacts": [entry.result.artefacts for entry in one.entries],
    }


def _again(one: Cause | Regression) -> dict[str, Any] | None:
    return _reliability(one.reliability) if one.is_confirmed is not None else None


def _fix(one: Fix) -> dict[str, Any]:
    return {
        "bug": one.bug,
        "cause": one.cause,
        "signatures": list(one.signatures),
        "tests": _places(entry.place for entry in one.entries),
        "first": _night(one.entries[0]),
        "last_before": _night(one.last_bad),
        "changed": _differences(one.changed),
    }


def _flaky(one: Flaky) -> dict[str, Any]:
    return {
        "test": _place(one.place),
        "rate": _reliability(one.rate),
        "switches": one.switches,
        "again": _reliability(one.again),
        "signatures": dict(one.signatures),
        "last_failure": _night(one.last_failure),
        "since": None
        if one.onset is None
        else {
            "first": _night(one.onset.first),
            "before": _reliability(one.onset.before),
            "after": _reliability(one.onset.after),
            "changed": _differences(one.onset.changed),
        },
        "load": None
        if one.load is None
        else {"failed": one.load.first, "passed": one.load.second, "p": one.load.p},
        "timeline": differed(one),
    }


def _trend(one: Trend) -> dict[str, Any]:
    return {
        "name": one.name,
        "unit": one.unit,
        "qemu": one.qemu,
        "shape": one.shape.value,
        "first": _night(one.first),
        "factor": one.factor,
        "of": one.of,
        "changed": _differences(one.changed),
        "load": None
        if one.load is None
        else {"before": one.load.first, "after": one.load.second, "p": one.load.p},
        "series": [
            {"test": _place(moved.series.place), "before": moved.change.before, "after": moved.change.after}
            for moved in one.moved
        ],
    }


def _night(entry: Entry | None) -> dict[str, Any] | None:
    if entry is None:
        return None
    qemu = entry.qemu
    return {
        "run": entry.run.uuid,
        "begun": entry.run.begun,
        "qemu": qemu.name if qemu else None,
        "version": qemu.version if qemu else None,
        "package_version": qemu.package_version if qemu else None,
        "build_id": qemu.build_id if qemu else None,
        "git_describe": qemu.git_describe if qemu else None,
        "kernel_version": entry.cell.kernel_version if entry.cell else None,
        "harness_commit": entry.run.harness_commit,
        "host": entry.run.host,
    }


def _reliability(of: Reliability) -> dict[str, Any]:
    low, high = of.interval
    return {"failures": of.failures, "attempts": of.attempts, "low": round(low, 4), "high": round(high, 4)}


def _differences(changed: Iterable[Difference]) -> list[dict[str, str]]:
    return [{"what": one.what.rstrip(":"), "before": one.before, "after": one.after} for one in changed]


def _places(places: Iterable[Place]) -> list[dict[str, str]]:
    return [_place(place) for place in dict.fromkeys(places)]


def _place(place: Place) -> dict[str, str]:
    return {
        "test": place.test,
        "qemu": place.qemu,
        "arch": place.arch,
        "kernel": place.kernel,
        "machine_type": place.machine_type,
    }
