"""The history file: what is written is read again; who else writes; which files are refused; migrations."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.errors import SetupError, UsageError
from harness.report.nights import rows, schema, store
from harness.report.nights.store import Store
from harness.tests import forked

RUN = rows.Run(
    uuid="u1",
    kind="scenarios",
    begun="2026-11-29T02:00:00+00:00",
    host="h",
    cores=2,
    load_begin=0.5,
    harness_version="0.1.0",
    harness_dirty=True,
    options=("--qemu", "7.2"),
    expected=1,
)
RESULT = rows.Result(
    nodeid="test_a.py::test_a[7.2-default-pc]",
    test="test_a.py::test_a[pc]",
    guarantees=("no leak",),
    outcome="passed",
    begun="2026-11-29T02:00:01+00:00",
    seconds=1.5,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "nights.sqlite"


def begin(opened: Store, uuid: str = "u1") -> int:
    return opened.begin_run(replace(RUN, uuid=uuid))


def test_what_is_written_is_read_again(path: Path) -> None:
    with Store(path) as opened:
        run = begin(opened)
        qemu = opened.add_qemu(rows.Qemu(run_id=run, name="7.2", version="7.2.22", build_id="ab12"))
        cell = opened.add_cell(
            rows.Cell(run_id=run, qemu_id=qemu, arch="x86_64", kernel="default", machine_type="pc")
        )
        opened.begin_test(rows.Running(run_id=run, worker="gw0", nodeid=RESULT.nodeid, begun=RESULT.begun))
        (running,) = opened.select(rows.Running)
        assert running.nodeid == RESULT.nodeid
        result = opened.add_result(
            replace(RESULT, run_id=run, cell_id=cell, outcome="new failure", signature="s"),
            [rows.Measurement(name="start", unit="s", value=0.25)],
            [rows.Confirmation(number=1, outcome="passed", seconds=1.0)],
        )
        opened.add_confirmations(result, [rows.Confirmation(number=2, outcome="passed", seconds=2.0)])
        opened.add_finding(rows.Finding(run_id=run, kind="fault", name="tag-kept", outcome="caught"))
        opened.end_run(run, ended="2026-11-29T02:01:00+00:00", exit_code=1, load=1.5)
    with Store(path, read_only=True) as read:
        (found,) = read.select(rows.Run)
        assert found == replace(RUN, id=run, ended="2026-11-29T02:01:00+00:00", exit_code=1, load_end=1.5), (
            "the run"
        )
        assert found.complete
        assert found.harness_dirty is True
        (one,) = read.select(rows.Result, "run_id = ?", [run])
        assert (one.guarantees, one.cell_id, one.signature) == (("no leak",), cell, "s")
        assert read.select(rows.Running) == [], "the test has ended"
        assert [m.value for m in read.select(rows.Measurement)] == [0.25]
        assert [c.seconds for c in read.select(rows.Confirmation, order="number DESC")] == [2.0, 1.0]
        assert [f.name for f in read.select(rows.Finding)] == ["tag-kept"]
        assert [q.build_id for q in read.select(rows.Qemu)] == ["ab12"]
    assert not path.with_name(f"{path.name}-wal").exists(), "one file is left, which can be copied"


def test_each_class_of_rows_has_the_columns_of_its_table(path: Path) -> None:
    with Store(path):
        pass
    database = sqlite3.connect(path)
    for kind in rows.TABLES:
        columns = [row[1] for row in database.execute(f"PRAGMA table_info({kind.TABLE})")]
        assert list(kind.columns()) == columns
    tables = {row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert {kind.TABLE for kind in rows.TABLES} == tables
    database.close()


def test_the_file_documents_itself(path: Path) -> None:
    with Store(path):
        pass
    database = sqlite3.connect(path)
    statements = [row[0] for row in database.execute("SELECT sql FROM sqlite_master WHERE type = 'table'")]
    database.close()
    assert all("--" in statement for statement in statements if "measurement(" not in statement)


def test_a_run_that_was_not_ended_is_incomplete(path: Path) -> None:
    with Store(path) as opened:
        begin(opened)
    with Store(path, read_only=True) as read:
        assert [run.complete for run in read.select(rows.Run)] == [False]


def test_a_transaction_is_all_or_nothing(path: Path) -> None:
    with Store(path) as opened:
        run = begin(opened)

        def write_half() -> None:
            with opened.transaction():
                opened.add_result(replace(RESULT, run_id=run))
                begin(opened)  # Its uuid is there already.

        with pytest.raises(SetupError, match="UNIQUE"):
            write_half()
        assert opened.select(rows.Result) == []
        opened.add_result(replace(RESULT, run_id=run))
        assert len(opened.select(rows.Result)) == 1


def test_the_last_result_of_a_test_counts(path: Path) -> None:
    """As with a plugin that runs a failed test again, and reports both."""
    measured = rows.Measurement(name="start", unit="s", value=1.0)
    with Store(path) as opened:
        run = begin(opened)
        opened.add_result(replace(RESULT, run_id=run, outcome="new failure"), [measured])
        opened.add_result(replace(RESULT, run_id=run), [measured])
        assert [result.outcome for result in opened.select(rows.Result)] == ["passed"]
        assert len(opened.select(rows.Measurement)) == 1


def test_a_full_disk_is_a_setup_error_and_the_file_stays_whole(path: Path) -> None:
    with Store(path) as opened:
        run = begin(opened)
        opened._db.execute("PRAGMA max_page_count = 1")  # At least the present size: as a full disk.
        large = replace(RESULT, run_id=run, cause="x" * 1_000_000)
        with pytest.raises(SetupError, match="full"):
            opened.add_result(large)
        assert opened.select(rows.Result) == []
    with Store(path, read_only=True) as read:
        assert len(read.select(rows.Run)) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"not SQLite, but long enough to have a header " * 40, "not a SQLite file"), (None, "does not exist")],
)
def test_a_file_that_cannot_be_read_is_refused_in_one_line(
    path: Path, content: bytes | None, message: str
) -> None:
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=message) as refused:
        Store(path, read_only=True)
    assert str(path) in refused.value.message
    assert "\n" not in str(refused.value)


def test_a_file_of_no_history_is_left_alone(path: Path) -> None:
    path.write_text("precious text, which is longer than the header of a database file" * 20)
    before = path.read_bytes()
    with pytest.raises(UsageError, match="not a SQLite file"):
        Store(path)
    assert path.read_bytes() == before


def test_another_programs_database_is_refused(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE run(id)")
    database.close()
    before = path.read_bytes()
    with pytest.raises(UsageError, match="of another program"):
        Store(path)
    assert path.read_bytes() == before


def test_a_newer_history_is_refused(path: Path) -> None:
    with Store(path):
        pass
    newer = len(schema.MIGRATIONS) + 1
    database = sqlite3.connect(path)
    database.execute(f"PRAGMA user_version = {newer}")
    database.close()
    with pytest.raises(UsageError, match=f"version {newer}; this harness knows versions up to"):
        Store(path)


def test_a_missing_folder_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist; make it first"):
        Store(tmp_path / "none" / "nights.sqlite")
    with pytest.raises(UsageError, match="is a folder"):
        Store(tmp_path)


def test_an_empty_file_becomes_a_history_but_is_none_to_read(path: Path) -> None:
    path.touch()
    with pytest.raises(UsageError, match="is empty"):
        Store(path, read_only=True)
    with Store(path) as opened:
        assert begin(opened) == 1


def test_a_reader_changes_nothing(path: Path) -> None:
    with Store(path) as opened:
        begin(opened)
    with Store(path, read_only=True) as read, pytest.raises(SetupError, match="readonly"):
        begin(read, "u2")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_history_in_a_read_only_folder_can_be_read(path: Path) -> None:
    with Store(path) as opened:
        begin(opened)
    path.chmod(0o444)
    path.parent.chmod(0o555)
    try:
        with Store(path, read_only=True) as read:
            assert len(read.select(rows.Run)) == 1
    finally:
        path.parent.chmod(0o755)


def test_a_file_of_an_earlier_version_is_migrated(path: Path) -> None:
    """The next version, made up: it adds a column, and fills it for rows that are there."""
    with Store(path) as opened:
        begin(opened)
    database = sqlite3.connect(path, isolation_level=None)
    next_one = ("ALTER TABLE run ADD COLUMN site TEXT", "UPDATE run SET site = host")
    store.migrate(database, path, (*schema.MIGRATIONS, next_one))
    assert database.execute("SELECT site FROM run").fetchall() == [("h",)]
    assert database.execute("PRAGMA user_version").fetchone() == (len(schema.MIGRATIONS) + 1,)
    database.close()


def test_a_migration_that_fails_leaves_the_file_as_it_was(path: Path) -> None:
    with Store(path) as opened:
        begin(opened)
    database = sqlite3.connect(path, isolation_level=None)
    broken = ("ALTER TABLE run ADD COLUMN site TEXT", "UPDATE none SET site = host")
    with pytest.raises(sqlite3.OperationalError):
        store.migrate(database, path, (*schema.MIGRATIONS, broken))
    database.close()
    with Store(path) as opened:
        assert len(opened.select(rows.Run)) == 1


def _write_runs(path: Path, name: str, runs: int, results: int) -> None:
    for number in range(runs):
        with Store(path) as opened:  # Opened and closed each time: the file is made and its mode switched.
            run = begin(opened, f"{name}-{number}")
            for index in range(results):
                opened.begin_test(
                    rows.Running(run_id=run, worker="main", nodeid=f"t{index}", begun=RESULT.begun)
                )
                opened.add_result(
                    replace(RESULT, run_id=run, nodeid=f"t{index}"),
                    [rows.Measurement(name="start", unit="s", value=1.0)],
                )
            opened.end_run(run, ended="2026-11-29T02:01:00+00:00", exit_code=0)


def test_a_file_that_becomes_a_history_meanwhile_is_not_refused(path: Path) -> None:
    """Another process makes it a history between the queries that say what the file is."""
    opened = sqlite3.connect(path, isolation_level=None)

    class Interrupted:
        """A connection, and the other process after its first query."""

        in_transaction = property(lambda self: opened.in_transaction)

        def execute(self, query: str) -> Any:
            row = opened.execute(query).fetchone()
            if query == "PRAGMA application_id":
                other = sqlite3.connect(path, isolation_level=None, timeout=0)
                # Where it has to wait for the reader, it is too late.
                with contextlib.suppress(sqlite3.OperationalError):
                    store.migrate(other, path)
                other.close()
            return SimpleNamespace(fetchone=lambda: row)

    assert store._version(cast(sqlite3.Connection, Interrupted()), path) == 0
    assert not opened.in_transaction
    store.migrate(opened, path)
    assert store._version(opened, path) == len(schema.MIGRATIONS)
    opened.close()


def test_several_processes_write_at_the_same_time(path: Path) -> None:
    """None fails, and nothing is lost, from the making of the file on."""
    processes, runs, results = 6, 5, 10
    made = forked.context()
    writers = [
        made.Process(target=_write_runs, args=(path, f"p{number}", runs, results))
        for number in range(processes)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * processes
    with Store(path, read_only=True) as read:
        assert len(read.select(rows.Run, "ended IS NOT NULL")) == processes * runs
        assert len(read.select(rows.Result)) == processes * runs * results
        assert len(read.select(rows.Measurement)) == processes * runs * results
        assert read.select(rows.Running) == []
