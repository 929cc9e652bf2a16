"""Which lines of QEMU a run reached: gcovr's data, the share of each part, and what has no reason.

gcovr reads the counters (GCC's ``.gcda``) with the ``gcov`` of the compiler that built QEMU, and writes its
table and its page. It cannot select functions, so its data (``--json``) is reduced to the parts that
``images/coverage.toml`` names before it makes them.
"""

from __future__ import annotations

import importlib.util
import json
import shlex
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from harness.errors import SetupError, UsageError
from harness.provision.gcov import Coverage, Part, Reason

#: The names of what :func:`write` makes.
DATA, TABLE, PAGE, NOT_REACHED = "coverage.json", "coverage.txt", "page/index.html", "not-reached.txt"
#: The folder of the counters, and below it the build folder: the path of it in the build root.
COUNTERS = "counters"
_BUILD, _SOURCE = f"{COUNTERS}/work/build", f"{COUNTERS}/work/source"
_TIMEOUT_S = 600
#: The lines before a line that distinguish it from others with the same text.
_BEFORE = 4


@dataclass(frozen=True)
class Line:
    """A line of QEMU that is compiled to something.

    :ivar text: the line without white space around it. :ivar before: the four lines before it.
    :ivar count: how often it ran.
    """

    file: str
    number: int
    function: str
    text: str
    before: tuple[str, ...]
    count: int


@dataclass(frozen=True)
class Share:
    """How many of some things were reached."""

    reached: int
    all: int

    def __str__(self) -> str:
        return f"{self.reached} of {self.all} ({self.percent:.1f} %)" if self.all else "none"

    @property
    def short(self) -> str:
        """Only the percentage."""
        return f"{self.percent:.1f} %" if self.all else "none"

    @property
    def percent(self) -> float:
        """The share of lines or functions that were reached: 0 to 100."""
        return 100 * self.reached / self.all if self.all else 100.0


@dataclass(frozen=True)
class FileReport:
    """One file: its lines, the shares, and the lines that were not reached and have no reason."""

    file: str
    lines: Share
    branches: Share
    functions: Share
    unexplained: int


def require_gcovr() -> None:
    """:raises UsageError: when gcovr is not installed."""
    if importlib.util.find_spec("gcovr") is None:
        raise UsageError("gcovr is not installed: pip install 'virtio-9p-harness[coverage]'")


def gather(into: Path, build: Path, source: Path, gcov: Sequence[str], parts: Iterable[Part]) -> Any:
    """gcovr's data of the counters in ``into``, reduced to ``parts``.

    :param build: the build folder of the QEMU that counted. :param source: QEMU's source.
    :param gcov: the command of the compiler's ``gcov``.
    :raises SetupError: when there are no counters, or gcovr fails.
    """
    counters = sorted((into / _BUILD).rglob("*.gcda"))
    if not counters:
        raise SetupError(
            f"no QEMU wrote counters below {into / COUNTERS}: no machine ran, or all were killed"
        )
    parts = list(parts)
    for counter in counters:
        notes = counter.with_suffix(".gcno")
        shutil.copyfile(build / notes.relative_to(into / _BUILD), notes)
    _copy_source(source, into / _SOURCE, parts)
    data = into / "all.json"
    # The headers of other parts of QEMU are not copied.
    options = ("--gcov-executable", shlex.join(gcov), "--gcov-ignore-errors=source_not_found")
    _gcovr(into, *options, "--json", str(data), str(into / _BUILD))
    return reduced(json.loads(data.read_text()), parts)


def _copy_source(source: Path, into: Path, parts: Iterable[Part]) -> None:
    """Copy QEMU's source for gcovr, which looks for it beside the build folder."""
    for part in parts:
        copied = into / part.file
        copied.parent.mkdir(parents=True, exist_ok=True)
        if (source / part.file).is_dir():
            shutil.copytree(source / part.file, copied, dirs_exist_ok=True)
        else:
            shutil.copyfile(source / part.file, copied)


def reduced(data: dict[str, Any], parts: Sequence[Part]) -> dict[str, Any]:
    """gcovr's data (its documentation: "JSON Format Reference") with the lines and functions of ``parts``."""
    files = []
    for file in data["files"]:
        name = file["file"]
        lines = [one for one in file["lines"] if _is_in(parts, name, one.get("function_name"))]
        functions = [one for one in file["functions"] if _is_in(parts, name, one["name"])]
        if lines:
            files.append({**file, "lines": lines, "functions": functions})
    return {**data, "files": files}


def _is_in(parts: Sequence[Part], file: str, function: str | None) -> bool:
    return any(part.has(file, function) for part in parts)


def _gcovr(into: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "gcovr", "--root", str(into / _SOURCE), *arguments]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, cwd=into, timeout=_TIMEOUT_S)
    except subprocess.CalledProcessError as exc:
        last = (exc.stderr.strip() or exc.stdout.strip() or "it printed nothing").splitlines()
        raise SetupError(f"gcovr failed: {last[-1]}", details="\n".join(last[-15:])) from exc
    except subprocess.TimeoutExpired as exc:
        raise SetupError(f"gcovr did not end within {_TIMEOUT_S} s") from exc


