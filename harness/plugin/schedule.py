"""The order in which workers run the scenarios: the slow ones first.

The durations are kept in the cache. Every worker has to collect the same order, so the process that the user
started reads the record once and sends it to the workers.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from harness.errors import UsageError
from harness.plugin.activation import wants_guests
from harness.plugin.options import is_worker, option
from harness.provision import default_cache_root
from harness.report import summary

_SECONDS = pytest.StashKey[dict[str, float]]()
_WORKER_KEY = "harness_seconds"
#: Seconds that a test without a recorded duration is expected to take: a leak hunt, and any other test.
_LEAK_HUNT_S, _OTHER_S = 60.0, 6.0


def record() -> Path:
    """The file of durations by which the order is made: seconds by a test's id."""
    return default_cache_root() / "durations.json"


def pytest_configure(config: pytest.Config) -> None:
    """Read the durations; let xdist send one test at a time, because otherwise their order has no effect."""
    worker = getattr(config, "workerinput", None)
    # A process that learned from its workers that guests are wanted has sent them nothing.
    config.stash[_SECONDS] = worker.get(_WORKER_KEY, {}) if worker else _given(config)
    if wants_guests(config) and getattr(config.option, "maxschedchunk", 1) is None:
        config.option.maxschedchunk = 1
    if not is_worker(config) and wants_guests(config):
        config.pluginmanager.register(Timing())


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Send a worker of pytest-xdist the durations for the order."""
    node.workerinput[_WORKER_KEY] = node.config.stash[_SECONDS]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sort the slow ones first if there are workers; one process keeps the order of the files."""
    if is_worker(config):
        items.sort(key=lambda item: -expected_s(item, config))


def _given(config: pytest.Config) -> dict[str, float]:
    folder = option(config, "durations-from")
    if folder is None:
        return _read()
    try:
        run = summary.read(Path(config.invocation_params.dir, folder))
    except UsageError as exc:
        raise pytest.UsageError(f"--durations-from {folder}: {exc.message}") from None
    return {result.test: result.seconds for result in run.results}


def expected_s(item: pytest.Item, config: pytest.Config) -> float:
    """How many seconds a test will take."""
    seconds = config.stash[_SECONDS]
    fixtures = getattr(item, "fixturenames", ())
    if "cell" not in fixtures:
        return 0.0
    return seconds.get(item.nodeid, _LEAK_HUNT_S if "leak_hunt" in fixtures else _OTHER_S)


class Timing:
    """Adds up the durations of each test's phases; registered in the process that gets all reports."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add the duration of a phase of a test, for the order of a later run."""
        if not report.skipped or hasattr(report, "wasxfail"):
            self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration

    def pytest_sessionfinish(self) -> None:
        """Put this run's durations into the file of durations."""
        if self.seconds:
            _write(_read() | {test: round(took, 2) for test, took in self.seconds.items()})


def _read() -> dict[str, float]:
    """The durations of earlier runs; empty when their file does not exist or cannot be read."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return {
            test: float(took)
            for test, took in json.loads(record().read_text()).items()
            if isinstance(took, int | float)
        }
    return {}


def _write(seconds: dict[str, float]) -> None:
    path = record()
    partial = path.with_suffix(f".{os.getpid()}")
    # Without a record the next run only takes longer.
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial.write_text(json.dumps(seconds, indent=0, sort_keys=True))
        partial.replace(path)
