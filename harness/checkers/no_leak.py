"""Nothing grows with the cycles of a leak hunt.

:mod:`harness.leaks.hunt` has recorded the samples and heap profiles that are judged. After a warm-up, a hunt
has three parts of equal length (and three longer ones if it was extended), with a profile at the end of each.

- A count is exact: one that grows twice and does not go back leaks, however slowly.
- Threads leak when each part starts one that stays: the size of a pool varies by one or two.
- An allocation site leaks when it has more objects after each part than before it.
- Private memory is noisy. Its slope per cycle is judged, by the Theil-Sen estimator (the median of all
  pairwise slopes). Writing a heap profile may retain memory, so only cycles without a profile between them
  are compared. It may also give back what the heap had kept since the one before: memory that falls back at
  most profiles has not leaked.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.checkers import growth
from harness.checkers.record import Record
from harness.checkers.verdict import VALID, Finding, Verdict, invalid, unknown
from harness.errors import UsageError
from harness.history import as_mapping

#: Counts, in the order in which their growth is reported. The last two are of a device's daemon.
COUNTS = (
    *("threads", "fds", "qom_children", "memory_regions", "blockers", "vmstate_sections"),
    *("daemon_fds", "daemon_threads"),
)
#: Missing for some QEMUs, while the machine runs, and when the cycle itself writes migration streams.
_OPTIONAL = "vmstate_sections"
_MEMORY = "private_kib"
#: Present where a device's daemon is sampled as well.
_DAEMON_MEMORY = "daemon_kib"
#: In each sample; the rest is in some.
_EACH_CYCLE = ("threads", "fds", "daemon_fds", "daemon_threads", _DAEMON_MEMORY)
#: How much private memory may grow, in KiB a cycle. It shows mappings, which a heap profile does not.
MEMORY_LIMIT = 128.0
#: The same with a guest, which adds the memory that it touches, translated code, and a larger heap profile.
GUEST_MEMORY_LIMIT = 1024.0
#: How much the private memory of a device's daemon may grow, in KiB a cycle.
DAEMON_MEMORY_LIMIT = 32.0
_MIN_SAMPLES = 10

Samples = Sequence[Mapping[str, Any]]


def no_leak(record: Record) -> Finding:
    """No count, allocation site or private memory grows with the cycles."""
    plan = _plan(record)
    if plan is None:
        return VALID
    lengths = plan["lengths"]
    samples = hunted(record, plan)
    control = hunted(record, plan, "control-") if plan.get("control") else []
    for found in (samples, control) if plan.get("control") else (samples,):
        if len(found) < _MIN_SAMPLES or found[-1]["cycle"] < lengths[-1] - 1:
            at = found[-1]["cycle"] + 1 if found else 0
            return unknown(f"a leak hunt ended after {at} of {lengths[-1]} cycles, with {len(found)} samples")
    sites = record.last("host", "leak:heap-sites")
    if sites is None:
        return unknown("a leak hunt recorded no heap sites: a machine did not quit")
    note = as_mapping(sites.value)
    heap = json.loads((record.folder / note["file"]).read_text()) if "file" in note else None
    found_lines = list(growing_counts(samples, control, lengths))
    found_lines += _growing_daemon(samples)
    if heap is not None:
        found_lines += [*_growing_memory(samples, control, plan), *_growing_sites(heap)]
    if found_lines:
        lines = [line for finding in found_lines for line in finding]
        return invalid(f"leak: {found_lines[0][0]}{_leaks_of_9p(found_lines[1:])}", *lines)
    return Finding(Verdict.VALID, _coverage(samples, plan, note.get("not_profiled")))


def slope(values: Sequence[float], at: Sequence[int] = (), steps: Sequence[int] = ()) -> float:
    """For the verdict: the robust slope (Theil-Sen) of a count over the cycles of a leak hunt.

    :param at: the position of each value; consecutive by default.
    :param steps: positions at which the series may jump; values on both sides of one are not compared.
    :raises statistics.StatisticsError: when no two values can be compared.
    """
    pairs = itertools.combinations(zip(at or range(len(values)), values, strict=True), 2)
    whole = [pair for pair in pairs if not any(pair[0][0] < step <= pair[1][0] for step in steps)]
    return statistics.median((y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in whole)


def leaks(folder: Path) -> dict[str, float]:
    """The slope per cycle of each count in a leak hunt's record; empty for a test without a leak hunt."""
    try:
        record = Record.load(folder)
    except UsageError:
        return {}
    plan = _plan(record)
    samples = hunted(record, plan) if plan else []
    if plan is None or len(samples) < _MIN_SAMPLES:
        return {}
    names = [name for name in (*COUNTS, _MEMORY) if any(name in sample for sample in samples)]
    found = {}
    for name in names:
        with contextlib.suppress(statistics.StatisticsError):  # Short parts: no two values can be compared.
            found[name] = round(_slope_of(name, samples, plan["lengths"]), 3)
    return found


