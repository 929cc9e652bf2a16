"""Writes runs and their results, as :mod:`harness.report.summary` has them, into a history."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType

from harness.errors import SetupError, UsageError
from harness.matrix import architecture_of
from harness.report.nights import rows
from harness.report.nights.circumstances import load, now
from harness.report.nights.measurements import slopes
from harness.report.nights.store import Store
from harness.report.summary import NO_QEMU, About, Again, OfCell, OfQemu, Result, Run

#: The kinds of runs.
SCENARIOS, MERGE, FAULTS, EXPLORE, BENCH = "scenarios", "merge", "faults", "explore", "bench"
#: The key of a cell: the names of QEMU and kernel, the version of the kernel, and the machine type.
_Key = tuple[str, str, str, str]
_TOO_OLD = "these summaries do not say when and where they were made: make them again with this harness"


class Recorder:
    """One run in a history. It is incomplete until :meth:`end` is called.

    Every method raises :class:`~harness.errors.SetupError` when the file cannot be written.

    :param path: the history. :raises UsageError: when it cannot be one (see :class:`Store`).
    """

    def __init__(self, path: Path) -> None:
        self._store = Store(path)
        self._run = 0
        self._qemus: dict[str, int] = {}
        self._cells: dict[_Key, int] = {}
        self._results: dict[str, int] = {}

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the history file that is written."""
        self._store.close()

    def begin(
        self, kind: str, about: About, *, shard: str | None = None, expected: int | None = None
    ) -> None:
        """Write that the run begins."""
        with self._store.transaction():
            self._run = self._store.begin_run(
                rows.Run(
                    uuid=str(uuid.uuid4()),
                    kind=kind,
                    begun=about.begun,
                    host=about.host,
                    cores=about.cores,
                    load_begin=about.load_begin,
                    harness_version=about.harness_version,
                    harness_commit=about.harness_commit,
                    harness_dirty=about.harness_dirty,
                    options=about.options,
                    shard=shard,
                    expected=expected,
                )
            )
            self._add(about)

    def expect(self, tests: int) -> None:
        """Write that the run has so many tests."""
        self._store.expect(self._run, tests)

    def begin_test(self, nodeid: str, worker: str) -> None:
        """Write that a worker begins a test."""
        self._store.begin_test(rows.Running(run_id=self._run, worker=worker, nodeid=nodeid, begun=now()))

    def add(self, result: Result) -> None:
        """Write the result of a test that has ended. The last one of several results of a test counts."""
        with self._store.transaction():
            self._results[result.test] = self._store.add_result(
                rows.Result(
                    run_id=self._run,
                    cell_id=self._cell(result),
                    nodeid=result.test,
                    test=test_of(result),
                    guarantees=(result.guarantee,),
                    outcome=str(result.outcome),
                    signature=result.signature or None,
                    cause=result.why or None,
                    bug=result.bug or None,
                    begun=result.begun or now(),
                    seconds=result.seconds,
                    worker=result.worker or None,
                    artefacts=result.artifacts or None,
                    load=result.load,
                ),
                [
                    rows.Measurement(name=name, unit=measured.unit, value=measured.value)
                    for name, measured in (result.measurements | slopes(result.leaks)).items()
                ],
                [_confirmation(number, again) for number, again in enumerate(result.again, start=1)],
            )

    def confirm(self, nodeid: str, again: Iterable[Again]) -> None:
        """Write that a failed test was run again."""
        result = self._results.get(nodeid)
        if result is not None:
            self._store.add_confirmations(
                result, [_confirmation(number, one) for number, one in enumerate(again, start=1)]
            )

    def find(self, kind: str, name: str, outcome: str, *, detail: str = "", artefacts: str = "") -> None:
        """Write what an exploration, or a run of faults, has found."""
        self._store.add_finding(
            rows.Finding(
                run_id=self._run,
                kind=kind,
                name=name,
                outcome=outcome,
                detail=detail or None,
                artefacts=artefacts or None,
            )
        )

    def cover(self, alphabet: str, pairs: Mapping[tuple[str, str], int]) -> None:
        """An exploration has made the second step of each pair directly after the first, so many times."""
        self._store.add_step_pairs(
            rows.StepPair(run_id=self._run, alphabet=alphabet, first=first, next=following, times=times)
            for (first, following), times in sorted(pairs.items())
        )

    def end(self, exit_code: int | None, *, ended: str = "", load_end: float | None = None) -> None:
        """Write that the run is complete."""
        self._store.end_run(
            self._run,
            ended=ended or now(),
            exit_code=exit_code,
            load=load() if load_end is None else load_end,
        )

    def add_run(self, kind: str, run: Run, exit_code: int) -> None:
        """Write a whole run, in one transaction: it is in the file completely, or not at all."""
        about = joined(run.about)
        with self._store.transaction():
            self.begin(kind, about, expected=len(run.results))
            for result in run.results:
                self.add(result)
            self.end(exit_code, ended=about.ended, load_end=about.load_end)

    def _add(self, about: About) -> None:
        for qemu in about.qemus:
            self._qemu(qemu)
        for cell in about.cells:
            self._add_cell(cell)

    def _qemu(self, qemu: OfQemu) -> int:
        if qemu.name not in self._qemus:
            self._qemus[qemu.name] = self._store.add_qemu(
                rows.Qemu(
                    run_id=self._run,
                    name=qemu.name,
                    version=qemu.version or None,
                    package_version=qemu.package_version,
                    build_id=qemu.build_id,
                    git_describe=qemu.git_describe,
                    path=qemu.path or None,
                )
            )
        return self._qemus[qemu.name]

    def _add_cell(self, cell: OfCell) -> int:
        key = (cell.qemu, cell.kernel, cell.kernel_version, cell.machine)
        if key not in self._cells:
            self._cells[key] = self._store.add_cell(
                rows.Cell(
                    run_id=self._run,
                    qemu_id=self._qemu(OfQemu(name=cell.qemu)),
                    arch=cell.arch,
                    kernel=cell.kernel,
                    kernel_version=cell.kernel_version or None,
                    machine_type=cell.machine,
                    accelerator=cell.accelerator or None,
                )
            )
        return self._cells[key]

    def _cell(self, result: Result) -> int | None:
        """The cell of a result; one that nothing was said about, such as one without hotplug, is added."""
        if result.qemu == NO_QEMU:
            return None
        key = (result.qemu, result.kernel_name, result.kernel, result.machine)
        if key in self._cells:
            return self._cells[key]
        self._qemu(OfQemu(name=result.qemu, version=result.version))
        return self._add_cell(
            OfCell(
                qemu=result.qemu,
                arch=architecture_of(result.machine).name,
                kernel=result.kernel_name,
                kernel_version=result.kernel,
                machine=result.machine,
                accelerator="",
            )
        )


