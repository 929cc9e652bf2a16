"""The summary of a run: one result a test, and the table of guarantees and QEMUs.

The plugin collects the results. This module reads, writes and joins them, and makes the tables. Each shard of
a run writes one file; :func:`merge` joins them if they are exactly the shards of one run.

A guarantee is *asserted* on a QEMU when at least one of its tests there has an outcome other than a skip.
:attr:`Run.not_asserted` lists the guarantees that were selected and not asserted.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path, PurePath
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, computed_field, model_validator
from rich.markup import escape
from rich.table import Column, Table

from harness.errors import UsageError
from harness.guarantees import UNNAMED, in_order
from harness.report import markdown
from harness.report.divergence import divergence

#: The names of the files in a ``--summary`` folder.
NAME = "matrix.json"
PAGE = "matrix.html"
MARKDOWN = "summary.md"
#: The QEMU's name of a test that ran on none, such as a user's test beside the scenarios.
NO_QEMU = "?"


class Outcome(StrEnum):
    """The outcome of a test. A known bug that does not appear is ``fixed``."""

    PASSED = "passed"
    KNOWN = "known bug"
    FAILED = "new failure"
    FIXED = "fixed"
    SKIPPED = "skipped"

    def counted(self, number: int) -> str:
        """So many results of an outcome: "1 new failure", "2 new failures", "2 passed"."""
        plural = number != 1 and self in (Outcome.KNOWN, Outcome.FAILED)
        return f"{number} {self}{'s' if plural else ''}"


_STYLES = {
    Outcome.PASSED: "green",
    Outcome.KNOWN: "yellow",
    Outcome.FAILED: "bold red",
    Outcome.FIXED: "bold magenta",
    Outcome.SKIPPED: "dim",
}


class Measured(BaseModel):
    """A number that a test measured."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: float
    unit: str


class Again(BaseModel):
    """One more run of a test that failed, in fresh guests (``pytest --confirm N``).

    :ivar signature: as in :class:`Result`, as are ``artifacts`` and ``load``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    outcome: Outcome
    signature: str = ""
    seconds: float
    artifacts: str = ""
    load: float | None = None


class Result(BaseModel):
    """One test.

    :ivar test: pytest's node id. :ivar scenario: the same without the names of QEMU and kernel.
    :ivar qemu: as the user named it. :ivar version: the version of the binary, such as ``7.2.22``.
    :ivar why: the first line of the failure, or the reason of a skip. :ivar bug: the ledger's id.
    :ivar range_unknown: the ids of bugs whose status in this version is unknown to the ledger.
    :ivar seconds: set-up, call and teardown together.
    :ivar leaks: for a leak hunt, the growth of each count per cycle.
    :ivar kernel_name: as the user named it. :ivar begun: ISO 8601, in UTC.
    :ivar signature: what failures with the same cause have in common; empty for a test that did not fail.
    :ivar worker: of pytest-xdist, or ``main``. :ivar artifacts: the test's folder, if it was kept.
    :ivar load: the host's load average of one minute, when the test ended.
    :ivar measurements: what the test measured by the way, by name.
    :ivar again: the further runs of a test that failed.
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
    kernel_name: str = ""
    begun: str = ""
    signature: str = ""
    worker: str = ""
    artifacts: str = ""
    load: float | None = None
    measurements: dict[str, Measured] = {}
    again: tuple[Again, ...] = ()

    @property
    def runs(self) -> str:
        """How often the result's outcome was seen, as "1 of 4"; empty for a test that was run once."""
        same = 1 + sum(one.outcome is self.outcome for one in self.again)
        return f"{same} of {1 + len(self.again)}" if self.again else ""

    @property
    def flaky(self) -> bool:
        """Whether further runs of the result's test, under the same conditions, had another outcome."""
        return any(one.outcome is not self.outcome for one in self.again)

    @property
    def column(self) -> str:
        """The QEMU and the guest's kernel of a result, as printed in the head of the summary's column."""
        qemu = _qemu(self.qemu, self.version)
        return f"{qemu}, Linux {self.kernel}" if self.kernel else qemu