def growing_counts(samples: Samples, control: Samples, lengths: Sequence[int]) -> list[tuple[str, ...]]:
    """For the verdict: the counts that leak, after subtracting the control.

    The control repeats the same cycles without the device.

    :returns: for each count a line for the summary, and lines of evidence.
    """
    found = []
    for name in measured(samples):
        cycles, values = _series(name, samples)
        if control:
            less = dict(zip(*_series(name, control), strict=True))
            values = [value - less[cycle] for cycle, value in zip(cycles, values, strict=True)]
        if _threads_leak(samples, control, lengths) if name == "threads" else growth.recurs(values):
            low = growth.floor(values)
            rate = (low[-1] - low[0]) / (cycles[-1] - cycles[0])
            first, last = (_series(name, samples)[1][at] for at in (0, -1))
            line = f"{name}: +{rate:.2f} a cycle ({first} to {last})"
            found.append((line, *(_new_targets(samples) if name == "fds" else ())))
    return found


def measured(samples: Samples) -> list[str]:
    """For the verdict: the counts that these samples of a leak hunt have."""
    return [name for name in COUNTS if any(name in sample for sample in samples)]


def hunted(record: Record, plan: Mapping[str, Any], prefix: str = "") -> list[Mapping[str, Any]]:
    """For the verdict: the samples of a leak hunt that are judged, from the warm-up's last one on."""
    samples = [as_mapping(entry.value) for entry in record.entries if entry.f == f"leak:{prefix}sample"]
    return [sample for sample in samples if plan["warm_up"] - 1 <= sample["cycle"] < plan["lengths"][-1]]


def _plan(record: Record) -> Mapping[str, Any] | None:
    """For the verdict: the last plan of a leak hunt.

    A hunt that is extended records a second one.
    """
    plan = record.last("host", "leak:plan")
    return None if plan is None else as_mapping(plan.value)


def _series(name: str, samples: Samples) -> tuple[list[int], list[int]]:
    """For the verdict: the cycles after which a leak hunt took a count, and its values.

    :raises KeyError: when a sample that should have the count lacks it.
    """
    rare = name not in _EACH_CYCLE
    having = [sample for sample in samples if not rare or "qom_children" in sample]
    return [sample["cycle"] for sample in having], [sample[name] for sample in having]


def _threads_leak(samples: Samples, control: Samples, lengths: Sequence[int]) -> bool:
    if control and _threads_leak(control, (), lengths):
        return False
    cycles = [sample["cycle"] for sample in samples]
    parts = [cycles.index(length - 1) for length in lengths]
    return growth.lasting([frozenset(sample["thread_ids"]) for sample in samples], parts)


def _slope_of(name: str, samples: Samples, lengths: Sequence[int]) -> float:
    cycles, values = _series(name, samples)
    return slope(values, cycles, lengths if name == _MEMORY else ())


