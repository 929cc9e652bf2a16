"""``--shard auto``: which part of how many this job is, from the variables of the system that runs it.

Sources: GitLab "Predefined CI/CD variables" (``CI_NODE_INDEX`` from 1, only in a job with ``parallel``);
Slurm "Job Array Support"; Kubernetes "Indexed Job for Parallel Processing with Static Work Assignment" (the
index counts from 0, and no variable has the number of completions); GitHub "Contexts reference"
(``strategy.job-index`` from 0 and ``strategy.job-total`` are no variables: the workflow has to pass them).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class CiSystem:
    """A system that runs a job several times, and gives each its number.

    :ivar index: the variable with the job's number. :ivar total: the one with the number of jobs.
    :ivar first: the number of the first job, or the variable with it. :ivar step: the variable with the
        distance of two numbers.
    :ivar given_by: who sets them where the system does not.
    """

    name: str
    index: str
    total: str
    first: int | str = 0
    step: str = ""
    given_by: str = ""


SYSTEMS = (
    CiSystem("GitLab", "CI_NODE_INDEX", "CI_NODE_TOTAL", first=1),
    CiSystem(
        "Slurm",
        "SLURM_ARRAY_TASK_ID",
        "SLURM_ARRAY_TASK_COUNT",
        first="SLURM_ARRAY_TASK_MIN",
        step="SLURM_ARRAY_TASK_STEP",
    ),
    CiSystem("Kubernetes", "JOB_COMPLETION_INDEX", "JOB_COMPLETIONS", given_by="the Job's manifest"),
    CiSystem("GitHub", "STRATEGY_JOB_INDEX", "STRATEGY_JOB_TOTAL", given_by="the workflow"),
)


def part(environment: Mapping[str, str], count: int | None = None) -> tuple[int, int]:
    """The part of this CI job, from 1, and the number of parts.

    :param count: the number of parts, where the user gave it.
    :raises pytest.UsageError: when no system, or more than one, has set its variables, or they do not fit.
    """
    present = [system for system in SYSTEMS if system.index in environment]
    if len(present) != 1:
        known = ", ".join(f"{system.index} ({system.name})" for system in SYSTEMS)
        found = "more than one" if present else "none"
        raise _wrong(f"{found} of these variables is set: {known}")
    system = present[0]
    first = system.first if isinstance(system.first, int) else _number(environment, system.first, system)
    step = _number(environment, system.step, system, 1) if system.step else 1
    total = _number(environment, system.total, system, count)
    if count is not None and count != total:
        raise _wrong(f"{system.total} of {system.name} is {total}, and not {count}")
    index, rest = divmod(_number(environment, system.index, system) - first, step or 1)
    if rest or not 0 <= index < total:
        raise _wrong(
            f"{system.index}={environment[system.index]} of {system.name} is none of {total} numbers "
            f"from {first} in steps of {step}"
        )
    return index + 1, total


def _number(environment: Mapping[str, str], name: str, system: CiSystem, default: int | None = None) -> int:
    text = environment.get(name)
    if text is None and default is not None:
        return default
    if text is None:
        who = f"; {system.given_by} has to set it, or write auto/N" if system.given_by else ""
        raise _wrong(f"{name} of {system.name} is not set{who}")
    if not text.isdecimal():
        raise _wrong(f"{name}={text} of {system.name} is no number")
    return int(text)


def _wrong(what: str) -> pytest.UsageError:
    return pytest.UsageError(f"--shard auto: {what}; or write I/N")
