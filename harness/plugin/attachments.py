"""The files of a failed test as attachments of its JUnit test case, for GitLab, Jenkins and Azure DevOps.

All three read lines of the form ``[[ATTACHMENT|path]]`` in a test case's ``system-out``. pytest writes that
element from the sections of a report whose names begin with "Captured stdout", when its ini option
``junit_logging`` says ``system-out``.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

from harness.artifacts import BACKTRACE, HISTORY, SANITIZER
from harness.plugin.fixtures import FOLDER

#: Its beginning is what pytest looks for. The terminal shows it only when the teardown itself fails.
SECTION = "Captured stdout of the harness: attachments"
#: The first ones; GitLab shows one alone.
_FIRST = (BACKTRACE, SANITIZER, HISTORY)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Attach the files of the test's folder to its last report; those of passed tests are gone by then."""
    report = yield
    artifacts = item.stash.get(FOLDER, None)
    wanted = report.when == "teardown" and item.config.getoption("xmlpath", None)
    if wanted and artifacts is not None and artifacts.folder.is_dir():
        lines = attachments(artifacts.folder, item.config.invocation_params.dir)
        report.sections.append((SECTION, "\n".join(lines)))
    return report


def attachments(folder: Path, start: Path) -> list[str]:
    """A line for each file in ``folder`` that is not empty: ``[[ATTACHMENT|path]]``.

    A path below ``start`` is relative to it: GitLab wants paths in the project's folder, Jenkins takes them
    as paths in the workspace, Azure DevOps as relative to the XML file. Any other path is absolute.
    """
    files = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]
    files.sort(key=lambda path: (_FIRST.index(path.name) if path.name in _FIRST else len(_FIRST), path))
    return [f"[[ATTACHMENT|{_relative(path, start)}]]" for path in files]


def _relative(path: Path, start: Path) -> Path:
    return path.relative_to(start) if path.is_relative_to(start) else path.absolute()
