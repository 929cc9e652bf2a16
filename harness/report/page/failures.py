"""The failures of a history: what the page shows of each."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.artifacts import Artifacts
from harness.report.evidence import last_lines
from harness.report.nights import rows
from harness.report.nights.commands import replay_of
from harness.report.nights.failed import Failed
from harness.report.page.files import Copies
from harness.report.summary import Outcome
from harness.report.timeline.files import IMAGE

#: How many failures have their files and their timeline; the newest ones.
_WITH_FILES = 200
#: Characters of all timelines in the page.
_TIMELINES = 12_000_000
_SHOWN = (Outcome.FAILED, Outcome.FIXED, Outcome.KNOWN)
#: A known bug has its files for the newest run that met it.
_OLD_NEWS = (Outcome.KNOWN,)


@dataclass
class Failures:
    """The failures of a page.

    :ivar data: one entry a failure, newest first. :ivar timelines: SVG texts by the failure's id.
    """

    copies: Copies
    data: list[dict[str, Any]] = field(default_factory=list)
    timelines: dict[str, str] = field(default_factory=dict)

    def collect(
        self,
        results: Sequence[rows.Result],
        runs: Mapping[int, rows.Run],
        known: Mapping[int, Failed],
        again: Mapping[int, Sequence[rows.Confirmation]],
    ) -> None:
        """Describe every failure among ``results``, and copy the files of the newest ones.

        :param known: what the history says about failed results, by their ids.
        :param again: the further runs of failed tests, by the ids of the results.
        """
        seen: set[tuple[str, str | None]] = set()
        kept: list[str] = []
        with_files = 0
        shown = [index for index, result in enumerate(results) if result.outcome in _SHOWN]
        for index in sorted(shown, key=lambda index: _importance(results[index], runs), reverse=True):
            result = results[index]
            made = self._described(index, result, runs, known.get(result.id))
            repeats = result.outcome in _OLD_NEWS and (result.nodeid, result.bug) in seen
            seen.add((result.nodeid, result.bug))
            if with_files < _WITH_FILES and not repeats:
                with_files += 1
                kept += [made["id"], *(self._again(made, one) for one in again.get(result.id, ()))]
                self._add_files(made, result)
            self.data.append(made)
        self.copies.keep(kept)

    def _described(
        self, index: int, result: rows.Result, runs: Mapping[int, rows.Run], known: Failed | None
    ) -> dict[str, Any]:
        return {
            "id": failure_id(runs[result.run_id], result),
            "result": index,
            "signature": result.signature or "",
            "since": _since(known, runs) if known else None,
            "commands": list(known.commands if known else self._commands(result)),
            "evidence": [],
            "files": [],
            "again": [],
            "why": "",
        }

    def _commands(self, result: rows.Result) -> list[str]:
        """The command lines that the page shows for a result that is no new failure."""
        folder = self.copies.source(result.artefacts)
        return [] if folder is None else [replay_of(folder)]

    def _add_files(self, made: dict[str, Any], result: rows.Result) -> None:
        folder = self.copies.copy(result.artefacts, made["id"])
        if folder is None:
            gone = f"The test's folder does not exist any more: {result.artefacts}"
            made["why"] = gone if result.artefacts else "The test left no folder."
            return
        made["evidence"] = last_lines(Artifacts(folder))
        made["files"] = self.copies.links(folder, result.artefacts)
        image = folder / IMAGE
        if image.is_file():
            text = image.read_text(encoding="utf-8")
            if sum(map(len, self.timelines.values())) + len(text) <= _TIMELINES:
                self.timelines[made["id"]] = text

    def _again(self, made: dict[str, Any], one: rows.Confirmation) -> str:
        """Add to a failure on the page a link to the timeline of a further run; returns the copy's name.

        There is one if that run left a folder.
        """
        name = f"{made['id']}-again-{one.number}"
        folder = self.copies.copy(one.artefacts, name)
        image = folder / IMAGE if folder is not None else None
        made["again"].append(self.copies.href(image) if image is not None and image.is_file() else "")
        return name


def failure_id(run: rows.Run, result: rows.Result) -> str:
    """A name for the failure that is the same on every page: it is part of links."""
    return hashlib.sha256(f"{run.uuid} {result.nodeid}".encode()).hexdigest()[:16]


def _since(known: Failed, runs: Mapping[int, rows.Run]) -> dict[str, Any]:
    """The nights between which a failure on the page began. A run that is not on the page has no date."""
    first, good = runs.get(known.first_bad), runs.get(known.last_good or 0)
    return {
        "first_bad": first.begun if first else "",
        "last_good": good.begun if good else "",
        "changed": known.changed,
    }


def _importance(result: rows.Result, runs: Mapping[int, rows.Run]) -> tuple[bool, str, int]:
    """The order of failures on the page: new failures before known bugs, and each the newest first."""
    return result.outcome not in _OLD_NEWS, runs[result.run_id].begun, result.id
