"""``--shard I/N``: one of N parts of a run that take the same time each, for N jobs of a CI system.

Every shard has to split the same tests by the same durations; a hash of both goes into its summary, and
``harness merge`` refuses shards that differ in it.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

import pytest

from harness.plugin.marks import guarantee_of
from harness.plugin.options import option
from harness.plugin.schedule import expected_s
from harness.report.summary import Shard

SHARD = pytest.StashKey[Shard]()
_WORKER_KEY = "harness_shard"
#: The least that a test counts, so that tests without a guest are spread over the shards as well.
_LEAST_S = 0.01


def _wanted(config: pytest.Config) -> tuple[int, int] | None:
    given = option(config, "shard")
    if given is None:
        return None
    match = re.fullmatch(r"(\d+)/(\d+)", given)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise pytest.UsageError(f"--shard {given}: write I/N with 1 <= I <= N, such as 1/3")
    return int(match[1]), int(match[2])


def pytest_configure(config: pytest.Config) -> None:
    """Check what was given."""
    _wanted(config)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep this shard's tests. Each test, the slowest first, goes to the shard with the smallest sum."""
    wanted = _wanted(config)
    if wanted is None:
        return
    index, count = wanted
    costs = {item.nodeid: expected_s(item, config) for item in items}
    mine = parts(costs, count)[index - 1]
    summarised = [item for item in items if item.nodeid in mine and guarantee_of(item) is not None]
    config.stash[SHARD] = Shard(index=index, count=count, collected=_hash(costs), tests=len(summarised))
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in mine])
    items[:] = [item for item in items if item.nodeid in mine]


def parts(costs: dict[str, float], count: int) -> list[set[str]]:
    """Tests by the seconds that they take, in ``count`` parts of about the same sum."""
    made: list[set[str]] = [set() for _ in range(count)]
    sums = [0.0] * count
    for test in sorted(costs, key=lambda test: (-costs[test], test)):
        least = sums.index(min(sums))
        made[least].add(test)
        sums[least] += max(costs[test], _LEAST_S)
    return made


def _hash(costs: dict[str, float]) -> str:
    return hashlib.sha256(json.dumps(sorted(costs.items())).encode()).hexdigest()[:16]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Send the shard from a worker, which has collected, to the process that the user started."""
    config = session.config
    shard = config.stash.get(SHARD, None)
    if shard is not None and hasattr(config, "workeroutput"):
        config.workeroutput[_WORKER_KEY] = shard.model_dump()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Receive it from a worker."""
    sent = getattr(node, "workeroutput", {}).get(_WORKER_KEY)
    if sent is not None:
        node.config.stash[SHARD] = Shard(**sent)
