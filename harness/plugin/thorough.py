"""What a default run leaves out: the scenarios that are marked ``thorough``.

A default run asserts every guarantee, with every way of hotplug, in some minutes. ``--thorough`` also
runs the scenarios that it leaves out: the same guarantees with other requests, users, streams or endings.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from harness.plugin.marks import item_asks_for_guest
from harness.plugin.options import option

_LEFT_OUT = pytest.StashKey[int]()
_WORKER_KEY = "harness_left_out"


def by_default(*names: str | int, of: Iterable[str | int]) -> list[Any]:
    """Values for ``parametrize``: all ``of`` these, of which a default run takes ``names``.

    :raises ValueError: for a name that is none of them.
    """
    known = list(of)
    if unknown := set(names) - set(known):
        raise ValueError(
            f"no such parameter: {', '.join(sorted(map(str, unknown)))} (known: {', '.join(map(str, known))})"
        )
    return [name if name in names else pytest.param(name, marks=pytest.mark.thorough) for name in known]


# Last, so that what -k and -m deselect is not counted as left out; but before the rest is sorted.
@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what a default run does not have."""
    left_out = not_by_default(config, items)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        config.stash[_LEFT_OUT] = len(left_out)
        items[:] = [item for item in items if item not in set(left_out)]


def not_by_default(config: pytest.Config, items: Iterable[pytest.Item]) -> list[pytest.Item]:
    """What this run leaves out: the ``thorough`` ones that the user did not name (``FILE::TEST``).

    :raises pytest.UsageError: when a scenario is marked both ``always`` and ``thorough``, or when the mark
        ``thorough`` names a machine type that does not exist.
    """
    # Others may have a mark of this name for tests that have nothing to do with guests.
    items = [item for item in items if item_asks_for_guest(item)]
    for item in items:
        _check_machines(item)
        if item.get_closest_marker("always") and _is_wholly_thorough(item):
            raise pytest.UsageError(f"{item.nodeid} is marked always and thorough: it can be one of them")
    if option(config, "thorough") or option(config, "full"):
        return []
    return [item for item in items if _is_thorough(item) and not _is_named(item)]


def _check_machines(item: pytest.Item) -> None:
    from harness.qemu.machine_types import MACHINE_TYPES

    for mark in item.iter_markers("thorough"):
        for name in mark.args:
            if name not in MACHINE_TYPES:
                known = ", ".join(MACHINE_TYPES)
                raise pytest.UsageError(f"{item.nodeid}: thorough names {name!r}; write one of {known}")


def _is_wholly_thorough(item: pytest.Item) -> bool:
    """Whether the scenario itself is ``thorough``.

    Not only a parameter (``by_default``) or a machine type.
    """
    callspec = getattr(item, "callspec", None)
    of_parameter = list(callspec.marks) if callspec else []
    return any(not mark.args and mark not in of_parameter for mark in item.iter_markers("thorough"))


def _is_thorough(item: pytest.Item) -> bool:
    """Whether a test is ``thorough``: wholly, or on its machine type.

    Machine types that the user gave are never left out.
    """
    callspec, given = getattr(item, "callspec", None), option(item.config, "machine")
    machine = callspec.params.get("machine_name") if callspec and not given else None
    return any(not mark.args or machine in mark.args for mark in item.iter_markers("thorough"))


def _is_named(item: pytest.Item) -> bool:
    began_in = item.config.invocation_params.dir
    named = [arg.partition("::") for arg in item.config.args if "::" in arg]
    return any(
        f"{item.name}[".startswith(f"{name}[") and Path(began_in, path).resolve() == item.path
        for path, _, name in named
    )


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Send the number of tests left out from a worker, which has collected."""
    config = session.config
    if hasattr(config, "workeroutput"):
        config.workeroutput[_WORKER_KEY] = config.stash.get(_LEFT_OUT, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Receive the number of tests left out from a worker: all workers leave out the same tests."""
    sent = getattr(node, "workeroutput", {}).get(_WORKER_KEY)
    if sent is not None:
        node.config.stash[_LEFT_OUT] = sent


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print how many tests a default run has left out."""
    left_out = config.stash.get(_LEFT_OUT, 0)
    if left_out:
        terminalreporter.write_line(f"tests left out of a default run: {left_out} (--thorough runs them)")