def _growing_memory(samples: Samples, control: Samples, plan: Mapping[str, Any]) -> list[tuple[str, ...]]:
    limit = GUEST_MEMORY_LIMIT if plan["guest"] else MEMORY_LIMIT
    grows = _slope_of(_MEMORY, samples, plan["lengths"])
    if control:
        grows -= max(0.0, _slope_of(_MEMORY, control, plan["lengths"]))
    cycles, values = _series(_MEMORY, samples)
    if grows <= limit or _falls_back(cycles, values, plan["lengths"]):
        return []
    return [(f"{_MEMORY}: +{grows:.2f} a cycle ({values[0]} to {values[-1]})",)]


def _growing_daemon(samples: Samples) -> list[tuple[str, ...]]:
    """For the verdict: the private memory of a device's daemon, if it grows."""
    if _DAEMON_MEMORY not in samples[0]:
        return []
    cycles, values = _series(_DAEMON_MEMORY, samples)
    grows = slope(values, cycles)
    if grows <= DAEMON_MEMORY_LIMIT:
        return []
    return [(f"{_DAEMON_MEMORY}: +{grows:.2f} a cycle ({values[0]} to {values[-1]})",)]


def _falls_back(cycles: Sequence[int], values: Sequence[float], steps: Sequence[int]) -> bool:
    """Whether memory is lower after a heap profile than before it, at most of them."""
    samples = itertools.pairwise(zip(cycles, values, strict=True))
    changes = [y2 - y1 for (x1, y1), (x2, y2) in samples if any(x1 < step <= x2 for step in steps)]
    return bool(changes) and statistics.median(changes) < 0


def _new_targets(samples: Samples) -> list[str]:
    first, last = samples[0]["fd_targets"], samples[-1]["fd_targets"]
    grown = {target: count - first.get(target, 0) for target, count in last.items()}
    by_growth = sorted(grown.items(), key=lambda item: -item[1])
    return [f"    {target}: {count:+d}" for target, count in by_growth if count > 0]


def _growing_sites(heap: Mapping[str, Any]) -> list[tuple[str, ...]]:
    cycles = heap["lengths"][-1] - heap["lengths"][0]
    found = []
    for site in heap["growing"]:
        objects = site["objects"][-1] - site["objects"][0]
        if growth.throughout(site["objects"]):
            size = (site["bytes"][-1] - site["bytes"][0]) / objects
            rate = objects / cycles
            line = f"heap: +{rate:.2f} objects of {size:.0f} bytes a cycle, allocated by {_innermost(site)}"
            found.append((line, *(f"    {frame}" for frame in site["stack"])))
    return found


def _leaks_of_9p(others: Sequence[tuple[str, ...]]) -> str:
    """For the summary: 9p functions that allocated other growing sites. A known leak must not hide them."""
    stacks = "\n".join(line for finding in others for line in finding if line.startswith("    "))
    functions = dict.fromkeys(re.findall(r"^    ((?:v9fs|fsdev|virtio_9p)\w*)\+", stacks, re.MULTILINE))
    return f"; also leaks of {', '.join(functions)}" if functions else ""


def _innermost(site: Mapping[str, Any]) -> str:
    """The innermost frame of a site outside of the allocator, preferably with a symbol.

    Stripped files keep some symbols.
    """
    own = ("libjemalloc", "libglib", "libc.so")
    frames = [frame for frame in site["stack"] if not any(name in frame for name in own)]
    named = [frame for frame in frames if " (" in frame]
    return next(iter([*named, *frames]), "an unknown function")


def _coverage(samples: Samples, plan: Mapping[str, Any], not_profiled: str | None) -> str:
    """The summary of a valid leak hunt: what was measured, and the detection limits."""
    first, last = plan["lengths"][0], plan["lengths"][-1]
    part = plan["lengths"][1] - first
    looked = f"nothing grew in cycles {first} to {last} ({', '.join(measured(samples))}"
    if not_profiled is not None:
        return f"{looked}), but the heap was not profiled: {not_profiled}"
    limit = GUEST_MEMORY_LIMIT if plan["guest"] else MEMORY_LIMIT
    return (
        f"{looked}, heap objects of any one site); detection limits: what is lost once in {part} cycles, "
        f"{_MEMORY} {limit:g} a cycle"
    )