class Lenient:
    """Writes with a recorder until that fails. What is recorded goes on in any case.

    :param recorder: ``None``: nothing is written.
    :ivar failed: why nothing is written any more; empty while nothing has failed.
    """

    def __init__(self, recorder: Recorder | None) -> None:
        self._recorder, self.failed = recorder, ""

    def write(self, write: Callable[[Recorder], object]) -> None:
        """Write to the history, unless that has failed before."""
        if self._recorder is None or self.failed:
            return
        try:
            write(self._recorder)
        except SetupError as exc:
            self.failed = exc.message


def _confirmation(number: int, again: Again) -> rows.Confirmation:
    return rows.Confirmation(
        number=number,
        outcome=str(again.outcome),
        signature=again.signature or None,
        seconds=again.seconds,
        artefacts=again.artifacts or None,
        load=again.load,
    )


def test_of(result: Result) -> str:
    """The id of a recorded test without the names of its cell, which is the same over cells and nights."""
    before, bracket, parameters = (result.scenario or result.test).partition("[")
    if bracket and result.machine:
        parameters = re.sub(rf"(^|-){re.escape(result.machine)}(?=[-\]])", "", parameters, count=1)
    inside = parameters.removesuffix("]").strip("-")
    return f"{before}[{inside}]" if inside else before


def joined(parts: Iterable[About]) -> About:
    """To record a run in parts: its circumstances, where they are the same each part's, or else all."""
    abouts = list(parts)
    if not abouts:
        raise UsageError(_TOO_OLD)
    first = abouts[0]
    return About(
        begun=min(about.begun for about in abouts),
        ended=max(about.ended for about in abouts),
        host=", ".join(dict.fromkeys(about.host for about in abouts)),
        cores=sum(about.cores for about in abouts),
        load_begin=max(about.load_begin for about in abouts),
        load_end=max((about.load_end for about in abouts if about.load_end is not None), default=None),
        harness_version=", ".join(dict.fromkeys(about.harness_version for about in abouts)),
        harness_commit=", ".join(dict.fromkeys(filter(None, (about.harness_commit for about in abouts))))
        or None,
        harness_dirty=any(about.harness_dirty for about in abouts),
        options=first.options,
        qemus=tuple({qemu.name: qemu for about in abouts for qemu in about.qemus}.values()),
        cells=tuple(dict.fromkeys(cell for about in abouts for cell in about.cells)),
    )
