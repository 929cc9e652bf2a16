"""The files beside the page: copies of failed tests' folders, with their timelines.

The page's folder can be moved or published, and the tests' own folders be removed. A later page in the same
folder still has the copies.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from harness.artifacts import HISTORY
from harness.errors import HarnessError
from harness.report.timeline import files as timeline_files
from harness.report.timeline.reading import timeline_of

FOLDER = "failures"
#: Bytes of a file that is copied; a larger one is linked where it is.
_LARGEST = 2_000_000


@dataclass(frozen=True)
class Copies:
    """The copies of tests' folders beside a page.

    :ivar page: the page's folder.
    :ivar base: a test's folder with a relative path is in it.
    """

    page: Path
    base: Path

    def source(self, artefacts: str | None) -> Path | None:
        """A failed test's folder to copy beside the page, if it still exists."""
        if not artefacts:
            return None
        candidates = (self.base / artefacts, Path(artefacts))
        return next((path.absolute() for path in candidates if (path / HISTORY).is_file()), None)

    def copy(self, artefacts: str | None, name: str) -> Path | None:
        """Copy a test's folder beside the page as ``name``, and draw its timeline.

        ``None`` where there is nothing to copy.

        A copy that an earlier page made is kept when the test's folder is gone.
        """
        source, target = self.source(artefacts), self.page / FOLDER / name
        if source is not None:
            if target.exists():
                shutil.rmtree(target)
            target.mkdir(parents=True)
            for path in _files(source):
                if path.stat().st_size <= _LARGEST:
                    to = target / path.relative_to(source)
                    to.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, to)
            with suppress(HarnessError):  # A record that was cut off: its files are there all the same.
                timeline_files.write(timeline_of(source), target)
        return target if target.is_dir() else None

    def links(self, target: Path, artefacts: str | None) -> list[tuple[str, str]]:
        """A name and a relative URL for each file of a copy that is not empty, and for those left out."""
        source = self.source(artefacts)
        found = [(str(path.relative_to(target)), path) for path in _files(target) if path.stat().st_size]
        for path in _files(source) if source is not None else ():
            if not (target / path.relative_to(source or path)).exists():
                found.append((f"{path.relative_to(source or path)} (not copied)", path))
        return [(name, self.href(path)) for name, path in found]

    def href(self, path: Path) -> str:
        """The URL of a file beside the page, relative to it."""
        return quote(os.fsencode(os.path.relpath(path, self.page)))

    def keep(self, names: Iterable[str]) -> None:
        """Remove the copies that an earlier page made, and that this one does not name."""
        folder, kept = self.page / FOLDER, set(names)
        if folder.is_dir():
            for path in folder.iterdir():
                if path.is_dir() and path.name not in kept:
                    shutil.rmtree(path)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink())
