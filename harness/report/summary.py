"""What a run found, as data: one result a test, and the table of guarantees against QEMUs.

The plugin collects results; this module reads, writes, joins and compares them. A run that was split into
shards is as many files; :func:`merge` accepts them only when they are exactly the shards of one run.

A guarantee is *asserted* on a QEMU when at least one of its tests was judged there: it passed, failed, was a
known bug, or is fixed. One that was wanted and not asserted is named (:attr:`Run.not_asserted`).
"""

from __future__ import annotations

import io
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, computed_field, model_validator
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from harness.errors import UsageError
from harness.guarantees import UNNAMED, in_order

#: The name of the file in a ``--summary`` folder.
NAME = "matrix.json"
PAGE = "matrix.html"
#: In the place of a QEMU's name: a test that ran on none, such as one of the user's own beside the scenarios.
NO_QEMU = "?"


class Outcome(StrEnum):
    """What became of a test."""

    PASSED = "passed"
    KNOWN = "known bug"
    FAILED = "new failure"
    FIXED = "fixed"
    SKIPPED = "skipped"


_STYLES = {
    Outcome.PASSED: "green",
    Outcome.KNOWN: "yellow",
    Outcome.FAILED: "bold red",
    Outcome.FIXED: "bold magenta",
    Outcome.SKIPPED: "dim",
}


class Result(BaseModel):
    """One test.

    :ivar test: pytest's id of it. :ivar scenario: the same without the names of QEMU and kernel.
    :ivar qemu: as the user named it. :ivar version: what the binary says, such as ``7.2.22``.
    :ivar why: the first line of the failure, or the reason of a skip. :ivar bug: the ledger's id.
    :ivar range_unknown: the ids of bugs of which the ledger does not know whether this version has them.
    :ivar seconds: set-up, call and teardown together.
    :ivar leaks: for a leak hunt, what grew by how much a cycle.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    test: str
    scenario: str = ""
    guarantee: str
    qemu: str
    version: str = ""
    kernel: str = ""
    machine: str = ""
    outcome: Outcome
    why: str = ""
    bug: str = ""
    range_unknown: str = ""
    seconds: float = 0.0
    leaks: dict[str, float] = {}

    @property
    def column(self) -> str:
        """What the test ran on, but for the machine type."""
        qemu = _qemu(self.qemu, self.version)
        return f"{qemu}, Linux {self.kernel}" if self.kernel else qemu


def scenario_of(test: str, *names: str) -> str:
    """A test's id without the ``names`` that say which QEMU and kernel it ran on."""
    before, _, parameters = test.partition("[")
    for name in names:
        parameters = re.sub(rf"(^|-){re.escape(name)}(?=[-\]])", "", parameters, count=1)
    return f"{before}[{parameters.lstrip('-')}"


def _qemu(name: str, version: str) -> str:
    return f"{name} ({version})" if version else name


class Wanted(BaseModel):
    """What a run was to assert: the tests of one guarantee on one QEMU, as the user selected them.

    :ivar qemu: as in :class:`Result`. :ivar version: as in :class:`Result`.
    :ivar tests: how many were selected. :ivar left_out: how many of them a default run left out.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    guarantee: str
    qemu: str
    version: str = ""
    tests: int
    left_out: int = 0


class Gap(BaseModel):
    """A guarantee that nothing asserted.

    :ivar on: the QEMU, and its guest's kernel. :ivar why: the reasons.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    guarantee: str
    on: str
    why: str

    def __str__(self) -> str:
        return f"not asserted: {self.guarantee} on {self.on} (why: {self.why})"


