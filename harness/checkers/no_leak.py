"""Nothing grew with the cycles of a leak hunt.

Read from a record in which :mod:`harness.actions.leak_hunt` has left its samples and heap profiles. Slopes
are per cycle, over the cycles after the warm-up, and robust (Theil and Sen: the median of all pairwise
slopes), so that a thread pool that moves once, or memory that is retained once, is none. Where a heap profile
is written, memory may be retained, and one step in the middle of the hunt is in more than half of all pairs:
so memory is compared only between cycles that have no profile between them.
"""

from __future__ import annotations

import itertools
import json
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.checkers.record import Record
from harness.checkers.verdict import VALID, Finding, Verdict, invalid, unknown
from harness.errors import UsageError
from harness.history import as_mapping

#: The detection limits, per cycle. The thread pool may move by a few threads; private memory is noisy, and
#: shows what the heap profile cannot: mappings.
LIMITS: Mapping[str, float] = {
    "threads": 0.25,
    "fds": 0.25,
    "qom_children": 0.1,
    "memory_regions": 0.1,
    "blockers": 0.1,
    "vmstate_sections": 0.1,
    "private_kib": 128.0,
}
#: With a guest: the memory that it touches, code translated for it, and the heap profile of that.
GUEST_LIMITS: Mapping[str, float] = {**LIMITS, "private_kib": 1024.0}
#: Not told by every QEMU, nor while the machine runs, nor where the cycle saves by itself.
_OPTIONAL = "vmstate_sections"
#: Live objects per cycle and allocation site.
OBJECTS_LIMIT = 0.5
#: Functions whose objects are kept on purpose, for later use, up to a bound that a hunt may not reach.
POOLS: Mapping[str, str] = {
    "qemu_coroutine_new": "the coroutine pool (QEMU: util/qemu-coroutine.c)",
    "tb_gen_code": "translated code of the guest (QEMU: accel/tcg/translate-all.c)",
    "qht_insert": "the hash table of translated code (QEMU: util/qht.c)",
    "tcg_tb_insert": "translated code of the guest (QEMU: tcg/region.c)",
}
#: Of it some is retained whenever a heap profile is written.
_RETAINED = "private_kib"
_MIN_SAMPLES = 10


def no_leak(record: Record) -> Finding:
    """No count, no allocation site and no private memory grows with the cycles."""
    plan = record.last("host", "leak:plan")
    if plan is None:
        return VALID
    warm_up = int(as_mapping(plan.value)["warm_up"])
    limits = GUEST_LIMITS if as_mapping(plan.value)["guest"] else LIMITS
    samples = _samples(record, "leak:sample", warm_up)
    control = _samples(record, "leak:control-sample", warm_up)
    if len(samples) < _MIN_SAMPLES:
        return unknown(f"a leak hunt has {len(samples)} samples after its warm-up, {_MIN_SAMPLES} are needed")
    sites = record.last("host", "leak:heap-sites")
    if sites is None:
        return unknown("a leak hunt has no heap profile: a machine did not quit")
    limits = {name: limits[name] for name in _measured(samples)}
    heap = json.loads((record.folder / as_mapping(sites.value)["file"]).read_text())
    found = [*_growing_counts(samples, control, limits, heap["lengths"]), *_growing_sites(heap)]
    if found:
        lines = [line for finding in found for line in finding]
        return invalid(f"leak: {found[0][0]}{_and_of_9p(found[1:])}", *lines)
    return Verdict.VALID, _stated(heap, limits), ()


