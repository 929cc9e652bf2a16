"""What changed between two nights: QEMU, kernel, harness, options, accelerator or host."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from harness.report.nights import rows
from harness.report.nights.history import Entry
from harness.report.nights.runs import conditions

#: "git describe" ends with the number of commits since the tag, "-g" and the commit; a tag has none of it.
_DESCRIBED = re.compile(r"(.*-\d+-g)?(?P<commit>[^-].*?)(-dirty)?")
_SHORT_ID = 12


@dataclass(frozen=True)
class Difference:
    """Something that was not the same in two nights."""

    what: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.what} {self.before or 'none'} → {self.after or 'none'}"


def between(before: Entry, after: Entry) -> tuple[Difference, ...]:
    """What changed from the night of ``before`` to that of ``after``: QEMU, kernel, options, host."""
    found = [
        *_of_qemu(before.qemu, after.qemu),
        *_of_cell(before.cell, after.cell),
        *_of_run(before.run, after.run),
    ]
    return tuple(one for one in found if one.before != one.after)


def commit_of(described: str | None) -> str | None:
    """The commit, or the tag, that changed: what ``git describe`` names; ``None`` without one."""
    found = _DESCRIBED.fullmatch(described or "")
    return found["commit"] if found else None


def _of_qemu(before: rows.Qemu | None, after: rows.Qemu | None) -> Iterator[Difference]:
    if before is None or after is None:
        return
    yield Difference("QEMU version", before.version or "", after.version or "")
    yield Difference("QEMU package", before.package_version or "", after.package_version or "")
    first, last = commit_of(before.git_describe), commit_of(after.git_describe)
    both = first and last and first != last
    what = f"QEMU commits {first}..{last}:" if both else "QEMU tree"
    yield Difference(what, before.git_describe or "", after.git_describe or "")
    yield Difference("QEMU build-id", _short(before.build_id), _short(after.build_id))
    yield Difference("QEMU path", before.path or "", after.path or "")


def _of_cell(before: rows.Cell | None, after: rows.Cell | None) -> Iterator[Difference]:
    if before is not None and after is not None:
        yield Difference("kernel", before.kernel_version or "", after.kernel_version or "")
        yield Difference("accelerator", before.accelerator or "", after.accelerator or "")


def _of_run(before: rows.Run, after: rows.Run) -> Iterator[Difference]:
    yield Difference("harness version", before.harness_version, after.harness_version)
    yield Difference("harness", _harness(before), _harness(after))
    yield Difference("options", _options(before, after), _options(after, before))
    yield Difference("host", before.host, after.host)
    yield Difference("cores", str(before.cores), str(after.cores))


def _short(build_id: str | None) -> str:
    return (build_id or "")[:_SHORT_ID]


def _harness(run: rows.Run) -> str:
    dirty = " with uncommitted changes" if run.harness_dirty else ""
    return (run.harness_commit or "")[:_SHORT_ID] + dirty


def _options(of: rows.Run, other: rows.Run) -> str:
    """The options of a run that changed: that another one does not have."""
    return " ".join(sorted(conditions(of) - conditions(other)))