def scenario_of(test: str, *names: str) -> str:
    """Remove from a test's id the ``names`` of the QEMU and kernel among its parameters."""
    before, _, parameters = test.partition("[")
    for name in names:
        parameters = re.sub(rf"(^|-){re.escape(name)}(?=[-\]])", "", parameters, count=1)
    return f"{before}[{parameters.lstrip('-')}"


def _qemu(name: str, version: str) -> str:
    return f"{name} ({version})" if version else name


class Wanted(BaseModel):
    """The number of selected tests of one guarantee on one QEMU.

    :ivar qemu: as in :class:`Result`. :ivar version: as in :class:`Result`.
    :ivar tests: the number that the user selected. :ivar left_out: those of them that a default run left out.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    guarantee: str
    qemu: str
    version: str = ""
    tests: int
    left_out: int = 0


class Gap(BaseModel):
    """A guarantee that no test asserted on a QEMU.

    :ivar on: the QEMU and the guest's kernel. :ivar why: the reasons.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    guarantee: str
    on: str
    why: str

    def __str__(self) -> str:
        return f"not asserted: {self.guarantee} on {self.on} (why: {self.why})"


class OfQemu(BaseModel):
    """A QEMU of a run; :class:`harness.qemu.identity.Identity` explains the fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    version: str = ""
    package_version: str | None = None
    build_id: str | None = None
    git_describe: str | None = None
    path: str = ""


class OfCell(BaseModel):
    """A cell of a run: QEMU, architecture, kernel, machine type and accelerator, by name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    qemu: str
    arch: str
    kernel: str
    kernel_version: str
    machine: str
    accelerator: str


class About(BaseModel):
    """The circumstances of a run, or of a shard.

    :ivar begun: ISO 8601, in UTC. :ivar ended: also; empty while it runs.
    :ivar cores: that the run could use. :ivar load_begin: the host's load average of one minute.
    :ivar harness_commit: ``None`` for a harness that is no git checkout.
    :ivar harness_dirty: whether files of the checkout differ from that commit.
    :ivar options: what the user gave on the command line.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    begun: str
    ended: str = ""
    exit_code: int | None = None
    host: str
    cores: int
    load_begin: float
    load_end: float | None = None
    harness_version: str
    harness_commit: str | None = None
    harness_dirty: bool = False
    options: tuple[str, ...] = ()
    qemus: tuple[OfQemu, ...] = ()
    cells: tuple[OfCell, ...] = ()


class Shard(BaseModel):
    """The part of a run that a shard is: ``index`` of ``count``, counted from 1.

    :ivar collected: a hash of all tests of the run and of the durations by which they were shared out.
    :ivar tests: the number of tests in this shard.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    index: int = Field(ge=1)
    count: int = Field(ge=1)
    collected: str
    tests: int


class Run(BaseModel):
    """A run, or a shard of one.

    :ivar wanted: the tests that were selected for the whole run, also in a shard.
    :ivar about: the circumstances: of the run, or of each shard.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    results: tuple[Result, ...]
    shard: Shard | None = None
    wanted: tuple[Wanted, ...] = ()
    about: tuple[About, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _without_computed_fields(cls, given: Any) -> Any:
        """Ignore ``not_asserted`` of a summary.

        It is in the file for its readers, and is computed from the rest.
        """
        return {k: v for k, v in given.items() if k != "not_asserted"} if isinstance(given, dict) else given

    @computed_field  # type: ignore[prop-decorator]  # pydantic: mypy does not support decorated properties
    @property
    def not_asserted(self) -> tuple[Gap, ...]:
        """The guarantees that no test asserted, by QEMU and kernel; empty for a shard, which cannot know."""
        return () if self.shard is not None else tuple(_gaps(self.results, self.wanted))

    @property
    def counts(self) -> Counter[Outcome]:
        """The number of a run's results with each outcome."""
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
    """Read a summary file, or the one in a ``--summary`` folder.

    :raises UsageError: when there is none, or it is not a summary.
    """
    path = path / NAME if path.is_dir() else path
    try:
        return Run.model_validate_json(path.read_text())
    except OSError as exc:
        raise UsageError(f"{path}: cannot be read: {exc.strerror}; pytest writes it with --summary") from exc
    except (ValidationError, UnicodeDecodeError) as exc:
        raise UsageError(f"{path}: not a summary of a run: {str(exc).splitlines()[0]}") from exc


