"""One result a test, and the summary at the end: each guarantee on each QEMU.

Each process adds to its reports what a test ran on; the process that the user started collects them.
These facts are an attribute of the report, which pytest and pytest-xdist keep as they keep ``wasxfail``.
They are not in ``user_properties``, whose names and values belong to the user. JUnit XML has the same
facts as properties of the test case, beside the user's own.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from harness.checkers import leaks
from harness.errors import SetupError
from harness.guarantees import of_test
from harness.layout import SCENARIOS_PACKAGE, checkout
from harness.matrix import architecture_of
from harness.plugin.fixtures import FOLDER
from harness.plugin.known_bugs import LISTED, OTHERWISE
from harness.plugin.marks import AXES, guarantee_of
from harness.plugin.options import is_worker, option
from harness.plugin.provisioning import MATRIX
from harness.plugin.sharding import SHARD
from harness.plugin.strict import is_strict, wanted
from harness.report import summary
from harness.report.page.page import write_run_page
from harness.report.summary import About, Again, Outcome, Result, Run
from harness.report.tables import put

#: Characters: a narrower table has one word a line.
_LEAST_WIDTH = 80
_XPASS = "[XPASS(strict)]"
_NO_REASON = "no reason given"
#: The attribute of a report with facts of its test: fields of its :class:`Result`.
FACTS = "harness_facts"
COLLECTOR = pytest.StashKey["Collector"]()
#: The circumstances of the run, where its summary is written or recorded.
ABOUT = pytest.StashKey[About]()
#: From the best to the worst: of two phases of a test the worse one counts.
_BADNESS = (Outcome.PASSED, Outcome.SKIPPED, Outcome.KNOWN, Outcome.FIXED, Outcome.FAILED)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add to the report what the test ran on: its outcome's properties."""
    facts: dict[str, Any] = dict(_properties(item))
    if call.when == "teardown":  # The known bugs are final now, and JUnit XML reads the properties now.
        item.user_properties += facts.items()
    artifacts = item.stash.get(FOLDER, None)
    if call.when == "call" and artifacts is not None and "leak_hunt" in getattr(item, "fixturenames", ()):
        facts["leaks"] = leaks(artifacts.folder)
        item.user_properties.append(("leaks", json.dumps(facts["leaks"])))
    report = yield
    setattr(report, FACTS, facts)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, dict[str, Any] | None, dict[str, Any] | None]:
    """Let a user's property have any value: pytest-xdist can send only plain values."""
    data = yield
    if data and "user_properties" in data:
        data["user_properties"] = [(_sendable(k), _sendable(v)) for k, v in data["user_properties"]]
    return data


def _sendable(value: object) -> Any:
    """A property's plain number as it is; anything else as the text that JUnit XML would have."""
    if value is None or type(value) in (bool, int, float):
        return value
    try:
        text = str(value)
    except Exception as exc:  # Whatever a user's own class raises.
        text = f"<{type(value).__name__}: {type(exc).__name__} in str()>"
    return text.encode("utf-8", "backslashreplace").decode()


def _properties(item: pytest.Item) -> dict[str, str]:
    guarantee, callspec = guarantee_of(item), getattr(item, "callspec", None)
    if guarantee is None:
        return {}
    # Where a pin left nothing of an axis, pytest skips the test, with a parameter that is no name.
    params = callspec.params if callspec else {}
    qemu, kernel, machine = (_name_of(params.get(axis)) for axis in AXES)
    if not qemu:
        return {"guarantee": guarantee}
    matrix = item.config.stash[MATRIX]
    architecture = architecture_of(machine)
    install, capabilities = matrix.qemu(qemu, architecture)
    return {
        "guarantee": guarantee,
        "scenario": summary.scenario_of(_id(item), qemu, kernel),
        "qemu": install.name,
        "version": capabilities.version_text,
        "kernel": matrix.image(kernel, architecture).kernel_version if kernel else "",
        "machine": machine,
        **item.stash.get(LISTED, {}),
    }


def _id(item: pytest.Item) -> str:
    """pytest's id of a result; of the project's scenarios the same wherever they are installed.

    So runs compare.
    """
    ours = checkout() is None and item.path.parent.name == SCENARIOS_PACKAGE
    return f"scenarios/{item.path.name}::{item.nodeid.partition('::')[2]}" if ours else item.nodeid


def _name_of(parameter: object) -> str:
    return parameter if isinstance(parameter, str) else ""


