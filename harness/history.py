"""The history of a test: all operations and events in one order, written as NDJSON while they happen.

An operation begins with an ``invoke`` entry and ends with ``ok`` (it happened), ``fail`` (it did not happen)
or ``info`` (unknown whether it happened). An operation without an end entry counts as ``info``. Events and
notes are single entries. Checkers and reports read only the history (the design is Jepsen's).
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
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from harness.errors import CommandFailed, HarnessError, QemuError, SetupError, UsageError

#: The note of an internal error of the harness outside the test's thread; ``error`` in its value is one line.
#: Entries after it are not reliable (see the checker ``history_well_formed``).
HARNESS_ERROR = "harness:error"
#: The beginning of a line, as :meth:`History.append` writes it.
_HEAD = re.compile(
    rb'^\{"seq": \d+, "t_s": ([\d.e-]+), "kind": "(\w+)", "actor": "([^"\\]*)", "f": "([^"\\]*)"'
    rb'(?:, "op": (\d+))?',
    re.MULTILINE,
)
#: How Python represents a byte that is not UTF-8, for example in a file name (PEP 383).
_SURROGATE = re.compile("[\ud800-\udfff]")


class Kind(str, Enum):
    """The kind of an entry: the start of an operation, one of its three ends, an event or a note."""

    INVOKE = "invoke"
    OK = "ok"
    FAIL = "fail"
    INFO = "info"
    EVENT = "event"
    NOTE = "note"


_KINDS = {kind.value.encode(): kind for kind in Kind}


class Entry(BaseModel):
    """One line of a history.

    ``seq`` counts from 0 without gaps. ``t_s`` is the monotonic time in seconds since the history was opened.
    ``op``, in an end entry, is the ``seq`` of its ``invoke``. ``actor`` is the name of the machine,
    ``guest:``\\ *machine* or ``host``. ``f`` names the operation or event, such as ``qmp:device_del`` or
    ``event:DEVICE_DELETED``.
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
    """An operation in progress; ended once by :meth:`ok`, :meth:`fail` or :meth:`info`."""

    _history: History
    seq: int
    actor: str
    f: str
    ended: bool = False

    def ok(self, value: Any = None) -> None:
        """The operation in the history happened; ``value`` is its result."""
        self._end(Kind.OK, value)

    def fail(self, value: Any = None) -> None:
        """The operation in the history did not happen; ``value`` is the reason."""
        self._end(Kind.FAIL, value)

    def info(self, value: Any = None) -> None:
        """It is unknown whether the operation in the history happened; ``value`` is the reason."""
        self._end(Kind.INFO, value)

    def _end(self, kind: Kind, value: Any) -> None:
        if not self.ended:
            self.ended = True
            self._history.append(kind, self.actor, self.f, value, op=self.seq)


class History:
    """The writer of one history file; thread-safe.

    :param path: the NDJSON file; it is created, and every entry is flushed at once.
    :ivar write_error: the first error in writing the history or another file of the test, such as a full
        disk; ``None`` while there was none. After it nothing more is written, and no method raises, so that
        machines can still be ended. :meth:`check` raises it; whoever closes the history has to call that.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._seq = 0
        self.write_error: str | None = None
        self._zero_s = time.monotonic()
        self._file = path.open("w", encoding="utf-8")
        self.note("host", "opened", {"wall": datetime.now(UTC).isoformat()})

    def append(self, kind: Kind, actor: str, f: str, value: Any = None, *, op: int | None = None) -> int:
        """Write one entry to the history and return its ``seq``; after :meth:`close` the entry is dropped."""
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
            if self.write_error is None and not self._file.closed:
                try:
                    self._file.write(_line(entry))
                    self._file.flush()
                except OSError as exc:
                    self.record_write_error(self.path, exc)
            return seq

    def record_write_error(self, path: Path, exc: OSError) -> None:
        """Record that ``path``, a file of the test, could not be written; the first such error is kept."""
        self.write_error = self.write_error or f"{path}: {exc.strerror}"

    def check(self) -> None:
        """:raises SetupError: when the history or another file of the test could not be written."""
        if self.write_error is not None:
            raise SetupError(f"the record of the test is incomplete: cannot write {self.write_error}")

    def invoke(self, actor: str, f: str, value: Any = None) -> Operation:
        """Begin an operation in the history."""
        return Operation(self, self.append(Kind.INVOKE, actor, f, value), actor, f)

    def event(self, actor: str, f: str, value: Any = None) -> int:
        """Record an event in the history: something that no operation of the test is the direct answer to."""
        return self.append(Kind.EVENT, actor, f, value)

    def note(self, actor: str, f: str, value: Any = None) -> int:
        """Record a fact in the history, such as a witness or a declared tolerance."""
        return self.append(Kind.NOTE, actor, f, value)

    @contextmanager
    def operation(self, actor: str, f: str, value: Any = None) -> Iterator[Operation]:
        """An operation that spans a block: ``ok`` at its end, ``fail`` on a refusal, else ``info``.

        A refusal (:class:`~harness.errors.QemuError`, :class:`~harness.errors.CommandFailed`) means that the
        operation did not happen. After any other exception this is unknown.
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
        """Close the history; later entries are dropped."""
        with self._lock:
            try:
                self._file.close()
            except OSError as exc:  # Buffered data could not be written.
                self.record_write_error(self.path, exc)


def _line(entry: dict[str, Any]) -> str:
    """An entry of the history as JSON.

    JSON readers reject lone surrogates: a byte that is not UTF-8 becomes ``\\xNN``.
    """
    text = json.dumps(entry, default=repr, ensure_ascii=False)
    return _SURROGATE.sub(lambda found: rf"\\x{ord(found[0]) & 0xFF:02x}", text) + "\n"


def read(path: Path) -> list[Entry]:
    """Read a history file.

    A last line without a newline (the writer was killed) is ignored.

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


class Head(NamedTuple):
    """An entry without its value, as in :class:`Entry`; ``seq`` is its index."""

    t_s: float
    kind: Kind
    actor: str
    f: str
    op: int | None


def heads(path: Path) -> list[Head]:
    """The entries of a history file without their values, which takes a tenth of the time of :func:`read`.

    For what must not cost anything: lines that are damaged are not noticed. A file that cannot be read has no
    entries.
    """
    try:
        text = path.read_bytes()
    except OSError:
        return []
    return [
        Head(float(t_s), _KINDS[kind], actor.decode(), f.decode(), int(op) if op else None)
        for t_s, kind, actor, f, op in _HEAD.findall(text)
    ]


def outcome_of(entries: list[Entry], invoke: Entry) -> Entry | None:
    """The end entry of the operation that ``invoke`` began in a history, or ``None`` if there is none."""
    return next((e for e in entries[invoke.seq + 1 :] if e.op == invoke.seq), None)


def as_mapping(value: Any) -> Mapping[str, Any]:
    """``value`` of a history's entry if it is a mapping, else an empty mapping."""
    return value if isinstance(value, Mapping) else {}
