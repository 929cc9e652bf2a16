"""Which part of a run a job takes, and how well the parts fit the machines that run them.

``test_outcomes`` shows that the parts are together the run.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import cast

import pytest

from harness.plugin import ci_jobs, sharding

#: Every fortieth quantile of the seconds of 4038 recorded tests.
_RECORDED = (
    *(
        0.0,
        0.0,
        0.24,
        0.39,
        0.52,
        0.64,
        0.77,
        0.93,
        1.09,
        1.28,
        1.5,
        1.74,
        2.02,
        2.29,
        2.62,
        3.02,
        3.46,
        3.84,
    ),
    *(4.32, 5.02, 5.62, 6.47, 7.25, 8.31, 9.42, 10.49, 11.65, 12.83, 13.95, 15.68, 17.7, 19.71, 21.87, 24.97),
    *(28.54, 33.2, 42.01, 57.23, 78.79, 118.74, 587.91),
)
_TESTS, _MACHINES = 10_000, 64


@pytest.mark.parametrize(
    ("variables", "part"),
    [
        ({"CI_NODE_INDEX": "1", "CI_NODE_TOTAL": "3"}, (1, 3)),
        ({"CI_NODE_INDEX": "3", "CI_NODE_TOTAL": "3"}, (3, 3)),
        ({"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_COUNT": "4"}, (1, 4)),
        (
            {
                "SLURM_ARRAY_TASK_ID": "7",
                "SLURM_ARRAY_TASK_MIN": "1",
                "SLURM_ARRAY_TASK_COUNT": "4",
                "SLURM_ARRAY_TASK_STEP": "2",
            },
            (4, 4),
        ),
        ({"JOB_COMPLETION_INDEX": "0", "JOB_COMPLETIONS": "5"}, (1, 5)),
        ({"STRATEGY_JOB_INDEX": "4", "STRATEGY_JOB_TOTAL": "5"}, (5, 5)),
        # GitLab sets the total in every job.
        ({"CI_NODE_TOTAL": "1", "JOB_COMPLETION_INDEX": "1", "JOB_COMPLETIONS": "2"}, (2, 2)),
    ],
)
def test_the_part_is_that_of_the_system_that_runs_the_job(
    variables: Mapping[str, str], part: tuple[int, int]
) -> None:
    assert ci_jobs.part(variables) == part


def test_the_user_can_say_how_many_parts_there_are() -> None:
    assert ci_jobs.part({"JOB_COMPLETION_INDEX": "2"}, 4) == (3, 4)
    assert ci_jobs.part({"CI_NODE_INDEX": "2", "CI_NODE_TOTAL": "4"}, 4) == (2, 4)


@pytest.mark.parametrize(
    ("variables", "count", "message"),
    [
        ({}, None, "none of these variables is set: CI_NODE_INDEX .GitLab., SLURM"),
        ({"CI_NODE_TOTAL": "1"}, None, "none of these"),
        ({"CI_NODE_INDEX": "1", "JOB_COMPLETION_INDEX": "0"}, None, "more than one of these"),
        ({"CI_NODE_INDEX": "1"}, None, "CI_NODE_TOTAL of GitLab is not set; or write I/N"),
        (
            {"JOB_COMPLETION_INDEX": "0"},
            None,
            "JOB_COMPLETIONS of Kubernetes is not set; the Job's manifest has to",
        ),
        ({"CI_NODE_INDEX": "one", "CI_NODE_TOTAL": "3"}, None, "CI_NODE_INDEX=one of GitLab is no number"),
        (
            {"CI_NODE_INDEX": "4", "CI_NODE_TOTAL": "3"},
            None,
            "CI_NODE_INDEX=4 of GitLab is none of 3 numbers",
        ),
        ({"CI_NODE_INDEX": "0", "CI_NODE_TOTAL": "3"}, None, "is none of 3 numbers from 1"),
        ({"CI_NODE_INDEX": "1", "CI_NODE_TOTAL": "3"}, 4, "CI_NODE_TOTAL of GitLab is 3, and not 4"),
        (
            {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_COUNT": "3"},
            None,
            "SLURM_ARRAY_TASK_ID=7 of Slurm is none of 3 numbers from 1 in steps of 1",
        ),
    ],
)
def test_variables_that_name_no_part_are_refused_in_one_line(
    variables: Mapping[str, str], count: int | None, message: str
) -> None:
    with pytest.raises(pytest.UsageError, match=message) as refused:
        ci_jobs.part(variables, count)
    assert "\n" not in str(refused.value)


def _config(**given: str) -> pytest.Config:
    values = {f"harness_{name}": value for name, value in given.items()}
    made = SimpleNamespace(getoption=lambda name, default=None: values.get(name, default))
    return cast(pytest.Config, made)


def test_the_part_is_what_the_user_wrote(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sharding.wanted(_config()) is None
    assert sharding.wanted(_config(shard="2/3")) == (2, 3)
    for name, value in (("CI_NODE_INDEX", "2"), ("CI_NODE_TOTAL", "5")):
        monkeypatch.setenv(name, value)
    assert sharding.wanted(_config(shard="auto")) == (2, 5)
    assert sharding.wanted(_config(shard="auto/5")) == (2, 5)


@pytest.mark.parametrize("given", ["0/3", "4/3", "1", "a/b", "auto/0", "auto/x", "automatic"])
def test_what_is_no_part_is_refused(given: str) -> None:
    with pytest.raises(pytest.UsageError, match="write I/N"):
        sharding.pytest_configure(_config(shard=given))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"runners": "2"}, "give --shard as well"),
        ({"runners": "4", "shard": "1/3"}, "a number from 1 to that of the parts, 3"),
        ({"runners": "0", "shard": "1/3"}, "a number from 1"),
        ({"runners": "many", "shard": "1/3"}, "a number from 1"),
    ],
)
def test_a_wrong_number_of_machines_is_refused(given: dict[str, str], message: str) -> None:
    with pytest.raises(pytest.UsageError, match=message):
        sharding.pytest_configure(_config(**given))


def _costs(seed: int) -> dict[str, float]:
    """Tests whose seconds are distributed as recorded ones."""
    drawn = random.Random(seed)
    return {f"t{number}": drawn.choice(_RECORDED) * drawn.uniform(0.8, 1.2) for number in range(_TESTS)}


def _makespan(parts: Sequence[float], speeds: Sequence[float]) -> float:
    """Seconds until the last part has run: each machine takes the next one when it is free."""
    free = [(0.0, machine) for machine in range(len(speeds))]
    for part in parts:
        at, machine = heapq.heappop(free)
        heapq.heappush(free, (at + part / speeds[machine], machine))
    return max(at for at, _ in free)


def _ratio(seed: int, slowest: float, fastest: float, count: int, runners: int | None) -> float:
    """The makespan, by the shortest that is possible."""
    costs, drawn = _costs(seed), random.Random(seed)
    speeds = [drawn.uniform(slowest, fastest) for _ in range(_MACHINES)]
    sums = [sum(costs[test] for test in part) for part in sharding.parts(costs, count, runners)]
    bound = max(sum(costs.values()) / sum(speeds), max(costs.values()) / max(speeds))
    return _makespan(sums, speeds) / bound


@pytest.mark.parametrize(("slowest", "fastest"), [(1.0, 1.0), (0.7, 1.3), (0.5, 1.5), (0.33, 1.33)])
@pytest.mark.parametrize("seed", range(3))
def test_machines_of_unequal_speed_end_at_about_the_same_time(
    seed: int, slowest: float, fastest: float
) -> None:
    """With six parts a machine: within a tenth of the shortest time that is possible."""
    assert _ratio(seed, slowest, fastest, 6 * _MACHINES, _MACHINES) <= 1.1


def test_machines_of_equal_speed_need_no_more_parts_than_there_are() -> None:
    assert _ratio(0, 1.0, 1.0, _MACHINES, None) <= 1.1


def test_equal_parts_do_not_suit_machines_of_unequal_speed() -> None:
    """What ``--runners`` is for, and that the simulation can fail."""
    assert _ratio(0, 0.5, 1.5, _MACHINES, None) > 1.5
    assert _ratio(0, 0.5, 1.5, 6 * _MACHINES, None) > 1.1


def test_each_test_is_in_one_part_also_with_machines() -> None:
    costs = _costs(0)
    parts = sharding.parts(costs, 100, 10)
    assert sorted(test for part in parts for test in part) == sorted(costs)
    sums = [sum(costs[test] for test in part) for part in parts]
    assert sums[0] > 10 * sums[-1]


def test_shards_for_another_number_of_machines_do_not_fit_together() -> None:
    assert len({sharding._hash({"t": 1.0}, runners) for runners in (None, 2, 3)}) == 3
