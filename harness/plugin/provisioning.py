"""One matrix a process; provisions and probes once, and turns bad input into one usage error.

The process that the user started does so before a worker has a test, with its progress on the terminal;
workers then find everything in the cache.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness import reaper
from harness.errors import HarnessError
from harness.matrix import Matrix, Selection
from harness.plugin.marks import item_asks_for_guest
from harness.plugin.options import is_worker, option, paths
from harness.qemu.machine_types import chosen
from harness.testbed import Cell

MATRIX = pytest.StashKey[Matrix]()
#: The cells of this run, once they are prepared.
CELLS = pytest.StashKey[list[Cell]]()


def selection_of(config: pytest.Config) -> Selection:
    """The selection that the options make, to be provisioned; names only."""
    machines = chosen(option(config, "arch") or (), option(config, "machine") or ())
    given = {
        "qemus": tuple(option(config, "qemu") or ()),
        "machines": machines,
        "kernels": tuple(option(config, "kernel") or ()),
    }
    data, scale = option(config, "qemu-data"), option(config, "timeout-scale")
    return Selection(
        accel=option(config, "accel"),
        cold=option(config, "cold"),
        qemu_data=None if data is None else Path(data),
        recipes=paths(config, "recipes"),
        timeout_scale="1" if scale is None else scale,
        **{axis: names for axis, names in given.items() if names},
    )


def pytest_configure(config: pytest.Config) -> None:
    """Check what can be checked of the options without touching anything."""
    with usage_errors():
        selection = selection_of(config)
        selection.check()
        config.stash[MATRIX] = Matrix(selection, report=_report)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Provision before the tests are collected, where it is known already that guests are wanted."""
    if not session.config.getoption("collectonly"):
        prepare(session.config)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Provision once the tests are collected, if one that is left asks for a guest."""
    if not session.config.getoption("collectonly") and any(map(item_asks_for_guest, session.items)):
        prepare(session.config)


def prepare(config: pytest.Config) -> None:
    """Provision and probe what the options name; once, and only in the process that the user started.

    :raises pytest.UsageError: for a name that will not do, or when something cannot be provisioned.
    """
    if is_worker(config) or CELLS in config.stash:
        return
    reaper.sweep()
    with usage_errors():
        config.stash[CELLS] = config.stash[MATRIX].prepare()


def _report(line: str) -> None:
    # pytest's capture is not active yet when this runs; stderr keeps stdout for pytest's own report.
    print(f"harness: {line}", file=sys.stderr, flush=True)


@contextmanager
def usage_errors() -> Iterator[None]:
    """While a run is provisioned, turn an error of the harness into pytest's one-line usage error."""
    try:
        yield
    except HarnessError as exc:
        raise pytest.UsageError(str(exc)) from None
