"""Opens, migrates, writes and reads a history file. Everything that changes such a file is in this module.

Several processes may write at the same time: the file is in WAL mode, a writer waits for another one, and
each method that writes is one transaction. A killed process loses at most the one that it was writing.

Sources: https://www.sqlite.org/wal.html, https://www.sqlite.org/pragma.html.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from harness.deadline import wait_until
from harness.errors import SetupError, UsageError, WaitTimeout
from harness.report.nights import rows
from harness.report.nights.schema import APPLICATION_ID, MIGRATIONS

R = TypeVar("R", bound=rows.Row)
#: Seconds that a writer waits for another one. The longest transaction is that of "harness merge --record".
_BUSY_S = 60.0
#: Columns that hold a JSON list of strings.
_LISTS = frozenset({"options", "guarantees"})
#: Columns that hold 0 or 1.
_FLAGS = frozenset({"harness_dirty"})


class Store:
    """An open history file. Use it from one thread.

    :param path: the file. It is made if its folder exists.
    :param read_only: the file has to exist, and nothing in it is changed, except by a migration.
    :raises UsageError: for a file that is no history, is of a newer version, or cannot be opened.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self._db = _open(path, read_only=read_only)

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. The last one to close it joins ``FILE-wal`` to the file."""
        with suppress(sqlite3.Error):
            self._db.close()

    # Reading

    def select(
        self, kind: type[R], where: str = "1", parameters: Sequence[Any] = (), *, order: str = "rowid"
    ) -> list[R]:
        """The rows of a table in the history file.

        :param where: an SQL expression over its columns, such as ``run_id = ?``.
        :param order: column names, such as ``begun, id``; by default the order in which they were written.
        :raises SetupError: when the file cannot be read.
        """
        query = f"SELECT {', '.join(kind.columns())} FROM {kind.TABLE} WHERE {where} ORDER BY {order}"
        with self._errors("read"):
            return [_row(kind, values) for values in self._db.execute(query, parameters)]

    # Writing

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """What is written to the history file in the block is there completely, or not at all.

        :raises SetupError: when it cannot be written, for example because the disk is full.
        """
        with self._errors("write"):
            if self._db.in_transaction:  # The outer one decides.
                yield
                return
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                # After some errors, such as a full disk, SQLite has rolled back already.
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def begin_run(self, run: rows.Run) -> int:
        """Insert the row of a run that begins, and return its id."""
        with self.transaction():
            return self._insert(run)

    def end_run(self, run_id: int, *, ended: str, exit_code: int | None, load: float | None = None) -> None:
        """Update the row of a run: it is complete; nothing of it is running any more."""
        with self.transaction():
            self._db.execute(
                "UPDATE run SET ended = ?, exit_code = ?, load_end = ? WHERE id = ?",
                (ended, exit_code, load, run_id),
            )
            self._db.execute("DELETE FROM running WHERE run_id = ?", (run_id,))

    def expect(self, run_id: int, tests: int) -> None:
        """Update the row of a run with the number of its tests, which is known when they were collected."""
        with self.transaction():
            self._db.execute("UPDATE run SET expected = ? WHERE id = ?", (tests, run_id))

    def add_qemu(self, qemu: rows.Qemu) -> int:
        """Insert the row of a QEMU of a run, and return its id."""
        with self.transaction():
            return self._insert(qemu)

    def add_cell(self, cell: rows.Cell) -> int:
        """Insert the row of a cell of a run, and return its id."""
        with self.transaction():
            return self._insert(cell)

    def begin_test(self, running: rows.Running) -> None:
        """Insert a row: the test that a worker is running."""
        with self.transaction():
            self._insert(running, "OR REPLACE")

    def add_result(
        self,
        result: rows.Result,
        measurements: Iterable[rows.Measurement] = (),
        confirmations: Iterable[rows.Confirmation] = (),
    ) -> int:
        """Insert a result's row with all that belongs to it, and return its id.

        Its test is not running any more.

        An earlier result of the same test in the same run is replaced: a plugin may have run it again.
        """
        with self.transaction():
            self._db.execute(
                "DELETE FROM result WHERE run_id = ? AND nodeid = ?", (result.run_id, result.nodeid)
            )
            found = self._insert(result)
            for measurement in measurements:
                self._insert(replace(measurement, result_id=found))
            for confirmation in confirmations:
                self._insert(replace(confirmation, result_id=found))
            self._db.execute(
                "DELETE FROM running WHERE run_id = ? AND nodeid = ?", (result.run_id, result.nodeid)
            )
            return found

    def add_confirmations(self, result_id: int, confirmations: Iterable[rows.Confirmation]) -> None:
        """Insert the rows of further runs of a failed test."""
        with self.transaction():
            for confirmation in confirmations:
                self._insert(replace(confirmation, result_id=result_id))

    def add_finding(self, finding: rows.Finding) -> int:
        """Insert a row for what an exploration, or a fault, showed, and return its id."""
        with self.transaction():
            return self._insert(finding)

    def add_step_pairs(self, pairs: Iterable[rows.StepPair]) -> None:
        """Write which steps an exploration has made after which."""
        with self.transaction():
            for pair in pairs:
                self._insert(pair)

    def _insert(self, row: rows.Row, conflict: str = "") -> int:
        columns = tuple(name for name in row.columns() if name != "id")
        places = ", ".join("?" * len(columns))
        made = self._db.execute(
            f"INSERT {conflict} INTO {row.TABLE}({', '.join(columns)}) VALUES({places})",
            [_value(name, getattr(row, name)) for name in columns],
        )
        return made.lastrowid or 0

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as exc:
            raise SetupError(f"{self.path}: cannot {doing} the history: {exc}") from exc


def _open(path: Path, *, read_only: bool) -> sqlite3.Connection:
    """Open a history and bring it to the newest version."""
    if not path.parent.is_dir():
        raise UsageError(f"{path}: the folder {path.parent} does not exist; make it first")
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; name a file for the history")
    if read_only and not path.exists():
        raise UsageError(f"{path}: does not exist; pytest writes a history with --record {path}")
    try:
        db = sqlite3.connect(_uri(path, read_only=read_only), timeout=_BUSY_S, isolation_level=None, uri=True)
    except sqlite3.Error as exc:
        raise UsageError(f"{path}: cannot be opened: {exc}") from exc
    try:
        _prepare(db, path, read_only=read_only)
    except (sqlite3.Error, WaitTimeout) as exc:
        db.close()
        raise UsageError(f"{path}: {_reason(exc)}") from exc
    except UsageError:
        db.close()
        raise
    return db


def _uri(path: Path, *, read_only: bool) -> str:
    """The URI of a history file.

    A reader who cannot make ``FILE-shm`` beside it has to say that nobody writes.
    """
    written = path.with_name(f"{path.name}-wal").exists()
    immutable = read_only and not written and not os.access(path.parent, os.W_OK)
    return f"{path.absolute().as_uri()}{'?immutable=1' if immutable else ''}"


def _reason(exc: Exception) -> str:
    if isinstance(exc, sqlite3.DatabaseError) and exc.sqlite_errorcode == sqlite3.SQLITE_NOTADB:
        return "not a history: not a SQLite file; name another file"
    return f"cannot be used as a history: {exc}"


def _prepare(db: sqlite3.Connection, path: Path, *, read_only: bool) -> None:
    version = _version(db, path)
    if version < len(MIGRATIONS):
        if read_only and version == 0:
            raise UsageError(
                f"{path}: is empty, and no history; pytest writes a history with --record {path}"
            )
        migrate(db, path)
    if not read_only:
        _use_wal(db)
        # A power failure may undo the last transactions, but does not damage the file. A killed process loses
        # nothing. Each test would otherwise wait for the disk.
        db.execute("PRAGMA synchronous = NORMAL")
    db.execute("PRAGMA foreign_keys = ON")
    if read_only:
        db.execute("PRAGMA query_only = ON")


def _version(db: sqlite3.Connection, path: Path) -> int:
    """The version of a history file; 0 for an empty one.

    :raises UsageError: when it is no history, or is newer than this harness knows.
    """
    application, version, tables = _at_once(
        db, ("PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_master")
    )
    if application != APPLICATION_ID and (application or version or tables):
        raise UsageError(f"{path}: not a history: a SQLite file of another program; name another file")
    if version > len(MIGRATIONS):
        raise UsageError(
            f"{path}: a history of version {version}; this harness knows versions up to {len(MIGRATIONS)}: "
            "use a newer harness, or name another file"
        )
    return int(version)


def _at_once(db: sqlite3.Connection, queries: Sequence[str]) -> list[int]:
    """The number that each query gives, of one state of the history file.

    Between two of them another process may make the file a history.
    """
    begun = not db.in_transaction
    if begun:
        db.execute("BEGIN")
    try:
        return [db.execute(query).fetchone()[0] for query in queries]
    finally:
        if begun and db.in_transaction:
            db.execute("ROLLBACK")


def migrate(db: sqlite3.Connection, path: Path, migrations: Sequence[Sequence[str]] = MIGRATIONS) -> None:
    """Bring a history file to the newest version, in one transaction.

    Another process may have done it meanwhile.
    """
    db.execute("BEGIN IMMEDIATE")
    try:
        for number in range(_version(db, path), len(migrations)):
            for statement in migrations[number]:
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {number + 1}")
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _use_wal(db: sqlite3.Connection) -> None:
    """Switch a history file to WAL mode. SQLite does not wait for other processes here, so this does.

    A file system without shared memory, such as a network's, keeps another mode, which works as well, slower.
    """

    def switched() -> bool:
        try:
            db.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                return False
            raise
        return True

    wait_until(switched, what="the history's other writers", timeout_s=_BUSY_S)


def _value(name: str, value: Any) -> Any:
    return json.dumps(value) if name in _LISTS else value


@lru_cache(maxsize=4096)
def _list(text: str) -> tuple[str, ...]:
    return tuple(json.loads(text))


def _row(kind: type[R], values: Sequence[Any]) -> R:
    given = dict(zip(kind.columns(), values, strict=True))
    for name in _LISTS & given.keys():
        given[name] = _list(given[name])
    for name in _FLAGS & given.keys():
        given[name] = bool(given[name])
    return kind(**given)