def lines_of(data: dict[str, Any], source: Path) -> list[Line]:
    """The lines in gcovr's data, with their texts.

    :param source: the folder that its file names are relative to.
    """
    found = []
    for file in data["files"]:
        texts = [text.strip() for text in (source / file["file"]).read_text(errors="replace").splitlines()]
        for one in file["lines"]:
            at, function = one["line_number"] - 1, one.get("function_name") or ""
            before = tuple(texts[max(0, at - _BEFORE) : at])
            found.append(Line(file["file"], at + 1, function, texts[at], before, one["count"]))
    return found


def reason_for(line: Line, reasons: Iterable[Reason]) -> Reason | None:
    """The reason why this line of QEMU is not reached, if one is known."""
    return next((one for one in reasons if explains(one, line)), None)


def explains(reason: Reason, line: Line) -> bool:
    """Whether a reason is about this line of QEMU that is not reached."""
    if reason.file != line.file or reason.function not in ("", line.function):
        return False
    if reason.after and not any(text.startswith(reason.after) for text in line.before):
        return False
    return not reason.lines or any(line.text.startswith(text) for text in reason.lines)


def report(data: dict[str, Any], lines: Iterable[Line], reasons: Sequence[Reason]) -> list[FileReport]:
    """The shares of lines reached in each file."""
    unexplained: dict[str, int] = defaultdict(int)
    for line in lines:
        unexplained[line.file] += line.count == 0 and reason_for(line, reasons) is None
    return [
        FileReport(
            file["file"],
            _share(one["count"] for one in file["lines"]),
            _share(branch["count"] for one in file["lines"] for branch in one["branches"]),
            _share(one["execution_count"] for one in file["functions"]),
            unexplained[file["file"]],
        )
        for file in data["files"]
    ]


def _share(counts: Iterable[int]) -> Share:
    listed = list(counts)
    return Share(sum(count > 0 for count in listed), len(listed))


def total(files: Sequence[FileReport]) -> FileReport:
    """The shares of all files together."""
    return FileReport(
        "all of them",
        _sum(file.lines for file in files),
        _sum(file.branches for file in files),
        _sum(file.functions for file in files),
        sum(file.unexplained for file in files),
    )


def _sum(shares: Iterable[Share]) -> Share:
    listed = list(shares)
    return Share(sum(share.reached for share in listed), sum(share.all for share in listed))


def table(files: Sequence[FileReport]) -> Table:
    """The shares of lines reached, a row for each file."""
    made = Table("file", "lines", "branches", "functions", "lines without a reason", title="what is reached")
    for file in (*files, total(files)):
        shares = (str(file.lines), str(file.branches), str(file.functions))
        made.add_row(escape(file.file), *shares, str(file.unexplained))
    return made


def compared(sets: Mapping[str, Sequence[FileReport]]) -> Table:
    """What each set of scenarios reaches, side by side: a row for each file, in the order of the last set.

    The number of lines without a reason is that of the last set.
    """
    columns = [f"{what}: {name}" for what in ("lines", "branches", "functions") for name in sets]
    made = Table("file", *columns, "lines without a reason", title="what is reached")
    of = {name: {file.file: file for file in (*files, total(files))} for name, files in sets.items()}
    last = of[list(sets)[-1]]
    for file, report_of_last in last.items():
        row = [found.get(file) for found in of.values()]
        cells = [
            *(str(one.lines) if one else "-" for one in row),
            *(one.branches.short if one else "-" for one in row),
            *(one.functions.short if one else "-" for one in row),
        ]
        made.add_row(escape(file), *cells, str(report_of_last.unexplained))
    return made


def not_reached(lines: Sequence[Line], reasons: Sequence[Reason]) -> Iterator[str]:
    """The lines of QEMU that were not reached, by function, each with its reason if it has one.

    Then stale reasons.
    """
    missing: dict[tuple[str, str], list[Line]] = defaultdict(list)
    for line in lines:
        if line.count == 0:
            missing[line.file, line.function].append(line)
    for (file, function), found in missing.items():
        yield f"\n{file}: {function or 'in no function'}"
        for line in found:
            reason = reason_for(line, reasons)
            yield f"  {line.number:5} {line.text}" + (f"    [{reason.why}]" if reason else "")
    for reason in reasons:
        of_it = [line for line in lines if explains(reason, line)]
        if of_it and all(line.count for line in of_it):
            yield f"\nreached, although a reason says why not: {reason.file}: {reason.function}: {reason.why}"


def write(into: Path, data: dict[str, Any], coverage: Coverage) -> list[FileReport]:
    """Write gcovr's data, table and page, and the lines that are not reached, into ``into``.

    :returns: the shares of each file.
    :raises SetupError: when gcovr fails.
    """
    (into / DATA).write_text(json.dumps(data))
    (into / PAGE).parent.mkdir(exist_ok=True)
    outputs = ("--txt", str(into / TABLE), "--html-details", str(into / PAGE))
    _gcovr(into, "--add-tracefile", str(into / DATA), *outputs)
    lines = lines_of(data, into / _SOURCE)
    (into / NOT_REACHED).write_text("\n".join(not_reached(lines, coverage.reason)).lstrip() + "\n")
    return report(data, lines, coverage.reason)
