"""The rows of a history, one class a table, with the columns that ``schema.py`` documents.

``id`` is 0 in a row that is not in the file yet.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache
from typing import ClassVar


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row of the table ``TABLE``. Its fields are the columns."""

    TABLE: ClassVar[str]

    @classmethod
    @cache
    def columns(cls) -> tuple[str, ...]:
        """The names of a row's columns, in their order."""
        return tuple(field.name for field in fields(cls))


@dataclass(frozen=True, slots=True, kw_only=True)
class Run(Row):
    """A run of pytest or of a command."""

    TABLE: ClassVar[str] = "run"

    id: int = 0
    uuid: str
    kind: str
    begun: str
    ended: str | None = None
    exit_code: int | None = None
    host: str
    cores: int
    load_begin: float | None = None
    load_end: float | None = None
    harness_version: str
    harness_commit: str | None = None
    harness_dirty: bool = False
    options: tuple[str, ...] = ()
    shard: str | None = None
    expected: int | None = None

    @property
    def complete(self) -> bool:
        """Whether the row's run came to its end. One that goes on, and one that was killed, did not."""
        return self.ended is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Qemu(Row):
    """A QEMU of a run."""

    TABLE: ClassVar[str] = "qemu"

    id: int = 0
    run_id: int = 0
    name: str
    version: str | None = None
    package_version: str | None = None
    build_id: str | None = None
    git_describe: str | None = None
    path: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell(Row):
    """A QEMU, a guest kernel and a machine type."""

    TABLE: ClassVar[str] = "cell"

    id: int = 0
    run_id: int = 0
    qemu_id: int | None = None
    arch: str
    kernel: str
    kernel_version: str | None = None
    machine_type: str
    accelerator: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Result(Row):
    """The result of a test. ``outcome`` is the value of a :class:`harness.report.summary.Outcome`."""

    TABLE: ClassVar[str] = "result"

    id: int = 0
    run_id: int = 0
    cell_id: int | None = None
    nodeid: str
    test: str
    guarantees: tuple[str, ...] = ()
    outcome: str
    signature: str | None = None
    cause: str | None = None
    bug: str | None = None
    begun: str
    seconds: float
    worker: str | None = None
    artefacts: str | None = None
    load: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmation(Row):
    """One more run of a failed test."""

    TABLE: ClassVar[str] = "confirmation"

    result_id: int = 0
    number: int
    outcome: str
    signature: str | None = None
    seconds: float
    artefacts: str | None = None
    load: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement(Row):
    """A number that a test measured."""

    TABLE: ClassVar[str] = "measurement"

    result_id: int = 0
    name: str
    unit: str
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Running(Row):
    """The test that a worker of an unfinished run is running, or was running when it was killed."""

    TABLE: ClassVar[str] = "running"

    run_id: int = 0
    worker: str
    nodeid: str
    begun: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding(Row):
    """What a run of ``harness explore`` or ``harness faults run`` found."""

    TABLE: ClassVar[str] = "finding"

    id: int = 0
    run_id: int = 0
    cell_id: int | None = None
    kind: str
    name: str
    outcome: str
    detail: str | None = None
    artefacts: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPair(Row):
    """How often a run of ``harness explore`` has made a step directly after another one.

    :ivar first: empty for the first step of a program. :ivar times: 0 when it was possible, and never made.
    """

    TABLE: ClassVar[str] = "step_pair"

    run_id: int = 0
    alphabet: str
    first: str
    next: str
    times: int


TABLES: tuple[type[Row], ...] = (
    Run,
    Qemu,
    Cell,
    Result,
    Confirmation,
    Measurement,
    Running,
    Finding,
    StepPair,
)
