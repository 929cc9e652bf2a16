"""``--shard I/N``: one of N parts of a run, for N jobs of a CI system.

The parts take the same time each. That is right for N machines of the same speed. With ``--runners R`` the
parts are for R machines, each of which takes the next part when it is free (R < N): the first parts are long
and the last ones short, so that fast and slow machines end at about the same time (*guided self-scheduling*,
Polychronopoulos and Kuck 1987). With six parts a machine, machines whose speeds differ by a factor of four
end within a tenth of the shortest possible time (``harness/tests/plugin/test_sharding.py``).

Every shard has to split the same tests by the same durations; a hash of both goes into its summary, and
``harness merge`` refuses shards that differ in it.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import os
import re
from typing import Any

import pytest

from harness.plugin import ci_jobs
from harness.plugin.marks import guarantee_of
from harness.plugin.options import option
from harness.plugin.schedule import expected_s
from harness.report.summary import Shard

SHARD = pytest.StashKey[Shard]()
_WORKER_KEY = "harness_shard"
#: The least that a test counts, so that tests without a guest are spread over the shards as well.
_LEAST_S = 0.01
#: With ``--runners``: a part is this share of what a machine would get of the rest, and not less than this
#: share of an equal part. Chosen by simulation, for six parts a machine.
_SHARE, _LEAST_SHARE = 1 / 2.5, 0.05


def wanted(config: pytest.Config) -> tuple[int, int] | None:
    """The shard that was asked for, from 1, and the number of shards.

    :raises pytest.UsageError: when what was given is no part.
    """
    given = option(config, "shard")
    if given is None:
        return None
    if automatic := re.fullmatch(r"auto(?:/([1-9]\d*))?", given):
        return ci_jobs.part(os.environ, int(automatic[1]) if automatic[1] else None)
    match = re.fullmatch(r"(\d+)/(\d+)", given)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise pytest.UsageError(f"--shard {given}: write I/N with 1 <= I <= N, such as 1/3, or auto")
    return int(match[1]), int(match[2])


def _runners(config: pytest.Config, count: int | None) -> int | None:
    given = option(config, "runners")
    if given is None:
        return None
    if count is None:
        raise pytest.UsageError("--runners says who takes the parts of a run: give --shard as well")
    if not given.isdecimal() or not 1 <= int(given) <= count:
        raise pytest.UsageError(f"--runners {given}: write a number from 1 to that of the parts, {count}")
    return int(given)


def pytest_configure(config: pytest.Config) -> None:
    """Check ``--shard`` and ``--runners``."""
    part = wanted(config)
    _runners(config, part[1] if part else None)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep this shard's tests. Each test, the slowest first, goes to the shard with the smallest sum."""
    part = wanted(config)
    if part is None:
        return
    index, count = part
    runners = _runners(config, count)
    costs = {item.nodeid: expected_s(item, config) for item in items}
    mine = parts(costs, count, runners)[index - 1]
    summarised = [item for item in items if item.nodeid in mine and guarantee_of(item) is not None]
    config.stash[SHARD] = Shard(
        index=index, count=count, collected=_hash(costs, runners), tests=len(summarised)
    )
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in mine])
    items[:] = [item for item in items if item.nodeid in mine]


def parts(costs: dict[str, float], count: int, runners: int | None = None) -> list[set[str]]:
    """Tests by the seconds that they take, in ``count`` shards.

    :param runners: how many machines take them, one after the other; by default each part has its own, and
        all are of about the same sum.
    """
    sizes = [1.0] * count if runners is None else _guided(count, runners)
    made: list[set[str]] = [set() for _ in range(count)]
    filled = [(0.0, part) for part in range(count)]  # How much of its size each part has; a heap.
    for test in sorted(costs, key=lambda test: (-costs[test], test)):
        share, part = filled[0]
        made[part].add(test)
        heapq.heapreplace(filled, (share + max(costs[test], _LEAST_S) / sizes[part], part))
    return made


def _guided(count: int, runners: int) -> list[float]:
    """The sizes of shards, as shares of the whole, for machines that take one after the other."""
    sizes, rest = [], 1.0
    for _ in range(count):
        sizes.append(max(rest * _SHARE / runners, _LEAST_SHARE / count))
        rest = max(rest - sizes[-1], 0.0)
    return sizes


def _hash(costs: dict[str, float], runners: int | None) -> str:
    split = [sorted(costs.items()), runners] if runners else sorted(costs.items())
    return hashlib.sha256(json.dumps(split).encode()).hexdigest()[:16]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """``--shard``: send the shard from a worker to the process that the user started.

    The worker has collected.
    """
    config = session.config
    shard = config.stash.get(SHARD, None)
    if shard is not None and hasattr(config, "workeroutput"):
        config.workeroutput[_WORKER_KEY] = shard.model_dump()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """``--shard``: receive which shard this is from a worker."""
    sent = getattr(node, "workeroutput", {}).get(_WORKER_KEY)
    if sent is not None:
        node.config.stash[SHARD] = Shard(**sent)