def write(run: Run, folder: Path) -> None:
    """Write a run's data, and its tables as Markdown, into ``folder``; its page is ``report.page``'s.

    :raises OSError: when it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / NAME).write_text(run.model_dump_json(indent=1) + "\n")
    shown = [*tables(run), *_not_asserted(run)]
    (folder / MARKDOWN).write_text("\n".join(map(markdown.of_table, shown)))


def _not_asserted(run: Run) -> Iterator[Table]:
    if run.not_asserted:
        table = Table("guarantee", "on", "why", title="not asserted")
        for gap in run.not_asserted:
            table.add_row(escape(gap.guarantee), escape(gap.on), escape(gap.why))
        yield table


def merge(runs: Sequence[tuple[str, Run]], unreadable: Sequence[str] = ()) -> Run:
    """Join the summaries of the shards of one run.

    :param runs: each shard with a name for messages. :param unreadable: about each that could not be read.
    :raises UsageError: unless they are all shards of one run, each once and complete, on the same QEMUs. It
        names those that have to be run again.
    """
    shards: dict[int, str] = {}
    incomplete = list(unreadable)
    first = next((run.shard for _, run in runs if run.shard is not None), None)
    for name, run in runs:
        shard = run.shard
        if shard is None or first is None:
            raise UsageError(f"{name}: not a shard (pytest makes them with --shard I/N)")
        if (shard.count, shard.collected) != (first.count, first.collected):
            raise UsageError(
                f"{name}: shard {shard.index}/{shard.count} is of another run than {runs[0][0]}: "
                "the options, tests or recorded durations differ (give all shards the same --durations-from)"
            )
        if len(run.results) != shard.tests:
            incomplete.append(f"{name}: only {len(run.results)} of its {shard.tests} tests ran")
            continue
        if shard.index in shards:
            raise UsageError(
                f"{name}: shard {shard.index}/{shard.count} was already given: {shards[shard.index]}"
            )
        shards[shard.index] = name
    _refuse_missing(first, shards, incomplete)
    _refuse_other_qemus(runs)
    results = sorted((result for _, run in runs for result in run.results), key=lambda result: result.test)
    return Run(
        results=tuple(results),
        wanted=runs[0][1].wanted if runs else (),
        about=tuple(about for _, run in runs for about in run.about),
    )


def _refuse_other_qemus(runs: Sequence[tuple[str, Run]]) -> None:
    """A name stands for one QEMU of an architecture: otherwise each would be asserted in parts."""
    seen: dict[tuple[str, str], tuple[str, OfQemu]] = {}
    for name, run in runs:
        for qemu in (qemu for about in run.about for qemu in about.qemus):
            key = qemu.name, PurePath(qemu.path).name  # Each architecture has a program of its own.
            before, first = seen.setdefault(key, (name, qemu))
            if (qemu.version, qemu.build_id) != (first.version, first.build_id):
                raise UsageError(
                    f"{name}: its QEMU {qemu.name} is {_build(qemu)}, that of {before} {_build(first)}; "
                    "run all shards on one"
                )


def _build(qemu: OfQemu) -> str:
    return f"{qemu.version} (build-id {qemu.build_id or 'unknown'})"


def _refuse_missing(of: Shard | None, shards: Iterable[int], incomplete: Sequence[str]) -> None:
    missing = sorted(set(range(1, of.count + 1)) - set(shards)) if of is not None else []
    if of is None and incomplete:
        raise UsageError("; ".join(incomplete))
    if of is not None and missing:
        names = [f"{index}/{of.count}" for index in missing]
        again = " and ".join(f"--shard {name}" for name in names)
        raise UsageError(
            f"shards missing: {', '.join(names)} ({'; '.join([*incomplete, f'run again with {again}'])}; the "
            "other shards need not run again)"
        )


def tables(run: Run) -> list[Table]:
    """The tables of a run's summary.

    The first has a row for each guarantee and a column for each QEMU and kernel; where there is one QEMU and
    kernel, a column for each machine type. The others list failures, bugs of unknown status, and skips.
    """
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
            text = f"{outcome.counted(len(found[outcome]))}{f' ({bugs})' if bugs else ''}"
            lines.append(f"[{_STYLES[outcome]}]{escape(text)}[/]")
    return "\n".join(lines) or "-"


def _notable(results: Iterable[Result]) -> Iterable[Table]:
    """The summary's failures, bugs of unknown status, and skips."""
    listed = list(results)
    bad = [result for result in listed if result.outcome in (Outcome.FAILED, Outcome.FIXED)]
    if bad:
        table = Table("outcome", "test", "why", title="failures")
        for result in bad:
            style = _STYLES[result.outcome]
            runs = f", {result.runs}{' (flaky)' if result.flaky else ''}" if result.runs else ""
            table.add_row(f"[{style}]{result.outcome}{runs}[/]", escape(result.test), escape(result.why))
        yield table
    flaky = [result for result in bad if result.flaky]
    if flaky:
        table = Table("test", "what differed", title="flaky: another outcome when run again")
        for result in flaky:
            table.add_row(escape(result.test), escape(differences(result)))
        yield table
    unknown = [line for result in listed for line in _range_unknown(result)]
    if unknown:
        seen = Column("seen", no_wrap=True)  # Its lines are searched for in logs.
        table = Table(seen, "test", title="bugs of unknown status in this version (images/known-bugs.toml)")
        for test, line in unknown:
            table.add_row(escape(line), escape(test))
        yield table
    skipped = Counter((r.column, r.why) for r in listed if r.outcome is Outcome.SKIPPED)
    if skipped:
        table = Table("on", "tests", "why", title="skipped")
        for (column, why), number in skipped.items():
            table.add_row(escape(column), str(number), escape(why))
        yield table


