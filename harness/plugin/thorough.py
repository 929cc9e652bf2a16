"""What a default run leaves out: the scenarios that are marked ``thorough``.

A default run is for before each commit: every guarantee, on every way of hotplug, in some minutes. What is
left out goes the same ways with other requests, users, streams or endings; ``--thorough`` runs it as well.
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


def by_default(*names: str, of: Iterable[str]) -> list[Any]:
    """Values for ``parametrize``: all ``of`` these, of which a default run takes ``names``.

    :raises ValueError: for a name that is none of them.
    """
    known = list(of)
    if unknown := set(names) - set(known):
        raise ValueError(f"no such parameter: {', '.join(sorted(unknown))} (known: {', '.join(known)})")
    return [name if name in names else pytest.param(name, marks=pytest.mark.thorough) for name in known]


# Last, so that what -k and -m do not select is not told as left out; but before the rest is put in order.
@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave them out."""
    left_out = not_by_default(config, items)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        config.stash[_LEFT_OUT] = len(left_out)
        items[:] = [item for item in items if item not in set(left_out)]


def not_by_default(config: pytest.Config, items: Iterable[pytest.Item]) -> list[pytest.Item]:
    """What this run leaves out: the ``thorough`` ones, but for those that were asked for by name
    (``FILE::TEST``).

    :raises pytest.UsageError: when a scenario is marked both ``always`` and ``thorough``.
    """
    # Others may have a mark of this name for tests that have nothing to do with guests.
    items = [item for item in items if item_asks_for_guest(item)]
    for item in items:
        if item.get_closest_marker("always") and _is_wholly_thorough(item):
            raise pytest.UsageError(f"{item.nodeid} is marked always and thorough: it can be one of them")
    if option(config, "thorough") or option(config, "full"):
        return []
    return [item for item in items if _is_thorough(item) and not _is_named(item)]


def _is_wholly_thorough(item: pytest.Item) -> bool:
    """The scenario itself, and not only a parameter of it (``by_default``) or a machine type."""
    callspec = getattr(item, "callspec", None)
    of_parameter = list(callspec.marks) if callspec else []
    return any(not mark.args and mark not in of_parameter for mark in item.iter_markers("thorough"))


def _is_thorough(item: pytest.Item) -> bool:
    """Wholly, or on its machine type; that is nothing to one who gave the types."""
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
    """An xdist worker has collected; the process that the user started has not."""
    config = session.config
    if hasattr(config, "workeroutput"):
        config.workeroutput[_WORKER_KEY] = config.stash.get(_LEFT_OUT, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over what a worker has left out: all of them leave out the same."""
    told = getattr(node, "workeroutput", {}).get(_WORKER_KEY)
    if told is not None:
        node.config.stash[_LEFT_OUT] = told


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say it."""
    left_out = config.stash.get(_LEFT_OUT, 0)
    if left_out:
        terminalreporter.write_line(f"tests left out of a default run: {left_out} (--thorough runs them)")