class Shard(BaseModel):
    """Which part of a run this is: ``index`` of ``count``, counted from 1.

    :ivar collected: a hash of every test of the whole run and of the durations that it was split by.
    :ivar tests: how many of them are this part's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    index: int = Field(ge=1)
    count: int = Field(ge=1)
    collected: str
    tests: int


class Run(BaseModel):
    """A run, or a shard of one.

    :ivar wanted: what the whole run was to assert, also where this is a shard.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    results: tuple[Result, ...]
    shard: Shard | None = None
    wanted: tuple[Wanted, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _without_what_follows(cls, given: Any) -> Any:
        """``not_asserted`` is in the file for its readers; it follows from the rest."""
        return {k: v for k, v in given.items() if k != "not_asserted"} if isinstance(given, dict) else given

    @computed_field  # type: ignore[prop-decorator]  # pydantic's own way of a property that is written
    @property
    def not_asserted(self) -> tuple[Gap, ...]:
        """The guarantees that nothing asserted, by QEMU and kernel; of a shard nothing is known."""
        return () if self.shard is not None else tuple(_gaps(self.results, self.wanted))

    @property
    def counts(self) -> Counter[Outcome]:
        """How many tests had each outcome."""
        return Counter(result.outcome for result in self.results)


def _gaps(results: Iterable[Result], wanted: Iterable[Wanted]) -> Iterator[Gap]:
    judged: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for result in results:
        if result.qemu != NO_QEMU:
            judged[result.guarantee, result.column].append(result)
    ran = {(result.guarantee, result.qemu) for found in judged.values() for result in found}
    never = [one for one in wanted if (one.guarantee, one.qemu) not in ran]
    named = [*(name for name, _ in judged), *(one.guarantee for one in never)]
    for guarantee in in_order(name for name in named if name != UNNAMED):
        for (name, column), found in judged.items():
            if name == guarantee and all(result.outcome is Outcome.SKIPPED for result in found):
                yield Gap(guarantee=guarantee, on=column, why=_reasons(found))
        for one in never:
            if one.guarantee == guarantee:
                yield Gap(guarantee=guarantee, on=_qemu(one.qemu, one.version), why=_why_none_ran(one))


def _reasons(skipped: Iterable[Result]) -> str:
    counted = Counter(result.why or "no reason given" for result in skipped)
    return "; ".join(f"{number} skipped: {why}" for why, number in counted.items())


def _why_none_ran(wanted: Wanted) -> str:
    if wanted.left_out == wanted.tests:
        return f"{wanted.tests} left out of a default run: --thorough runs them"
    return f"none of {wanted.tests - wanted.left_out} ran"


def read(path: Path) -> Run:
    """Read a file, or the one in a ``--summary`` folder.

    :raises UsageError: when there is none, or it is no such file.
    """
    path = path / NAME if path.is_dir() else path
    try:
        return Run.model_validate_json(path.read_text())
    except OSError as exc:
        raise UsageError(f"{path}: cannot be read: {exc.strerror}; pytest writes it with --summary") from exc
    except (ValidationError, UnicodeDecodeError) as exc:
        raise UsageError(f"{path}: not the {NAME} of a run: {str(exc).splitlines()[0]}") from exc


def write(run: Run, folder: Path) -> None:
    """Write a run's data and its page into ``folder``.

    :raises OSError: when it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / NAME).write_text(run.model_dump_json(indent=1) + "\n")
    page = Console(record=True, file=io.StringIO(), width=160)
    for table in tables(run):
        page.print(table)
    if run.not_asserted:
        gaps = Table("guarantee", "on", "why", title="not asserted")
        for gap in run.not_asserted:
            gaps.add_row(escape(gap.guarantee), escape(gap.on), escape(gap.why))
        page.print(gaps)
    page.save_html(str(folder / PAGE))


def merge(runs: Sequence[tuple[str, Run]]) -> Run:
    """Join the shards of one run, each given with its name for a person.

    :raises UsageError: unless they are all of its shards, each once.
    """
    shards: dict[int, str] = {}
    first = next((run.shard for _, run in runs if run.shard is not None), None)
    for name, run in runs:
        shard = run.shard
        if shard is None or first is None:
            raise UsageError(f"{name}: not a shard (pytest makes them with --shard I/N)")
        if (shard.count, shard.collected) != (first.count, first.collected):
            raise UsageError(
                f"{name}: shard {shard.index}/{shard.count} is of another run than {runs[0][0]}: "
                "other options or tests, or other recorded durations (give all shards one --durations-from)"
            )
        if len(run.results) != shard.tests:
            raise UsageError(f"{name}: only {len(run.results)} of its {shard.tests} tests ran")
        if shard.index in shards:
            raise UsageError(
                f"{name}: shard {shard.index}/{shard.count} is there already: {shards[shard.index]}"
            )
        shards[shard.index] = name
    missing = sorted(set(range(1, first.count + 1)) - set(shards)) if first else []
    if missing:
        raise UsageError(
            f"shards missing: {', '.join(f'{index}/{first.count}' for index in missing if first)}"
        )
    results = sorted((result for _, run in runs for result in run.results), key=lambda result: result.test)
    return Run(results=tuple(results), wanted=runs[0][1].wanted if runs else ())


def tables(run: Run) -> list[Table]:
    """Guarantee by QEMU and kernel (by machine type where those are one), and what is to be looked at."""
    columns = list(dict.fromkeys(result.column for result in run.results))
    by_machine = len(columns) == 1

    def place(result: Result) -> str:
        return (result.machine or "any") if by_machine else result.column

    cells: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for result in run.results:
        cells[result.guarantee, place(result)].append(result)
    names = sorted({place(result) for result in run.results}) if by_machine else columns
    table = Table("guarantee", *map(escape, names), title=escape(columns[0]) if by_machine else None)
    for guarantee in in_order(result.guarantee for result in run.results):
        if any((guarantee, name) in cells for name in names):
            table.add_row(escape(guarantee), *(_cell(cells[guarantee, name]) for name in names))
    return [table, *_notable(run.results)]


def _cell(results: Iterable[Result]) -> str:
    found: dict[Outcome, list[Result]] = defaultdict(list)
    for result in results:
        found[result.outcome].append(result)
    lines = []
    for outcome in Outcome:
        if outcome in found:
            bugs = " ".join(sorted({result.bug for result in found[outcome] if result.bug}))
            text = f"{len(found[outcome])} {outcome}{f' ({bugs})' if bugs else ''}"
            lines.append(f"[{_STYLES[outcome]}]{escape(text)}[/]")
    return "\n".join(lines) or "-"


def _notable(results: Iterable[Result]) -> Iterable[Table]:
    """What a person has to look at, and what was left out and why."""
    listed = list(results)
    bad = [result for result in listed if result.outcome in (Outcome.FAILED, Outcome.FIXED)]
    if bad:
        table = Table("", "test", "why", title="to be looked at")
        for result in bad:
            style = _STYLES[result.outcome]
            table.add_row(f"[{style}]{result.outcome}[/]", escape(result.test), escape(result.why))
        yield table
    unknown = [line for result in listed for line in _range_unknown(result)]
    if unknown:
        seen = Column("seen", no_wrap=True)  # People search a log for its lines.
        where = Column("test", overflow="fold")
        table = Table(seen, where, title="versions that images/known-bugs.toml does not know")
        for test, line in unknown:
            table.add_row(escape(line), escape(test))
        yield table
    skipped = Counter((r.column, r.why) for r in listed if r.outcome is Outcome.SKIPPED)
    if skipped:
        table = Table("on", "tests", "why", title="skipped")
        for (column, why), number in skipped.items():
            table.add_row(escape(column), str(number), escape(why))
        yield table


def _range_unknown(result: Result) -> Iterable[tuple[str, str]]:
    """For each bug whose range is unknown there: the test, and what it saw, if it saw anything."""
    for bug in result.range_unknown.split():
        if result.outcome is Outcome.KNOWN and bug in result.bug.split():
            yield result.test, f"{bug}: seen broken on {result.version}, range unknown"
        elif result.outcome is Outcome.PASSED:
            yield result.test, f"{bug}: not seen on {result.version}, range unknown"
