"""Many guests, one after another: does anything stay in the process that started and ended them?"""

from __future__ import annotations

import gc
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from harness.artifacts import Artifacts
from harness.checkers.no_leak import slope
from harness.errors import HarnessError, SetupError
from harness.matrix import Matrix, Selection
from harness.reaper import RunFolder
from harness.testbed import Cell, Testbed

#: What may stay, a guest. Python's memory is noisy; one forgotten connection to a guest is some 100 KiB.
LIMITS: Mapping[str, float] = {
    "threads": 0.02,
    "fds": 0.02,
    "files": 0.02,
    "disk_kib": 1.0,
    "private_kib": 8.0,
}
#: Fewer guests say nothing: a fifth of them warm up.
LEAST = 20
_WARM_UP = 5


@dataclass(frozen=True)
class Growth:
    """One count of one process: at its first guest after the warm-up, at its last, and what a guest adds."""

    worker: int
    count: str
    first: float
    last: float
    per_guest: float

    @property
    def too_much(self) -> bool:
        """Whether it grows beyond its limit."""
        return self.per_guest > LIMITS[self.count]


def footprint(folder: Path) -> dict[str, float]:
    """This process now: its threads, descriptors and private memory, and what is in ``folder``.

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
    """Take ``turn``, which starts and ends a guest, so many times; what grew meanwhile.

    :param folder: where everything lies that guests leave for a while.
    :raises SetupError: when there are too few to tell. :raises HarnessError: when a guest fails.
    """
    if guests < LEAST:
        raise SetupError(f"{guests} guests in one process say nothing about growth; take {LEAST} or more")
    samples = []
    for _ in range(guests):
        turn()
        samples.append(footprint(folder))
    return _growth(samples[guests // _WARM_UP :], worker)


def _growth(samples: Sequence[Mapping[str, float]], worker: int) -> list[Growth]:
    return [
        Growth(worker, name, samples[0][name], samples[-1][name], _per_guest([s[name] for s in samples]))
        for name in LIMITS
    ]


def _per_guest(values: Sequence[float]) -> float:
    """The slope of the half that grows less: what stays of each guest grows in both, and Python's memory goes
    up once by itself, by some 200 KiB."""
    half = len(values) // 2
    return round(min(slope(values[:half]), slope(values[half:])), 3)


def one_guest(cell: Cell, run: RunFolder, artifacts: Path) -> None:
    """A restored guest answers, and ends; its artefacts go, like those of a test that passed."""
    testbed = Testbed(cell, run, Artifacts.create(artifacts, "guest"))
    try:
        if not testbed.boot().machine.spec.from_template:
            raise SetupError("guests are not restored here; 'guest:started' in the history says why")
    finally:
        testbed.close()
    shutil.rmtree(testbed.artifacts.folder)


def endure_in_workers(
    selection: Selection, guests: int, workers: int, report: Callable[[str], None]
) -> list[Growth]:
    """Share ``guests`` among so many processes at once, as pytest-xdist does with tests.

    :param selection: of one cell. :param guests: in all; what is left over by the division, less.
    :param report: told of each process that is done.
    :raises SetupError: see :func:`endure`. :raises HarnessError: when a guest fails, in any process.
    """
    each = guests // workers
    found: list[Growth] = []
    # Not forked: a worker starts as empty as one of xdist's.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        working = [pool.submit(_work, selection, each, worker) for worker in range(workers)]
        for done in as_completed(working):
            found += done.result()
            report(f"{each} guests in one of {workers} processes: done")
    return sorted(found, key=lambda growth: (growth.worker, list(LIMITS).index(growth.count)))


def _work(selection: Selection, guests: int, worker: int) -> list[Growth]:
    (cell,) = Matrix(selection).prepare()
    run, artifacts = RunFolder(), Path(tempfile.mkdtemp(prefix="endurance-"))
    try:
        found = endure(lambda: one_guest(cell, run, artifacts), run.path, guests, worker)
    except HarnessError as exc:
        # The others have members of their own, which do not pass from process to process.
        kind = SetupError if isinstance(exc, SetupError) else HarnessError
        raise kind(f"{exc} (artefacts: {artifacts})") from None
    finally:
        run.close()
    shutil.rmtree(artifacts)
    return found
