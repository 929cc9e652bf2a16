"""The command lines that continue with a failure. They can be pasted on the host of the report."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from harness.artifacts import HISTORY
from harness.report.nights import rows
from harness.report.nights.changes import commit_of
from harness.report.nights.history import Entry
from harness.report.summary import Outcome

_DEFAULT = "default"


def replay(entry: Entry) -> str:
    """The command line that runs the failed test again, many times where its folder is still there."""
    folder = artefacts(entry)
    if folder is not None:
        return replay_of(folder)
    options = ["--qemu", entry.place.qemu] if entry.place.qemu not in ("", _DEFAULT) else []
    options += ["--kernel", entry.place.kernel] if entry.place.kernel not in ("", _DEFAULT) else []
    return shlex.join(["pytest", entry.result.nodeid, *options])


def replay_of(folder: Path) -> str:
    """The command line that runs the test again that left ``folder``."""
    return shlex.join(["harness", "replay", str(folder)])


def timeline(entry: Entry) -> str:
    """The command line that draws what happened; empty if the folder is not there any more."""
    folder = artefacts(entry)
    return shlex.join(["harness", "timeline", str(folder)]) if folder is not None else ""


def bisect(bad: Entry, good: Entry | None) -> str:
    """The command line that finds the first bad QEMU.

    Over a git tree where both nights were built from one, else over releases.
    """
    tree, ends = _tree(bad.qemu), _ends(bad, good)
    if tree is not None and ends is not None:
        return _over_tree(bad, str(tree), *ends)
    return shlex.join(["harness", "bisect", *_subject(bad), "--releases"])


def bisect_elsewhere(bad: Entry, good: Entry | None) -> str:
    """The command line that bisects over a git tree of QEMU in ``DIR``.

    Empty if the tree is here, or no commits are known.
    """
    ends = _ends(bad, good)
    return _over_tree(bad, "DIR", *ends) if ends is not None and _tree(bad.qemu) is None else ""


def one_release(bad: Entry, good: Entry | None) -> str:
    """The one release to name in command lines, of which both nights had builds without known commits.

    Empty if there is none.
    """
    if good is None or good.qemu is None or bad.qemu is None or _ends(bad, good) is not None:
        return ""
    same = bad.qemu.version == good.qemu.version and bad.qemu.build_id != good.qemu.build_id
    return (bad.qemu.version or "") if same else ""


def artefacts(entry: Entry) -> Path | None:
    """The folder to name in command lines: what the failed test, or a later run of it, left there."""
    again = (one.artefacts for one in entry.confirmations if one.outcome != Outcome.PASSED)
    named = [entry.result.artefacts, *again]
    folders = [Path(name) for name in named if name]
    return next((folder for folder in folders if (folder / HISTORY).is_file()), None)


def _ends(bad: Entry, good: Entry | None) -> tuple[str, str] | None:
    """The commits to bisect between, or the tags of releases; ``None`` if they do not differ.

    They are of a good and a bad QEMU.
    """
    if good is None or good.qemu is None or bad.qemu is None:
        return None
    first, last = (_revision(qemu) for qemu in (good.qemu, bad.qemu))
    return (first, last) if first and last and first != last else None


def _revision(qemu: rows.Qemu) -> str | None:
    return commit_of(qemu.git_describe) or (f"v{qemu.version}" if qemu.version else None)


def _over_tree(bad: Entry, tree: str, good: str, last: str) -> str:
    return shlex.join(["harness", "bisect", *_subject(bad), "--tree", tree, "--good", good, "--bad", last])


def _subject(entry: Entry) -> list[str]:
    folder = artefacts(entry)
    if folder is not None:
        return [str(folder)]
    place = entry.place
    before, _, parameters = place.test.rstrip("]").partition("[")
    # The machine type is a separate option.
    own = re.sub(rf"(^|-){re.escape(place.machine_type)}(?=-|$)", "", parameters).strip("-")
    cell = ["--machine", place.machine_type] if place.machine_type else []
    cell += ["--kernel", place.kernel] if place.kernel not in ("", _DEFAULT) else []
    return [f"{before}[{own}]" if own else before, *cell]


def _tree(qemu: rows.Qemu | None) -> Path | None:
    """The git tree that a QEMU was built in, for a command line, if it is on this host."""
    if qemu is None or not qemu.git_describe or not qemu.path:
        return None
    return next((folder for folder in Path(qemu.path).parents if (folder / ".git").exists()), None)
