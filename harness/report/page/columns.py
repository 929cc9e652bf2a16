"""What the page shows, as plain data for JSON. A history has many results, so they are columns of numbers.

Names are in tables (``tests``, ``guarantees``, ``cells``, ``lanes``, ``texts``), and results name them by
index. A *lane* is a cell without what changes over the nights: the names of QEMU, kernel, architecture and
machine type.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from harness.guarantees import in_order
from harness.report.nights import rows
from harness.report.nights.runs import by_night, time
from harness.report.nights.store import Store
from harness.report.summary import Outcome

OUTCOMES = tuple(str(outcome) for outcome in Outcome)
#: An outcome that a newer harness wrote.
_UNKNOWN = OUTCOMES.index(str(Outcome.SKIPPED))
#: The time before the newest run in which runs are shown.
_SHOWN = timedelta(days=183)
#: Characters of a cause; the artefacts have the rest.
_CAUSE = 2000


class Table:
    """Distinct values in the order of their first use."""

    def __init__(self) -> None:
        self._index: dict[Any, int] = {}

    def index(self, value: Any) -> int:
        """The index of a value in a column of the page, which is added when it is new."""
        return self._index.setdefault(value, len(self._index))

    @property
    def values(self) -> list[Any]:
        """All values that a column of the page has."""
        return list(self._index)


class Columns:
    """The data of the newest runs.

    :ivar runs: those of half a year, the oldest first.
    :ivar results: the rows of their results, in the order of the columns.
    :ivar again: the further runs of failed tests, by the ids of the results.
    """

    def __init__(self, store: Store) -> None:
        runs = store.select(rows.Run, order="begun, id")
        self.runs = [run for run in runs if time(run.begun) > time(runs[-1].begun) - _SHOWN]
        first = min((run.id for run in self.runs), default=0)
        number = {run.id: index for index, run in enumerate(self.runs)}
        self.results = _once(
            result for result in store.select(rows.Result, "run_id >= ?", (first,)) if result.run_id in number
        )
        self.again: dict[int, list[rows.Confirmation]] = {}
        for one in store.select(rows.Confirmation, order="result_id, number"):
            self.again.setdefault(one.result_id, []).append(one)
        self._nights = by_night(self.runs)
        self._number = number
        self._store = store
        self._qemus = {qemu.id: qemu for qemu in store.select(rows.Qemu)}
        self._cells = {cell.id: cell for cell in store.select(rows.Cell)}
        self._lanes, self._details, self._texts, self._tests = Table(), Table(), Table(), Table()
        #: The lane of a result that ran on no QEMU.
        self._nowhere = ("", "", "", "")

    def data(self) -> dict[str, Any]:
        """The page's data, without the failures."""
        results = self._results()
        guarantees = self._guarantees()
        return {
            "runs": [self._run(run) for run in self.runs],
            "results": results,
            "tests": [
                {"name": name, "guarantees": [guarantees.index(one) for one in self._of_test[name]]}
                for name in self._tests.values
            ],
            "guarantees": guarantees,
            "cells": [dict(zip(_CELL, cell, strict=True)) for cell in self._details.values],
            "lanes": [dict(zip(_LANE, lane, strict=True)) for lane in self._lanes.values],
            "texts": self._texts.values,
            "measures": self._measures(),
            "confirmations": self._confirmations(),
            "findings": self._findings(),
            "pairs": self._pairs(),
        }

    def _results(self) -> dict[str, list[Any]]:
        columns: dict[str, list[Any]] = {name: [] for name in _COLUMNS}
        self._of_test: dict[str, tuple[str, ...]] = {}
        for result in self.results:
            self._of_test[result.test] = result.guarantees
            text = (result.cause or "")[:_CAUSE]
            values = (
                self._number[result.run_id],
                self._tests.index(result.test),
                self._cell(result.cell_id),
                _outcome(result.outcome),
                round(result.seconds, 3),
                self._texts.index(text) if text else -1,
                self._texts.index(result.bug) if result.bug else -1,
            )
            for name, value in zip(_COLUMNS, values, strict=True):
                columns[name].append(value)
        return columns

    def _guarantees(self) -> list[str]:
        used = dict.fromkeys(name for names in self._of_test.values() for name in names)
        return [name for name in in_order(used) if name in used]

    def _cell(self, cell_id: int | None) -> int:
        cell = self._cells.get(cell_id or 0)
        if cell is None:
            return self._details.index((self._lanes.index(self._nowhere), "", "", "", ""))
        qemu = self._qemus.get(cell.qemu_id or 0)
        lane = (qemu.name if qemu else "", cell.kernel, cell.arch, cell.machine_type)
        kernel = " ".join(
            filter(None, (cell.kernel, f"({cell.kernel_version})" if cell.kernel_version else ""))
        )
        machine = ", ".join(filter(None, (cell.machine_type, cell.arch, cell.accelerator)))
        return self._details.index(
            (self._lanes.index(lane), _named(qemu), kernel, machine, qemu and qemu.path)
        )

    def _run(self, run: rows.Run) -> dict[str, Any]:
        running = self._store.select(rows.Running, "run_id = ?", (run.id,)) if run.ended is None else []
        loads = [f"{load:.1f}" for load in (run.load_begin, run.load_end) if load is not None]
        return {
            "night": self._nights[run.id],
            "kind": run.kind,
            "begun": run.begun,
            "ended": run.ended,
            "host": f"{run.host}, {run.cores} cores",
            "load": " to ".join(loads),
            "harness": " ".join(
                filter(
                    None,
                    (run.harness_version, run.harness_commit, "with changes" if run.harness_dirty else ""),
                )
            ),
            "options": " ".join(run.options),
            "shard": run.shard,
            "expected": run.expected,
            "running": [one.nodeid for one in running],
        }

    def _measures(self) -> list[dict[str, Any]]:
        index = {result.id: number for number, result in enumerate(self.results)}
        found: dict[tuple[str, str], dict[str, Any]] = {}
        for one in self._store.select(rows.Measurement, order="name, unit, result_id"):
            number = index.get(one.result_id)
            if number is not None:
                empty = {"name": one.name, "unit": one.unit, "result": [], "value": []}
                measure = found.setdefault((one.name, one.unit), empty)
                measure["result"].append(number)
                measure["value"].append(one.value)
        return list(found.values())

    def _confirmations(self) -> dict[int, list[dict[str, Any]]]:
        return {
            number: [
                {"outcome": _outcome(one.outcome), "seconds": one.seconds} for one in self.again[result.id]
            ]
            for number, result in enumerate(self.results)
            if result.id in self.again
        }

    def _findings(self) -> list[dict[str, Any]]:
        return [
            {
                "run": self._number[one.run_id],
                "kind": one.kind,
                "name": one.name,
                "outcome": one.outcome,
                "detail": one.detail or "",
                "artefacts": one.artefacts or "",
            }
            for one in self._store.select(rows.Finding)
            if one.run_id in self._number
        ]

    def _pairs(self) -> list[dict[str, Any]]:
        """By alphabet, how often all explorations together have made a step directly after another one.

        ``cells`` are triples: two indexes of ``steps``, the first of them -1 at the beginning of a program,
        and the number.
        """
        sums: dict[str, Counter[tuple[str, str]]] = {}
        runs: dict[str, set[int]] = {}
        for one in self._store.select(rows.StepPair, order="alphabet, first, next"):
            if one.run_id in self._number:
                sums.setdefault(one.alphabet, Counter())[one.first, one.next] += one.times
                runs.setdefault(one.alphabet, set()).add(one.run_id)
        return [
            {"alphabet": alphabet, "runs": len(runs[alphabet]), **_matrix(pairs)}
            for alphabet, pairs in sums.items()
        ]


