"""One history per test: every operation and every event, in one order, written live as NDJSON.

An operation begins with an ``invoke`` entry and ends with ``ok``, ``fail`` (it did not happen) or
``info`` (nobody can know); one without an end is read as ``info``. Events and notes stand alone.
Everything that judges or reports reads this record and nothing else (the idea is Jepsen's).
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from harness.errors import CommandFailed, HarnessError, QemuError, SetupError, UsageError

#: A note of an error of the harness's own, outside of the test's thread; its value's ``error`` is one line.
#: What the record shows since cannot be relied on (see the checker ``history_well_formed``).
HARNESS_ERROR = "harness:error"
#: What Python makes of a byte that is no UTF-8, as in the name of a file.
_SURROGATE = re.compile("[\ud800-\udfff]")


class Kind(str, Enum):
    """What an entry is: the start of an operation, one of its three ends, an event, a note."""

    INVOKE = "invoke"
    OK = "ok"
    FAIL = "fail"
    INFO = "info"
    EVENT = "event"
    NOTE = "note"


class Entry(BaseModel):
    """One line of a history.

    ``seq`` counts from 0 without gaps; ``t_s`` are monotonic seconds since the history was opened;
    ``op`` is, for an end, the ``seq`` of its ``invoke``; ``actor`` is the machine, ``guest:``\\ *machine*
    or ``host``; ``f`` names what was done, as ``qmp:device_del`` or ``event:DEVICE_DELETED``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    seq: int
    t_s: float
    kind: Kind
    actor: str
    f: str
    op: int | None = None
    value: Any = None


@dataclass
class Operation:
    """An operation under way; ended once by :meth:`ok`, :meth:`fail` or :meth:`info`."""

    _history: History
    seq: int
    actor: str
    f: str
    ended: bool = False

    def ok(self, value: Any = None) -> None:
        """It happened; ``value`` is what came back."""
        self._end(Kind.OK, value)

    def fail(self, value: Any = None) -> None:
        """It did not happen; ``value`` says why."""
        self._end(Kind.FAIL, value)

    def info(self, value: Any = None) -> None:
        """Nobody can know whether it happened; ``value`` says why."""
        self._end(Kind.INFO, value)

    def _end(self, kind: Kind, value: Any) -> None:
        if not self.ended:
            self.ended = True
            self._history.append(kind, self.actor, self.f, value, op=self.seq)


class History:
    """The writer of one history file; safe to use from several threads.

    :param path: the NDJSON file; it is created, and each entry is flushed as it is made.
    :ivar lost: why the record, or another file of the test, could not be written (a full disk), once that was
        so. Nothing is written from then on. Nobody who notes something fails by it: machines are still to be
        ended. Whoever closes the history has to raise it (:meth:`check`).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._seq = 0
        self.lost: str | None = None
        self._zero_s = time.monotonic()
        self._file = path.open("w", encoding="utf-8")
        self.note("host", "opened", {"wall": datetime.now(UTC).isoformat()})

    def append(self, kind: Kind, actor: str, f: str, value: Any = None, *, op: int | None = None) -> int:
        """Write one entry and return its ``seq``; after :meth:`close` it is dropped."""
        with self._lock:
            seq = self._seq
            self._seq += 1
            entry: dict[str, Any] = {
                "seq": seq,
                "t_s": round(time.monotonic() - self._zero_s, 6),
                "kind": kind.value,
                "actor": actor,
                "f": f,
            }
            if op is not None:
                entry["op"] = op
            if value is not None:
                entry["value"] = value
            if self.lost is None and not self._file.closed:
                try:
                    self._file.write(_line(entry))
                    self._file.flush()
                except OSError as exc:
                    self.lose(self.path, exc)
            return seq

    def lose(self, path: Path, exc: OSError) -> None:
        """A file of the test, ``path``, could not be written; the first one is remembered."""
        self.lost = self.lost or f"{path}: {exc.strerror}"

    def check(self) -> None:
        """:raises SetupError: when something could not be written, and so was lost."""
        if self.lost is not None:
            raise SetupError(f"the record of the test is incomplete: cannot write {self.lost}")

    def invoke(self, actor: str, f: str, value: Any = None) -> Operation:
        """Begin an operation."""
        return Operation(self, self.append(Kind.INVOKE, actor, f, value), actor, f)

    def event(self, actor: str, f: str, value: Any = None) -> int:
        """Record something that happened without being asked for."""
        return self.append(Kind.EVENT, actor, f, value)

    def note(self, actor: str, f: str, value: Any = None) -> int:
        """Record a fact that checkers or readers need: a witness, a declared tolerance."""
        return self.append(Kind.NOTE, actor, f, value)

    @contextmanager
    def operation(self, actor: str, f: str, value: Any = None) -> Iterator[Operation]:
        """An operation over a block: ``ok`` at its end, ``fail`` when it was refused, else ``info``.

        A refusal (:class:`~harness.errors.QemuError`, :class:`~harness.errors.CommandFailed`) means
        that it did not happen; any other exception leaves that open.
        """
        op = self.invoke(actor, f, value)
        try:
            yield op
        except (QemuError, CommandFailed) as exc:
            op.fail(exc.message)
            raise
        except BaseException as exc:
            op.info(exc.message if isinstance(exc, HarnessError) else repr(exc))
            raise
        op.ok()

    def close(self) -> None:
        """Close the file; entries that come later are dropped."""
        with self._lock:
            try:
                self._file.close()
            except OSError as exc:  # What was left to write could not be written either.
                self.lose(self.path, exc)


def _line(entry: dict[str, Any]) -> str:
    """An entry as JSON, whose readers take no lone surrogate: a byte that is no UTF-8 becomes ``\\\\xNN``."""
    text = json.dumps(entry, default=repr, ensure_ascii=False)
    return _SURROGATE.sub(lambda found: rf"\\x{ord(found[0]) & 0xFF:02x}", text) + "\n"


def read(path: Path) -> list[Entry]:
    """Read a history back.

    A last line without its newline (the writer was killed) is left out.

    :raises UsageError: with file and line, when a line is not an entry or ``seq`` has a gap.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"{path}: cannot read this history: {exc}") from exc
    complete = text[: text.rfind("\n") + 1]
    entries: list[Entry] = []
    for number, line in enumerate(complete.split("\n")[:-1], start=1):
        try:
            entry = Entry.model_validate_json(line)
        except ValidationError as exc:
            first = exc.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "line"
            raise UsageError(f"{path}:{number}: not an entry: {where}: {first['msg']}") from exc
        if entry.seq != len(entries):
            raise UsageError(f"{path}:{number}: seq is {entry.seq}, expected {len(entries)}")
        entries.append(entry)
    return entries


def outcome_of(entries: list[Entry], invoke: Entry) -> Entry | None:
    """The end of the operation that ``invoke`` began, or ``None`` when it never ended."""
    return next((e for e in entries[invoke.seq + 1 :] if e.op == invoke.seq), None)


def as_mapping(value: Any) -> Mapping[str, Any]:
    """``value`` if it is a mapping, else an empty one: for readers of entries' values."""
    return value if isinstance(value, Mapping) else {}
