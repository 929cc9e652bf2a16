from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.artifacts import HISTORY, VERDICT
from harness.tests.checkers.record_writer import RecordWriter
from harness.tests.cli.conftest import Harness


def _record(folder: Path, **left: list[str]) -> Path:
    """The record of a test that passed. ``left`` is what it left behind."""
    folder.mkdir(parents=True)
    RecordWriter(folder).launched().quit().closed(**left)
    return folder


def test_a_valid_record(harness: Harness, tmp_path: Path) -> None:
    folder = _record(tmp_path / "test_it")
    ended = harness("check", folder)
    assert (ended.status, ended.err) == (0, "")
    assert "test_it" in ended.out
    assert "valid" in ended.out
    assert json.loads((folder / VERDICT).read_text())["verdict"] == "valid"


def test_a_folder_with_a_valid_and_an_invalid_record(harness: Harness, tmp_path: Path) -> None:
    _record(tmp_path / "test_good")
    _record(tmp_path / "test_bad", mounts=["/tmp/some [red]where[/] :key: else"])
    ended = harness("check", tmp_path)
    assert ended.status == 1
    (good,) = (line for line in ended.out.splitlines() if "test_good" in line)
    (bad,) = (line for line in ended.out.splitlines() if "test_bad" in line)
    assert "invalid" not in good
    assert "invalid" in bad
    # On one line, and unchanged: no markup, no emoji.
    assert "nothing_left_behind: left behind: mounts: /tmp/some [red]where[/] :key: else" in bad


def test_an_unknown_verdict_is_not_valid(harness: Harness, tmp_path: Path) -> None:
    folder = _record(tmp_path / "test_it")
    (folder / HISTORY).write_text('{"not": "an entry"}\n')
    ended = harness("check", tmp_path)
    assert ended.status == 1
    assert "unknown" in ended.out
    assert f"{HISTORY}:1: not an entry" in ended.out


def test_json(harness: Harness, tmp_path: Path) -> None:
    good = _record(tmp_path / "test_good")
    bad = _record(tmp_path / "test_bad", folders=["/tmp/a"])
    ended = harness("check", "--json", tmp_path)
    assert ended.status == 1
    assert set(ended.json) == {str(good), str(bad)}
    assert {judgement["verdict"] for judgement in ended.json[str(good)]} == {"valid"}
    (why,) = (judgement for judgement in ended.json[str(bad)] if judgement["verdict"] != "valid")
    assert why["checker"] == "nothing_left_behind"
    assert why["evidence"] == ["folders: /tmp/a"]


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("nowhere", "no such folder"),
        ("file", "not a folder"),
        ("empty", "contains no recorded test (no history.ndjson)"),
    ],
)
def test_a_bad_folder(harness: Harness, tmp_path: Path, name: str, complaint: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    ended = harness("check", tmp_path / name)
    assert (ended.status, ended.out) == (2, "")
    assert ended.line == f"harness: {tmp_path / name}: {complaint}"


def test_a_verdict_that_cannot_be_written(harness: Harness, tmp_path: Path) -> None:
    folder = _record(tmp_path / "test_it")
    (folder / VERDICT).mkdir()
    ended = harness("check", folder)
    assert ended.status == 3
    assert ended.line == f"harness: cannot write {folder / VERDICT}: Is a directory"