def _matrix(pairs: Mapping[tuple[str, str], int]) -> dict[str, Any]:
    steps = sorted({name for pair in pairs for name in pair if name})
    number = {"": -1} | {name: index for index, name in enumerate(steps)}
    return {
        "steps": steps,
        "cells": [[number[first], number[following], times] for (first, following), times in pairs.items()],
    }


def _outcome(name: str) -> int:
    return OUTCOMES.index(name) if name in OUTCOMES else _UNKNOWN


def _once(results: Iterable[rows.Result]) -> list[rows.Result]:
    """Each result once in the page's columns.

    A part of a run and the run that it was merged into may both be recorded.
    """
    return list({(one.nodeid, one.begun, one.seconds): one for one in results}.values())


_COLUMNS = ("run", "test", "cell", "outcome", "seconds", "text", "bug")
_CELL = ("lane", "qemu", "kernel", "machine", "path")
_LANE = ("qemu", "kernel", "arch", "machine")


def _named(qemu: rows.Qemu | None) -> str:
    """A QEMU in the page's columns, with everything that distinguishes its build."""
    if qemu is None:
        return ""
    more = (
        qemu.version,
        qemu.package_version,
        qemu.git_describe,
        qemu.build_id and f"build {qemu.build_id[:12]}",
    )
    return " ".join([qemu.name, *_in_brackets(filter(None, more))])


def _in_brackets(parts: Iterable[str]) -> Sequence[str]:
    text = ", ".join(parts)
    return [f"({text})"] if text else []
