"""Which guarantees a run is to assert; with ``--strict``, one that nothing asserted is a failure.

``--strict`` is pytest's own option: in pytest 8 an alias of ``--strict-markers``, in pytest 9 all
strictness options at once. A plugin cannot declare another option of that name, so the harness gives it
one more meaning. The ini option ``strict`` of pytest 9 has no effect here: a run on a machine that cannot
do everything fails only where the user asks for it on the command line.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest

from harness.guarantees import UNNAMED
from harness.matrix import architecture_of
from harness.plugin.marks import guarantee_of
from harness.plugin.provisioning import MATRIX
from harness.plugin.thorough import not_by_default
from harness.report.summary import Wanted

#: How many tests of a guarantee on a QEMU (as the user calls it) were selected, and left out by default.
_COUNTS = pytest.StashKey[list[tuple[str, str, int, int]]]()
_WORKER_KEY = "harness_wanted"


def is_strict(config: pytest.Config) -> bool:
    """Whether ``--strict`` was given."""
    return bool(config.getoption("strict", default=False))


# Declared before ``thorough`` and ``sharding`` in harness.plugin: after -k and -m, before those two.
@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Count the guarantees that the user has selected.

    What was deselected, or not collected, was not wanted.
    """
    selected, left_out = _by_guarantee(items), _by_guarantee(not_by_default(config, items))
    config.stash[_COUNTS] = [(*which, count, left_out[which]) for which, count in selected.items()]


def _by_guarantee(items: Iterable[pytest.Item]) -> Counter[tuple[str, str]]:
    found: Counter[tuple[str, str]] = Counter()
    for item in items:
        guarantee, callspec = guarantee_of(item), getattr(item, "callspec", None)
        qemu = callspec.params.get("qemu_name") if callspec else None
        if guarantee not in (None, UNNAMED) and isinstance(qemu, str):
            found[guarantee, qemu] += 1
    return found


def wanted(config: pytest.Config) -> tuple[Wanted, ...]:
    """The guarantees that the run is to assert; for the process that the user started, at its end."""
    matrix = config.stash[MATRIX]
    found = []
    for guarantee, name, tests, left_out in config.stash.get(_COUNTS, []):
        install, capabilities = matrix.qemu(name, architecture_of(matrix.selection.machines[0]))
        version = capabilities.version_text
        found.append(
            Wanted(guarantee=guarantee, qemu=install.name, version=version, tests=tests, left_out=left_out)
        )
    return tuple(found)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Send the counts by guarantee from a worker to the process that the user started.

    Only the worker has collected.
    """
    config = session.config
    if hasattr(config, "workeroutput"):
        config.workeroutput[_WORKER_KEY] = config.stash.get(_COUNTS, [])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Receive the counts by guarantee from a worker: all workers collect the same tests."""
    sent = getattr(node, "workeroutput", {}).get(_WORKER_KEY)
    if sent is not None:
        node.config.stash[_COUNTS] = [tuple(one) for one in sent]
