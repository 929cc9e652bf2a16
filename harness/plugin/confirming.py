"""``--confirm N``: a test that failed, and is no known bug, is run N more times at the end of the run.

It is run in the process that ran it, after all tests of that process, in fresh guests and with artefact
its own folders. The further runs are recorded and shown; they change neither the outcome of the test nor
the exit status. So that a QEMU on which everything fails does not take four times as long, each process runs
a limited number of tests again.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Any, Literal

import pytest

from harness.plugin.fixtures import AGAIN
from harness.plugin.options import is_worker, option
from harness.plugin.outcomes import COLLECTOR, FACTS, outcome_of, worst
from harness.report.summary import Again, Outcome

_OPTION = "confirm"
#: How often, when the run is recorded and the user said nothing else.
_DEFAULT = 3
#: How many tests a process runs again.
_MOST = 20
_WORKER_KEY = "harness_again"
#: The reports of a test that is run again.
_REPORTS = pytest.StashKey[list[pytest.TestReport]]()
_CONFIRMED = pytest.StashKey["_Confirmed"]()


def times(config: pytest.Config) -> int:
    """How often a failed test is run again (``--confirm``).

    :raises pytest.UsageError: when what was given is no number.
    """
    given = option(config, _OPTION)
    if given is None:
        # A user who looks at the machines of a failure, or at its frames, does not want to see it again.
        looks = option(config, "stay-on-failure") or config.getoption("usepdb", False)
        return _DEFAULT if option(config, "record") and not looks else 0
    if not given.isdecimal():
        raise pytest.UsageError(f"--{_OPTION} {given}: write a number, such as {_DEFAULT}; 0 switches it off")
    return int(given)


class _Confirmed:
    """What failed in this process, and the further runs.

    :ivar left_out: how many failed tests were not run again, because they were too many.
    """

    def __init__(self) -> None:
        self.failed: dict[str, None] = {}
        self.again: dict[str, list[Again]] = {}
        self.left_out = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a failed test that is to be confirmed."""
        if outcome_of(report)[0] in (Outcome.FAILED, Outcome.FIXED):
            self.failed[report.nodeid] = None


def pytest_configure(config: pytest.Config) -> None:
    """Watch for failures that are to be confirmed."""
    if times(config) and not config.getoption("collectonly"):
        config.stash[_CONFIRMED] = _Confirmed()
        config.pluginmanager.register(config.stash[_CONFIRMED])


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, object, object]:
    """Run again what failed (``--confirm``), when everything else has run."""
    try:
        ended = yield
    except session.Failed:  # With -x or --maxfail.
        _confirm(session)
        raise
    _confirm(session)
    return ended


def _confirm(session: pytest.Session) -> None:
    config = session.config
    confirmed = config.stash.get(_CONFIRMED, None)
    # A process with workers collects no items.
    if confirmed is None or not confirmed.failed or config.pluginmanager.hasplugin("dsession"):
        return
    items = [item for item in session.items if item.nodeid in confirmed.failed]
    confirmed.left_out = len(items[_MOST:])
    number = times(config)
    _say(config, f"harness: running {len(items[:_MOST])} failed tests again, {number} times each")
    for item in items[:_MOST]:
        confirmed.again[item.nodeid] = [_run(item, again) for again in range(1, number + 1)]


def _say(config: pytest.Config, line: str) -> None:
    terminal = config.pluginmanager.getplugin("terminalreporter")
    if terminal is not None and not is_worker(config):
        terminal.ensure_newline()
        terminal.write_line(line)


def _run(item: pytest.Item, number: int) -> Again:
    """Run a failed test once more."""
    fresh = _collected_again(item)
    reports: list[pytest.TestReport] = []
    fresh.stash[AGAIN], fresh.stash[_REPORTS] = number, reports
    # The hook, and not the phases alone: other plugins wrap it, such as the one that explains assertions.
    fresh.ihook.pytest_runtest_protocol(item=fresh, nextitem=None)
    return _folded(reports)


def _collected_again(item: pytest.Item) -> pytest.Item:
    """The failed test as a new object, to run it again: pytest runs each only once."""
    assert isinstance(item.parent, pytest.Collector)
    fresh = next(
        found
        for found in item.parent.collect()
        if isinstance(found, pytest.Item) and found.nodeid == item.nodeid
    )
    # What others have marked after the collection, or in the set-up.
    for mark in item.own_markers:
        if mark not in fresh.own_markers:
            fresh.add_marker(getattr(pytest.mark, mark.name).with_args(*mark.args, **mark.kwargs))
    return fresh


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> object:
    """Run a test that is run again without publishing its reports: it has its outcome already."""
    if _REPORTS not in item.stash:
        return None
    reports = item.stash[_REPORTS]
    reports.append(_phase(item, "setup"))
    if reports[0].passed:
        reports.append(_phase(item, "call"))
    reports.append(_phase(item, "teardown", nextitem=None))
    return True


def _phase(
    item: pytest.Item, when: Literal["setup", "call", "teardown"], **arguments: None
) -> pytest.TestReport:
    run = getattr(item.ihook, f"pytest_runtest_{when}")
    call = pytest.CallInfo.from_call(
        lambda: run(item=item, **arguments), when=when, reraise=(pytest.exit.Exception, KeyboardInterrupt)
    )
    report: pytest.TestReport = item.ihook.pytest_runtest_makereport(item=item, call=call)
    return report


def _folded(reports: Iterable[pytest.TestReport]) -> Again:
    """One result from the phases of a test that was run again."""
    facts: dict[str, Any] = {}
    outcomes, seconds = [], 0.0
    for report in reports:
        facts |= getattr(report, FACTS, {})
        outcomes.append(outcome_of(report)[0])
        seconds += report.duration
    return Again(
        outcome=worst(outcomes),
        signature=facts.get("signature", ""),
        seconds=round(seconds, 3),
        artifacts=facts.get("artifacts", ""),
        load=facts.get("load"),
    )


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand the runs of failed tests again to what collects the results; from a worker, send them."""
    config = session.config
    confirmed = config.stash.get(_CONFIRMED, None)
    if confirmed is None:
        return
    if hasattr(config, "workeroutput"):
        config.workeroutput[_WORKER_KEY] = {
            "left_out": confirmed.left_out,
            "again": {
                test: [one.model_dump(mode="json") for one in runs] for test, runs in confirmed.again.items()
            },
        }
    elif COLLECTOR in config.stash:
        for test, runs in confirmed.again.items():
            config.stash[COLLECTOR].run_again(test, runs)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Receive the runs of failed tests again from a worker."""
    sent = getattr(node, "workeroutput", {}).get(_WORKER_KEY)
    confirmed = node.config.stash.get(_CONFIRMED, None)
    if sent is not None and confirmed is not None:
        confirmed.left_out += sent["left_out"]
        confirmed.again |= {test: [Again(**one) for one in runs] for test, runs in sent["again"].items()}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say how many failed tests were not run again."""
    confirmed = config.stash.get(_CONFIRMED, None)
    if confirmed is not None and confirmed.left_out:
        terminalreporter.write_line(
            f"not run again: {confirmed.left_out} more tests that failed (each process runs {_MOST} of them)"
        )