class Collector:
    """Folds the reports of all phases of all tests into results; registered in one process only."""

    def __init__(self) -> None:
        self._found: dict[str, Result] = {}
        self._ended: set[str] = set()

    @property
    def results(self) -> tuple[Result, ...]:
        """The results of the tests that ended, folded from the outcomes of their phases.

        A test that was interrupted has passed its set-up only.
        """
        return tuple(result for test, result in self._found.items() if test in self._ended)

    def result(self, test: str) -> Result | None:
        """The result of a test that ended, folded from the outcomes of its phases."""
        return self._found.get(test) if test in self._ended else None

    def run_again(self, test: str, again: Iterable[Again]) -> None:
        """Add further runs of a failed test to its result; they do not change its outcome."""
        if test in self._found:
            self._found[test] = self._found[test].model_copy(update={"again": tuple(again)})

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take a phase of a test into account for its outcome."""
        # A plugin of the user's may make further reports (of a subtest, of a test that is run again).
        facts: dict[str, Any] = getattr(report, FACTS, {})
        # A worker that died with a test leaves a report with nothing but the test's id.
        before = self._found.get(report.nodeid)
        guarantee = facts.get("guarantee") or (before.guarantee if before else of_test(report.nodeid))
        if guarantee is None:
            return
        outcome, why = outcome_of(report)
        if report.failed or report.skipped or (report.passed and report.when == "call"):
            self._ended.add(report.nodeid)
        seconds = report.duration + (before.seconds if before else 0.0)
        known = (
            before.model_dump(exclude={"seconds"})
            if before
            else {"qemu": summary.NO_QEMU, "outcome": outcome, "why": why}
        )
        worse = before is None or _BADNESS.index(outcome) > _BADNESS.index(before.outcome)
        found = {"outcome": outcome, "why": why} if worse else {}
        own = {"test": report.nodeid, "guarantee": guarantee, "seconds": round(seconds, 3)}
        self._found[report.nodeid] = Result(**{**known, **facts, **found, **own})


def worst(outcomes: Iterable[Outcome]) -> Outcome:
    """The outcome of a test, from those of its phases."""
    return max(outcomes, key=_BADNESS.index)


def outcome_of(report: pytest.TestReport) -> tuple[Outcome, str]:
    """The outcome of a phase of a test, and the first line of its failure or the reason of its skip."""
    if report.failed:
        text = report.longreprtext
        fixed = next((line for line in text.splitlines() if line.startswith(_XPASS)), None)
        if fixed is not None:
            return Outcome.FIXED, fixed.removeprefix(_XPASS).strip()
        return Outcome.FAILED, _why(report)
    if hasattr(report, "wasxfail") and not report.passed:
        expected = report.wasxfail.removeprefix("reason: ")
        # xfail(run=False): the test asserted nothing (pytest: skipping.py, pytest_runtest_setup).
        return (Outcome.SKIPPED if expected.startswith("[NOTRUN]") else Outcome.KNOWN), expected
    if report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
        return Outcome.SKIPPED, reason.removeprefix("Skipped: ")
    return Outcome.PASSED, ""


def _why(report: pytest.TestReport) -> str:
    """The first line of a failed outcome, and what the known bugs of the test would have looked like."""
    crash = getattr(report.longrepr, "reprcrash", None)
    lines = crash.message.splitlines() if crash is not None else []
    return "; ".join([first_line(report), *(line for line in lines if line.startswith(OTHERWISE))])


def first_line(report: pytest.TestReport) -> str:
    """The first line of a failure, for the test's outcome."""
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None:
        lines = crash.message.strip().splitlines()
        return str(lines[0]) if lines else _NO_REASON
    # A fixture that does not exist, for example. longreprtext would begin with the name of the worker.
    lines = str(report.longrepr).strip().splitlines() or [_NO_REASON]
    return next((line[1:].strip() for line in lines if line.startswith("E ")), lines[0])


def pytest_configure(config: pytest.Config) -> None:
    """Collect outcomes in the process that the user started."""
    if is_worker(config) or config.getoption("collectonly"):
        return
    given = option(config, "summary")
    if given and Path(config.invocation_params.dir, given).is_file():
        raise pytest.UsageError(f"--summary {given}: is a file; give a folder")
    config.stash[COLLECTOR] = Collector()
    config.pluginmanager.register(config.stash[COLLECTOR])


def _run_of(config: pytest.Config) -> Run | None:
    collector = config.stash.get(COLLECTOR, None)
    if collector is None:
        return None
    about = config.stash.get(ABOUT, None)
    run = Run(
        results=collector.results,
        shard=config.stash.get(SHARD, None),
        wanted=wanted(config),
        about=(about,) if about else (),
    )
    return run if run.results or run.wanted else None


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With ``--strict``: a guarantee that nothing asserted is a failure."""
    run = _run_of(session.config)
    if run is not None and run.not_asserted and is_strict(session.config) and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the tables and what was not asserted, and write the files."""
    run = _run_of(config)
    if run is None:
        return
    out = io.StringIO()
    width = max(_LEAST_WIDTH, shutil.get_terminal_size().columns)
    console = Console(file=out, force_terminal=terminalreporter.hasmarkup, width=width, emoji=False)
    for table in summary.tables(run):
        put(table, console)
    terminalreporter.write_sep("=", "guarantees")
    terminalreporter.write_line(out.getvalue().rstrip())
    _write_gaps(terminalreporter, run, strict=is_strict(config))
    given = option(config, "summary")
    if given:
        folder = Path(config.invocation_params.dir, given)
        try:
            summary.write(run, folder)
            write_run_page(run, folder)
        except OSError as exc:
            raise pytest.UsageError(f"--summary {given}: {exc.strerror}") from None
        except SetupError as exc:
            raise pytest.UsageError(f"--summary {given}: {exc.message}") from None
        terminalreporter.write_line(f"summary: {folder / summary.NAME}, {folder / summary.PAGE}")


def _write_gaps(terminal: pytest.TerminalReporter, run: Run, *, strict: bool) -> None:
    for gap in run.not_asserted:
        terminal.write_line(str(gap), red=strict, yellow=not strict, bold=True)
    if strict and run.not_asserted:
        terminal.write_line(f"--strict: {len(run.not_asserted)} not asserted: the run fails", red=True)
    if strict and run.shard is not None:
        terminal.write_line(
            "--strict: this is a shard; harness merge --strict checks that all guarantees were asserted"
        )
