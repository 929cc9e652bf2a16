"""The record that a checker reads: the folder of one test."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.artifacts import HISTORY, MachineArtifacts
from harness.errors import UsageError
from harness.history import Entry, Kind, as_mapping, read

_BACKTRACE_FRAMES = 25


@dataclass(frozen=True)
class MachineRecord:
    """One machine of a record: its ``machine:launch`` entry, and its files."""

    name: str
    launch: Entry
    artifacts: MachineArtifacts


@dataclass(frozen=True)
class Record:
    """A test's folder, with its history parsed."""

    folder: Path
    entries: tuple[Entry, ...]
    machines: tuple[MachineRecord, ...]

    @classmethod
    def load(cls, folder: Path) -> Record:
        """Read the record of a test in ``folder``.

        :raises UsageError: when there is no history, or it cannot be read.
        """
        entries = _without_discarded(read(folder / HISTORY))
        machines = tuple(_machine(folder, e) for e in entries if e.f == "machine:launch")
        return cls(folder, entries, machines)

    def of(self, actor: str, f: str) -> Iterator[Entry]:
        """The entries of a record by ``actor`` whose operation is ``f``, in order."""
        return (e for e in self.entries if e.actor == actor and e.f == f)

    def last(self, actor: str, f: str) -> Entry | None:
        """The last entry of a record by ``actor`` whose operation is ``f``, or ``None``."""
        return next((e for e in reversed(self.entries) if e.actor == actor and e.f == f), None)

    def ends(self) -> dict[int, Entry]:
        """The end of each operation of a record that has one, by the ``seq`` of its ``invoke``."""
        return {e.op: e for e in self.entries if e.op is not None}

    def commands(self, machine: str) -> list[Entry]:
        """The QMP commands sent to a machine, in order, as the record has them."""
        return [e for e in self.entries if e.actor == machine and e.kind is Kind.INVOKE and _is_qmp(e)]


def _without_discarded(entries: list[Entry]) -> tuple[Entry, ...]:
    """Leaves out of a record the entries of machines that were discarded: they are not judged."""
    discarded = {e.actor: e.seq for e in entries if e.f == "machine:discarded"}
    gone = {e.seq for e in entries if e.seq < discarded.get(e.actor.removeprefix("guest:"), 0)}
    return tuple(e for e in entries if e.seq not in gone and e.op not in gone)


def _is_qmp(entry: Entry) -> bool:
    return entry.f.startswith("qmp:")


def _machine(folder: Path, launch: Entry) -> MachineRecord:
    where = as_mapping(launch.value).get("artifacts")
    if not isinstance(where, str):
        raise UsageError(f"{folder}: the launch of {launch.actor} (seq {launch.seq}) names no artefacts")
    return MachineRecord(launch.actor, launch, MachineArtifacts(folder / where))


def backtrace_of(machine: MachineRecord) -> list[str]:
    """The parts of a machine's backtrace that a failure shows: our notes, and the first thread's frames."""
    lines = (text_of(machine.artifacts.backtrace) or "").splitlines()
    notes = [line for line in lines if line.startswith(("no backtrace:", "note:"))]
    threads: list[list[str]] = []
    for line in lines:
        if line.startswith("#0 "):
            threads.append([])
        if line.startswith("#") and threads:
            threads[-1].append(line)
    # gdb first prints the innermost frame alone.
    frames = next((frames for frames in threads if len(frames) > 1), [*threads, []][0])
    return [*notes, *frames[:_BACKTRACE_FRAMES]]


def text_of(path: Path) -> str | None:
    """The text of a log of a record: invalid UTF-8 is replaced, CRs are removed; ``None`` without a file."""
    try:
        return path.read_bytes().decode("utf-8", "replace").replace("\r", "")
    except OSError:
        return None