def differences(result: Result) -> str:
    """What differed between the runs of a flaky test: outcomes, host load, seconds, signatures, timeline."""
    runs: tuple[Result | Again, ...] = (result, *result.again)
    parts = [f"outcomes: {', '.join(str(one.outcome) for one in runs)}"]
    loads = [one.load for one in runs if one.load is not None]
    if len(loads) == len(runs):
        parts.append(f"load: {', '.join(f'{load:.1f}' for load in loads)}")
    parts.append(f"seconds: {', '.join(f'{one.seconds:.1f}' for one in runs)}")
    signatures = dict.fromkeys(one.signature for one in runs if one.signature)
    if len(signatures) > 1:
        parts.append(f"signatures: {'; '.join(signatures)}")
    folders = {one.outcome: Path(one.artifacts) for one in reversed(runs) if one.artifacts}
    if result.outcome in folders and Outcome.PASSED in folders:
        timeline = divergence(folders[result.outcome], folders[Outcome.PASSED])
        parts += [f"timeline: {timeline}"] if timeline else []
    return "; ".join(parts)


def _range_unknown(result: Result) -> Iterable[tuple[str, str]]:
    """The test, and whether it saw the bug, for each bug whose status in this version is unknown."""
    for bug in result.range_unknown.split():
        if result.outcome is Outcome.KNOWN and bug in result.bug.split():
            yield result.test, f"{bug}: seen broken on {result.version}, range unknown"
        elif result.outcome is Outcome.PASSED:
            yield result.test, f"{bug}: not seen on {result.version}, range unknown"
