from __future__ import annotations

import json
import os
import threading
from itertools import pairwise
from pathlib import Path

import pytest

from harness.errors import CommandFailed, QemuError, SetupError, UsageError, WaitTimeout
from harness.history import History, Kind, heads, outcome_of, read


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "history.ndjson"


def test_entries_are_on_disk_at_once_and_in_order(path: Path) -> None:
    history = History(path)
    op = history.invoke("source", "qmp:stop", {"a": 1})
    history.event("source", "event:STOP")
    op.ok({"b": 2})
    op.fail("an operation ends once")
    entries = read(path)
    assert [(e.seq, e.kind, e.f, e.op) for e in entries] == [
        (0, Kind.NOTE, "opened", None),
        (1, Kind.INVOKE, "qmp:stop", None),
        (2, Kind.EVENT, "event:STOP", None),
        (3, Kind.OK, "qmp:stop", 1),
    ]
    assert outcome_of(entries, entries[1]) == entries[3]
    assert entries[3].value == {"b": 2}


def test_any_text_can_be_read_back(path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    history = History(path)
    history.note("host", "test", {name: f"{name}, a line\u2028separator, a \U0001f41b"})
    assert read(path)[1].value == {"caf\\xe9": "caf\\xe9, a line\u2028separator, a \U0001f41b"}


def test_a_full_disk_is_reported_at_the_end_only() -> None:
    history = History(Path("/dev/full"))
    with history.operation("source", "qmp:quit"):
        history.note("source", "machine:exit")
    history.close()
    with pytest.raises(SetupError, match=r"incomplete: cannot write /dev/full: No space left on device$"):
        history.check()


def test_a_record_that_was_written_is_complete(path: Path) -> None:
    history = History(path)
    history.close()
    history.check()


def test_many_threads_write_one_order(path: Path) -> None:
    history = History(path)

    def write(actor: str) -> None:
        for _ in range(50):
            history.invoke(actor, "qmp:x").ok()

    threads = [threading.Thread(target=write, args=(f"m{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    entries = read(path)  # Checks that seq has no gap.
    assert len(entries) == 1 + 8 * 100
    assert all(a.t_s <= b.t_s for a, b in pairwise(entries))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (QemuError("source", {"execute": "stop"}, {}, "no"), Kind.FAIL),
        (CommandFailed("guest:source", "false", 1, "", ""), Kind.FAIL),
        (WaitTimeout("x", last=None, elapsed_s=1), Kind.INFO),
        (ZeroDivisionError(), Kind.INFO),
    ],
)
def test_how_an_operation_over_a_block_ends(path: Path, error: Exception, kind: Kind) -> None:
    history = History(path)
    with pytest.raises(type(error)), history.operation("source", "migrate"):
        raise error
    with history.operation("source", "migrate"):
        pass
    assert [e.kind for e in read(path)] == [Kind.NOTE, Kind.INVOKE, kind, Kind.INVOKE, Kind.OK]


def test_what_comes_after_the_close_is_dropped(path: Path) -> None:
    history = History(path)
    history.close()
    history.event("source", "machine:exit")
    assert len(read(path)) == 1


def test_a_last_line_that_was_cut_is_left_out(path: Path) -> None:
    History(path).note("host", "whole")
    with path.open("a") as file:
        file.write('{"seq": 2, "t_s"')
    assert [e.f for e in read(path)] == ["opened", "whole"]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("nonsense", r":2: not an entry"),
        (
            json.dumps({"seq": 1, "t_s": 0, "kind": "maybe", "actor": "a", "f": "f"}),
            ":2: not an entry: kind",
        ),
        (
            json.dumps({"seq": 5, "t_s": 0, "kind": "note", "actor": "a", "f": "f"}),
            ":2: seq is 5, expected",
        ),
    ],
)
def test_the_error_for_an_invalid_line_has_its_number(path: Path, line: str, complaint: str) -> None:
    History(path).close()
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(UsageError, match=complaint):
        read(path)


def test_no_history(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read this history"):
        read(tmp_path / "absent")


def test_heads_are_the_entries_without_their_values(tmp_path: Path) -> None:
    """What the writer of a history writes is what the fast reader of it reads."""
    opened = History(tmp_path / "h")
    opened.invoke("source", "qmp:device_del", {"id": 'a"b', "text": '\n{"seq": 7, "kind": "ok"'}).ok({})
    opened.event("source", "event:DEVICE_DELETED", {"device": "ü\udcff"})
    with pytest.raises(ValueError, match="no"), opened.operation("guest:source", "ssh:run"):
        raise ValueError("no")
    opened.close()
    entries = read(tmp_path / "h")
    assert len(entries) == 6
    assert heads(tmp_path / "h") == [(e.t_s, e.kind, e.actor, e.f, e.op) for e in entries]
    assert heads(tmp_path / "none") == []
