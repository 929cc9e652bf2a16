"""What a test measured by the way, read from its history: start, migration, QMP latency."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import median

from harness.artifacts import HISTORY
from harness.history import Head, Kind, heads
from harness.report.summary import Measured

#: Operations, by the name of the measurement. The guest's own two ways to begin take different times.
_OPERATIONS = {"guest:boot": "start.boot", "guest:restore": "start.restore", "migrate": "migration"}
_QMP = "qmp:"
#: Units of the slopes of a leak hunt (``harness.checkers.no_leak``).
_SLOPE_UNITS = {"private_kib": "KiB/cycle"}


def measurements(folder: Path) -> dict[str, Measured]:
    """The measurements of a test, by name; empty for one that started no machine.

    - ``start.boot``, ``start.restore``: from the start of QEMU's process until the guest answers a command.
    - ``migration``: the median of the test's migrations, from ``migrate`` until the stream is complete.
    - ``qmp.median``, ``qmp.max``: of the time between a QMP command and its answer.

    :param folder: the test's artefact folder.
    """
    return {
        name: Measured(value=round(seconds, 6), unit="s")
        for name, seconds in _seconds(heads(folder / HISTORY)).items()
    }


def slopes(leaks: Mapping[str, float]) -> dict[str, Measured]:
    """The growth per cycle of each count of a leak hunt, as ``leak.COUNT``."""
    return {
        f"leak.{name}": Measured(value=slope, unit=_SLOPE_UNITS.get(name, "1/cycle"))
        for name, slope in leaks.items()
    }


def _seconds(entries: list[Head]) -> dict[str, float]:
    took: dict[str, list[float]] = defaultdict(list)
    for end in entries:
        if end.kind is Kind.OK and end.op is not None and end.op < len(entries):
            begin = entries[end.op]
            name = "qmp" if end.f.startswith(_QMP) else _OPERATIONS.get(end.f)
            if name == "qmp" or name == "migration":
                took[name].append(end.t_s - begin.t_s)
            elif name is not None and name not in took:
                took[name].append(end.t_s - _launched(entries, begin))
    found = {name: median(times) for name, times in took.items() if name != "qmp"}
    if took["qmp"]:
        found |= {"qmp.median": median(took["qmp"]), "qmp.max": max(took["qmp"])}
    return found


def _launched(entries: list[Head], begin: Head) -> float:
    """When the machine of a measured guest was started; the guest is called ``guest:MACHINE``."""
    machine = begin.actor.removeprefix("guest:")
    started = [head.t_s for head in entries if (head.actor, head.f) == (machine, "guest:started")]
    return max((t_s for t_s in started if t_s <= begin.t_s), default=begin.t_s)
