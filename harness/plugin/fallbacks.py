"""Fallbacks: what a run did another way, and why. Counted over all tests, and reported at the end of a run.

A fallback is no failure: a guest whose SSH session could not be resumed gets a new connection, a guest
without a template is booted, a leak hunt that cannot profile the heap counts everything else. The tests
pass, so without this report nobody would notice. What happened is read from each test's history.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Generator, Iterable, Iterator

import pytest

from harness.errors import UsageError
from harness.history import Entry, as_mapping, read
from harness.plugin.fixtures import FOLDER
from harness.plugin.judging import JUDGEMENTS
from harness.plugin.options import is_worker
from harness.restore.store import BOOTS_FAST
from harness.testbed import BY_CHOICE

#: The attribute of a report with a test's pairs of what was done and why. An empty reason is no fallback.
_FALLBACKS = "harness_fallbacks"
_ADDED = pytest.StashKey[bool]()
_COUNTED = pytest.StashKey["Counted"]()
#: The name of each fallback, by the note in the history.
_NOT_RESUMED = "guests whose SSH session was not resumed"
_BOOTED = "guests that were booted because there was no template"
_NOT_PROFILED = "leak hunts that did not profile the heap, and counted the rest"
_LOST = {
    "ssh:guestfwd-lost": "SSH sessions that fell silent",
    "ssh:not-moved": "SSH sessions that a migration did not keep",
}


def fallbacks(entries: Iterable[Entry]) -> Iterator[tuple[str, str]]:
    """What was done for each guest of a history, and why; no reason where it was no fallback."""
    for entry in entries:
        if entry.f == "ssh:resumed":
            yield _NOT_RESUMED, "" if entry.value is True else str(entry.value)
        elif entry.f == "guest:started":
            why = as_mapping(entry.value).get("cold", "")
            if why not in BY_CHOICE and not why.endswith(BOOTS_FAST):
                yield _BOOTED, why
        elif entry.f == "leak:heap-sites" and "not_profiled" in as_mapping(entry.value):
            yield _NOT_PROFILED, str(as_mapping(entry.value)["not_profiled"])
        elif entry.f in _LOST:
            yield _LOST[entry.f], str(entry.value)


class Counted:
    """Adds up the fallbacks of all tests; registered in the process that gets the reports of all workers."""

    def __init__(self) -> None:
        self.guests: Counter[str] = Counter()
        self.reasons: Counter[tuple[str, str]] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add the fallbacks of one test."""
        for what, why in getattr(report, _FALLBACKS, ()):
            self.guests[what] += 1
            if why:
                self.reasons[what, _alike(why)] += 1

    def lines(self) -> Iterator[str]:
        """Each kind of fallback, with its reasons, as lines for the terminal."""
        for what in dict.fromkeys(kind for kind, _ in self.reasons):
            reasons = {why: n for (kind, why), n in self.reasons.items() if kind == what}
            counted = f"{sum(reasons.values())}"
            if what in (_NOT_RESUMED, _BOOTED):
                counted += f" of {self.guests[what]}"
            yield f"fallback: {what}: {counted}"
            for why, number in sorted(reasons.items(), key=lambda item: -item[1]):
                yield f"  {number}: {why}"


def _alike(why: str) -> str:
    """A fallback's reason without folders and seconds, which differ from guest to guest."""
    return re.sub(r"\b\d+\.\d+ s\b", "… s", re.sub(r"(?<!\S)/\S*/", "…/", why))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add a test's fallbacks to the first report after its record was judged."""
    report = yield
    if JUDGEMENTS in item.stash and not item.stash.get(_ADDED, False):
        item.stash[_ADDED] = True
        try:
            found = list(fallbacks(read(item.stash[FOLDER].history)))
        except UsageError:  # A record that cannot be read is judged as that.
            found = []
        setattr(report, _FALLBACKS, found)
    return report


def pytest_configure(config: pytest.Config) -> None:
    """Count fallbacks in the process that the user started."""
    if is_worker(config) or config.getoption("collectonly"):
        return
    config.stash[_COUNTED] = Counted()
    config.pluginmanager.register(config.stash[_COUNTED])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Report the fallbacks of all tests."""
    counted = config.stash.get(_COUNTED, None)
    for line in counted.lines() if counted else ():
        terminalreporter.write_line(line, yellow=True)
