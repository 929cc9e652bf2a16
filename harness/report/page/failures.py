"""The failures of a history: what the page shows of each, and the files beside the page.

The files of a failed test are copied into the page's folder, so that the folder can be moved and the test's
own be removed. A later page in the same folder still has them.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from harness.artifacts import HISTORY, Artifacts
from harness.errors import HarnessError
from harness.report.evidence import last_lines
from harness.report.nights import rows
from harness.report.nights.failed import Failed
from harness.report.summary import Outcome
from harness.report.timeline import files as timeline_files
from harness.report.timeline.reading import timeline_of

FOLDER = "failures"
#: How many failures have their files and their timeline; the newest ones.
_WITH_FILES = 200
#: Bytes of all timelines in the page, and of one file that is copied.
_TIMELINES, _FILE = 12_000_000, 2_000_000
_SHOWN = (Outcome.FAILED, Outcome.FIXED, Outcome.KNOWN)
#: A known bug is shown in full for the newest run that met it.
_OLD_NEWS = (Outcome.KNOWN,)


@dataclass
class Failures:
    """The failures of the page in ``folder``.

    :ivar data: one entry a failure, newest first. :ivar timelines: SVG texts by the failure's id.
    """

    folder: Path
    base: Path
    data: list[dict[str, Any]] = field(default_factory=list)
    timelines: dict[str, str] = field(default_factory=dict)

    def collect(
        self, results: Sequence[rows.Result], runs: Mapping[int, rows.Run], known: Mapping[int, Failed]
    ) -> None:
        """Describe every failure among ``results``, and copy the files of the newest ones.

        :param known: what the history says about failed results, by their ids.
        """
        told: set[tuple[str, str | None]] = set()
        kept: set[str] = set()
        order = sorted(range(len(results)), key=lambda i: _importance(results[i], runs), reverse=True)
        for index in order:
            result = results[index]
            if result.outcome not in _SHOWN:
                continue
            made = self._described(index, result, runs, known.get(result.id))
            again = result.outcome in _OLD_NEWS and (result.nodeid, result.bug) in told
            told.add((result.nodeid, result.bug))
            if len(kept) < _WITH_FILES and not again:
                kept.add(made["id"])
                self._add_files(made, result)
            self.data.append(made)
        self._remove_others(kept)

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
            "why": "",
        }

    def _commands(self, result: rows.Result) -> list[str]:
        """For a result that is no new failure."""
        folder = self._artefacts(result)
        return [] if folder is None else [shlex.join(["harness", "replay", str(folder)])]

    def _artefacts(self, result: rows.Result) -> Path | None:
        """The test's folder, if it still exists. A relative path is one beside the history."""
        if not result.artefacts:
            return None
        candidates = (self.base / result.artefacts, Path(result.artefacts))
        return next((path.absolute() for path in candidates if (path / HISTORY).is_file()), None)

    def _add_files(self, made: dict[str, Any], result: rows.Result) -> None:
        source, target = self._artefacts(result), self.folder / FOLDER / made["id"]
        if source is not None:
            if target.exists():
                shutil.rmtree(target)
            made["evidence"] = [[title, lines] for title, lines in last_lines(Artifacts(source))]
            _copy(source, target)
            self._draw(made["id"], target)
        elif target.is_dir():  # Of an earlier page.
            made["evidence"] = [[title, lines] for title, lines in last_lines(Artifacts(target))]
            self._draw(made["id"], target)
        elif result.artefacts:
            made["why"] = f"The test's folder does not exist any more: {result.artefacts}"
            return
        else:
            made["why"] = "The test left no folder."
            return
        made["files"] = self._links(target) + _left_out(source, target, self.folder)

    def _draw(self, failure: str, folder: Path) -> None:
        """Write the timeline's files, and keep the image for the page while there is room."""
        try:
            image, _ = timeline_files.write(timeline_of(folder), folder)
        except HarnessError:  # A record that was cut off: its files are shown all the same.
            return
        text = image.read_text(encoding="utf-8")
        if sum(map(len, self.timelines.values())) + len(text) <= _TIMELINES:
            self.timelines[failure] = text

    def _links(self, target: Path) -> list[list[str]]:
        files = sorted(path for path in target.rglob("*") if path.is_file() and path.stat().st_size)
        return [[str(path.relative_to(target)), _href(path, self.folder)] for path in files]

    def _remove_others(self, kept: Iterable[str]) -> None:
        """Remove the files of failures that are on an earlier page in this folder, and not on this one."""
        folder = self.folder / FOLDER
        if folder.is_dir():
            for path in folder.iterdir():
                if path.is_dir() and path.name not in kept:
                    shutil.rmtree(path)


def failure_id(run: rows.Run, result: rows.Result) -> str:
    """A name for the failure that is the same on every page: it is part of links."""
    return hashlib.sha256(f"{run.uuid} {result.nodeid}".encode()).hexdigest()[:16]


def _since(known: Failed, runs: Mapping[int, rows.Run]) -> dict[str, Any]:
    """The nights between which the failure began. A run that is not on the page has no date."""
    first, good = runs.get(known.first_bad), runs.get(known.last_good or 0)
    return {
        "first_bad": first.begun if first else "",
        "last_good": good.begun if good else "",
        "changed": list(known.changed),
    }


def _importance(result: rows.Result, runs: Mapping[int, rows.Run]) -> tuple[bool, str, int]:
    """New failures before known bugs, and each the newest first."""
    return result.outcome not in _OLD_NEWS, runs[result.run_id].begun, result.id


def _copy(source: Path, target: Path) -> None:
    for path in source.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_size <= _FILE:
            to = target / path.relative_to(source)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, to)


def _left_out(source: Path | None, target: Path, folder: Path) -> list[list[str]]:
    """Files that are too large to be copied: linked where they are."""
    if source is None:
        return []
    large = sorted(
        path
        for path in source.rglob("*")
        if path.is_file() and not path.is_symlink() and not (target / path.relative_to(source)).exists()
    )
    return [[f"{path.relative_to(source)} (not copied)", _href(path, folder)] for path in large]


def _href(path: Path, folder: Path) -> str:
    return quote(os.fsencode(os.path.relpath(path, folder)))
