"""Starts and ends many guests in one process, and measures what the process does not release."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from harness.artifacts import Artifacts, of_command
from harness.checkers.no_leak import slope
from harness.errors import HarnessError, SetupError
from harness.matrix import Matrix, Selection
from harness.reaper import RunFolder
from harness.testbed import Cell, Testbed

#: The most that each count may grow a guest. Python's memory is noisy; one connection to a guest that is not
#: released is some 100 KiB.
LIMITS: Mapping[str, float] = {
    "threads": 0.02,
    "fds": 0.02,
    "files": 0.02,
    "disk_kib": 1.0,
    "private_kib": 8.0,
}
_NOISY = "private_kib"
#: Fewer guests are not enough for a slope. The first fifth of them is the warm-up.
LEAST = 20
_WARM_UP = 5


@dataclass(frozen=True)
class Growth:
    """One count of one process: after its first guest behind the warm-up, after its last, and its slope."""

    worker: int
    count: str
    first: float
    last: float
    per_guest: float

    @property
    def too_much(self) -> bool:
        """Whether a count of the harness's process grows beyond its limit, over many guests."""
        return self.per_guest > LIMITS[self.count]


def footprint(folder: Path) -> dict[str, float]:
    """Count the harness's own threads, descriptors and private memory, and the files in ``folder``.

    Source: ``man 5 proc``, ``/proc/PID/smaps_rollup``.
    """
    gc.collect()
    rollup = Path("/proc/self/smaps_rollup").read_text().splitlines()
    private = sum(int(line.split()[1]) for line in rollup if line.startswith("Private_"))
    files = [path.lstat() for path in folder.rglob("*")]
    return {
        "threads": _count(Path("/proc/self/task")),
        "fds": _count(Path("/proc/self/fd")),
        "files": len(files),
        "disk_kib": sum(file.st_blocks for file in files) / 2,
        "private_kib": private,
    }


def _count(folder: Path) -> int:
    return sum(1 for _ in folder.iterdir())


def endure(turn: Callable[[], object], folder: Path, guests: int, worker: int = 0) -> list[Growth]:
    """Call ``turn``, which starts and ends a guest, ``guests`` times, and return the growth of each count.

    :param folder: the run folder, where guests put their files.
    :raises SetupError: when ``guests`` is less than :data:`LEAST`. :raises HarnessError: when a guest fails.
    """
    if guests < LEAST:
        raise SetupError(
            f"{guests} guests in one process are too few to measure growth; at least {LEAST} are needed"
        )
    samples = []
    for _ in range(guests):
        turn()
        samples.append(footprint(folder))
    return _growth(samples[guests // _WARM_UP :], worker)


def _growth(samples: Sequence[Mapping[str, float]], worker: int) -> list[Growth]:
    return [
        Growth(
            worker, name, samples[0][name], samples[-1][name], _per_guest(name, [s[name] for s in samples])
        )
        for name in LIMITS
    ]


def _per_guest(name: str, values: Sequence[float]) -> float:
    """The slope; of Python's memory, the smallest of the slopes of the four quarters.

    The other counts have no noise, and what one of eight guests leaves behind does not grow in each quarter.
    What every guest leaves behind does. Python's memory also grows now and then, by some
    200 KiB: with few guests that is a slope, but not one of each quarter.
    """
    if name != _NOISY:
        return round(slope(values), 3)
    quarter = len(values) // 4
    starts = (0, quarter, 2 * quarter, len(values) - quarter)
    return round(min(slope(values[start : start + quarter]) for start in starts), 3)


def one_guest(cell: Cell, run: RunFolder, artifacts: Path) -> None:
    """Restore a guest, wait for its answer and end it. Its artefacts are removed."""
    testbed = Testbed(cell, run, Artifacts.create(artifacts, "guest"))
    try:
        if not testbed.boot().machine.spec.from_template:
            raise SetupError(
                "the guest was booted, not restored: 'guest:started' in the history has the reason"
            )
    finally:
        testbed.close()
    shutil.rmtree(testbed.artifacts.folder)


def endure_in_workers(
    selection: Selection, guests: int, workers: int, report: Callable[[str], None]
) -> list[Growth]:
    """Share ``guests`` among several processes, as pytest-xdist does with tests.

    :param selection: of one cell. :param guests: the number in all processes, rounded down to a multiple of
        ``workers``.
    :param report: is given a line for each process that is done.
    :raises SetupError: see :func:`endure`. :raises HarnessError: when a guest fails, in any process.
    """
    each = guests // workers
    found: list[Growth] = []
    # Spawned, not forked: like a worker of xdist, it inherits nothing.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        working = [pool.submit(_work, selection, each, worker) for worker in range(workers)]
        for done in as_completed(working):
            found += done.result()
            report(f"{each} guests in one of {workers} processes: done")
    return sorted(found, key=lambda growth: (growth.worker, list(LIMITS).index(growth.count)))


def _work(selection: Selection, guests: int, worker: int) -> list[Growth]:
    (cell,) = Matrix(selection).prepare()
    run = RunFolder()
    try:
        with of_command("endurance") as artifacts:
            found = endure(lambda: one_guest(cell, run, artifacts), run.path, guests, worker)
            shutil.rmtree(artifacts)
    except HarnessError as exc:
        # Other errors have attributes that cannot be pickled.
        kind = SetupError if isinstance(exc, SetupError) else HarnessError
        kept = f" (artefacts: {artifacts})" if artifacts.exists() else ""
        raise kind(f"{exc}{kept}") from None
    finally:
        run.close()
    return found
