"""The page: a history, or one run, as one HTML file with its data, and the files of failures beside it.

``page.html``, ``page.css`` and ``page.js`` are its parts; this module fills them with data. The page needs
no network and no server. Text reaches the document only as text nodes, and a policy in its head forbids every
request and every script but its own.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from harness.errors import SetupError
from harness.report.nights.failed import failed
from harness.report.nights.history import load
from harness.report.nights.recorder import SCENARIOS, Recorder
from harness.report.nights.report import Report, as_data
from harness.report.nights.store import Store
from harness.report.page.columns import Columns
from harness.report.page.failures import Failures
from harness.report.page.files import Copies
from harness.report.summary import NAME as DATA
from harness.report.summary import PAGE, About, Gap, Run

NAME = "index.html"
_PLACE = re.compile(r"@(title|style|script-hash|script|data)@")


def write_page(
    store: Store,
    folder: Path,
    *,
    report: Report | None = None,
    gaps: Sequence[Gap] = (),
    name: str = NAME,
    source: str = "",
) -> Path:
    """Write the page of a history, and the files of its failures, into ``folder``; returns its path.

    Runs that began more than half a year before the newest one are not shown.

    :param report: what the history says about its newest night; not for the page of one run.
    :param gaps: the guarantees that were not asserted, for the page of one run.
    :param name: the name of the HTML file. :param source: what the page was made from, for its last line.
    :raises SetupError: when it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / name
        # In one piece, so that a browser never reads half of it.
        with tempfile.NamedTemporaryFile("w", dir=folder, encoding="utf-8", delete=False) as file:
            file.write(_html(_data(store, folder, report, gaps, source or store.path.name)))
        Path(file.name).chmod(0o644)
        Path(file.name).replace(path)
    except OSError as exc:
        raise SetupError(f"cannot write {exc.filename or folder}: {exc.strerror}") from exc
    return path


def write_run_page(run: Run, folder: Path) -> Path:
    """Write the page of one run, with the same views, into ``folder``; returns its path.

    :raises SetupError: when it cannot be written.
    """
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary, "run.sqlite")
        with Recorder(path) as recorder:
            recorder.add_run(SCENARIOS, run if run.about else _with_circumstances(run), 0)
        with Store(path, read_only=True) as store:
            return write_page(store, folder, gaps=run.not_asserted, name=PAGE, source=DATA)


def _with_circumstances(run: Run) -> Run:
    """A run of an older summary does not say when and where it was made."""
    begun = min(
        (result.begun for result in run.results if result.begun), default=datetime.now(UTC).isoformat()
    )
    about = About(
        begun=begun, ended=begun, host="unknown", cores=0, load_begin=0.0, harness_version="unknown"
    )
    return run.model_copy(update={"about": (about,)})


def _data(
    store: Store,
    folder: Path,
    report: Report | None,
    gaps: Sequence[Gap],
    source: str,
) -> dict[str, Any]:
    columns = Columns(store)
    known = failed(report.history if report else load(store))
    failures = Failures(Copies(folder, store.path.parent))
    failures.collect(columns.results, {run.id: run for run in columns.runs}, known, columns.again)
    return {
        "title": "virtio-9p nights" if len(columns.runs) != 1 else "virtio-9p run",
        "made": datetime.now(UTC).isoformat(),
        "source": source,
        "one": len(columns.runs) == 1,
        **columns.data(),
        "failures": failures.data,
        "timelines": failures.timelines,
        "report": as_data(report) if report else None,
        "gaps": [gap.model_dump() for gap in gaps],
    }


def _html(data: Mapping[str, Any]) -> str:
    script = _part("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    filled = {
        "title": escape(str(data["title"])),
        "style": _part("page.css"),
        "script": script,
        "script-hash": f"sha256-{digest}",
        # In JSON "<" occurs only in strings. Escaped, no text of the data ends the script.
        "data": json.dumps(data, separators=(",", ":")).replace("<", r"\u003c"),
    }
    return _PLACE.sub(lambda found: filled[found[1]], _part("page.html"))


def _part(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