def slope(values: Sequence[float], steps: Sequence[int] = ()) -> float:
    """The robust slope of a series with one value a cycle.

    :param steps: the positions at which it may go up or down by itself.
    """
    pairs = itertools.combinations(enumerate(values), 2)
    whole = [pair for pair in pairs if not any(pair[0][0] < step <= pair[1][0] for step in steps)]
    return statistics.median((y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in whole)


def leaks(folder: Path) -> dict[str, float]:
    """What a leak hunt measured: the slope of each count, a cycle; empty for a test that hunts none."""
    try:
        record = Record.load(folder)
    except UsageError:
        return {}
    plan = record.last("host", "leak:plan")
    samples = _samples(record, "leak:sample", int(as_mapping(plan.value)["warm_up"])) if plan else []
    if plan is None or len(samples) < _MIN_SAMPLES:
        return {}
    lengths = as_mapping(plan.value)["lengths"]
    return {name: round(_grows(name, samples, lengths), 3) for name in _measured(samples)}


def _grows(name: str, samples: list[Mapping[str, Any]], lengths: Sequence[int]) -> float:
    """The slope of one count. :param lengths: after so many cycles there was a heap profile."""
    profiles = [length - int(samples[0]["cycle"]) for length in lengths] if name == _RETAINED else []
    return slope([float(sample[name]) for sample in samples], profiles)


def _samples(record: Record, f: str, warm_up: int) -> list[Mapping[str, Any]]:
    samples = [as_mapping(entry.value) for entry in record.entries if entry.f == f]
    return [sample for sample in samples if sample["cycle"] >= warm_up]


def _measured(samples: list[Mapping[str, Any]]) -> list[str]:
    told = any(_OPTIONAL in sample for sample in samples)
    return [name for name in LIMITS if name != _OPTIONAL or told]


def _growing_counts(
    samples: list[Mapping[str, Any]],
    control: list[Mapping[str, Any]],
    limits: Mapping[str, float],
    lengths: Sequence[int],
) -> list[tuple[str, ...]]:
    """What grows, beyond what the control (the same cycles without the device) grows by as well."""
    found = []
    for name, limit in limits.items():
        grows = _grows(name, samples, lengths)
        if control:
            grows -= max(0.0, _grows(name, control, lengths))
        if grows > limit:
            line = f"{name}: +{grows:.2f} a cycle ({samples[0][name]} to {samples[-1][name]})"
            found.append((line, *(_new_targets(samples) if name == "fds" else ())))
    return found


def _new_targets(samples: list[Mapping[str, Any]]) -> list[str]:
    first, last = samples[0]["fd_targets"], samples[-1]["fd_targets"]
    grown = {target: count - first.get(target, 0) for target, count in last.items()}
    by_growth = sorted(grown.items(), key=lambda item: -item[1])
    return [f"    {target}: {count:+d}" for target, count in by_growth if count > 0]


def _growing_sites(heap: Mapping[str, Any]) -> list[tuple[str, ...]]:
    warm, half, full = heap["lengths"]
    found = []
    for site in heap["growing"]:
        if any(frame.startswith(f"{pool}+") for frame in site["stack"] for pool in POOLS):
            continue
        first, second, third = site["objects"]
        grows = min((second - first) / (half - warm), (third - second) / (full - half))
        if grows > OBJECTS_LIMIT:
            size = (site["bytes"][2] - site["bytes"][1]) / (third - second)
            line = f"heap: +{grows:.2f} objects of {size:.0f} bytes a cycle, allocated by {_innermost(site)}"
            found.append((line, *(f"    {frame}" for frame in site["stack"])))
    return found


def _and_of_9p(others: Sequence[tuple[str, ...]]) -> str:
    """What 9p itself allocated is said at once, whatever else grew: a known leak must not hide it."""
    stacks = "\n".join(line for finding in others for line in finding if line.startswith("    "))
    functions = dict.fromkeys(re.findall(r"^    ((?:v9fs|fsdev|virtio_9p)\w*)\+", stacks, re.MULTILINE))
    return f"; also leaks of {', '.join(functions)}" if functions else ""


def _innermost(site: Mapping[str, Any]) -> str:
    """The innermost frame that is not the allocator's own, and has a name (stripped binaries keep some)."""
    own = ("libjemalloc", "libglib", "libc.so")
    frames = [frame for frame in site["stack"] if not any(name in frame for name in own)]
    named = [frame for frame in frames if " (" in frame]
    return next(iter([*named, *frames]), "nobody known")


def _stated(heap: Mapping[str, Any], limits: Mapping[str, float]) -> str:
    counts = ", ".join(f"{name} {limit:g}" for name, limit in limits.items())
    warm, _, full = heap["lengths"]
    return (
        f"nothing grew in cycles {warm} to {full}; detection limits per cycle: "
        f"{OBJECTS_LIMIT:g} heap objects of any one site, {counts}"
    )
