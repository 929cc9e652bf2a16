"""How a failure is shown: the cause, the lines of the scenario, the last exchanges, the folder."""

from __future__ import annotations

import sys
from collections.abc import Generator

import pytest

from harness.artifacts import Artifacts
from harness.plugin.fixtures import AGAIN, FOLDER
from harness.plugin.folders import ROOT
from harness.plugin.judging import JUDGEMENTS
from harness.plugin.options import about_taken, option
from harness.plugin.provisioning import CELLS
from harness.report.evidence import last_lines
from harness.testbed import Cell

_FAILED = pytest.StashKey[bool]()
_HEADED = pytest.StashKey[bool]()


def _hide_own_frames() -> None:
    """Hide the harness's own frames from tracebacks (``--full-trace`` shows them)."""
    for name, module in list(sys.modules.items()):
        if name.startswith("harness.") and not name.startswith("harness.tests"):
            module.__dict__["__tracebackhide__"] = True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the evidence to a failure; remove the folder of a test that passed.

    A further run of a test that failed keeps its folder: its record says what differed.
    """
    if call.excinfo is not None:  # Every module with a frame in it is imported by now.
        _hide_own_frames()
    report = yield
    artifacts = item.stash.get(FOLDER, None)
    if artifacts is None:
        return report
    if report.failed or hasattr(report, "wasxfail"):
        item.stash[_FAILED] = True
    if report.failed:
        report.sections += _sections(artifacts)
        _add_judgements(item, report)
    if (
        report.when == "teardown"
        and not item.stash.get(_FAILED, False)
        and AGAIN not in item.stash
        and not option(item.config, "keep-artifacts")
    ):
        artifacts.discard()
    return report


def _sections(artifacts: Artifacts) -> list[tuple[str, str]]:
    sections = [("artefacts", str(artifacts.folder))]
    return sections + [(title, "\n".join(lines)) for title, lines in last_lines(artifacts)]


def _add_judgements(item: pytest.Item, report: pytest.TestReport) -> None:
    lines = [
        f"{found.verdict.value:8} {found.checker}: {found.summary}"
        for found in item.stash.get(JUDGEMENTS, [])
        if found.verdict.value != "valid"
    ]
    if lines:
        report.sections.append(("checkers", "\n".join(lines)))


def pytest_report_header(config: pytest.Config) -> list[str]:
    """One line at the start of the report for each cell of this run."""
    return _header(config) if CELLS in config.stash else []


def pytest_report_collectionfinish(config: pytest.Config) -> list[str]:
    """The lines of this run's cells, where it was not known before the collection that guests are wanted."""
    return [] if config.stash.get(_HEADED, False) else _header(config)


def _header(config: pytest.Config) -> list[str]:
    config.stash[_HEADED] = True
    return [*about_taken(config), *(_line(cell) for cell in config.stash.get(CELLS, []))]


def _line(cell: Cell) -> str:
    what = f"QEMU {cell.capabilities.version_text} ({cell.qemu.binary}), Linux {cell.image.kernel_version}"
    return f"cell: {what}, {cell.machine_type.name}, {cell.accel.name} ({cell.accel.reason})"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the folder with the artefacts of what failed."""
    root = config.stash[ROOT]
    if root.exists() and (terminalreporter.stats.get("failed") or terminalreporter.stats.get("error")):
        terminalreporter.write_line(f"artefacts of what failed: {root}")
