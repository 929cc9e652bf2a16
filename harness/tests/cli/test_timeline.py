from __future__ import annotations

from pathlib import Path

from harness.tests.cli.conftest import Harness
from harness.tests.report.timeline import records
from harness.tests.report.timeline.trace_format import problems, read


def test_the_files_are_beside_the_record(harness: Harness, tmp_path: Path) -> None:
    folder = records.write(tmp_path / "test_it")
    ended = harness("timeline", folder)
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.splitlines() == [f"{folder}/timeline.svg", f"{folder}/timeline.trace.json"]
    assert (folder / "timeline.svg").is_file()
    assert problems(read((folder / "timeline.trace.json").read_text())) == []


def test_several_tests_get_a_folder_each(harness: Harness, tmp_path: Path) -> None:
    for name in ("a", "b"):
        records.write(tmp_path / "run" / name)
    assert harness("timeline", tmp_path / "run", "--into", tmp_path / "new").status == 0
    made = sorted(str(path.relative_to(tmp_path / "new")) for path in (tmp_path / "new").rglob("*.svg"))
    assert made == ["a/timeline.svg", "b/timeline.svg"]


def test_what_could_not_be_read_is_said(harness: Harness, tmp_path: Path) -> None:
    folder = records.write(tmp_path)
    (folder / "qmp.ndjson").unlink()
    ended = harness("timeline", folder)
    assert ended.status == 0
    assert ended.line == f"harness: {folder}: source: there is no qmp.ndjson"


def test_bad_input_is_one_line(harness: Harness, tmp_path: Path) -> None:
    ended = harness("timeline", tmp_path)
    assert (ended.status, ended.line) == (
        2,
        f"harness: {tmp_path}: contains no recorded test (no history.ndjson)",
    )
    records.write(tmp_path / "test")
    (tmp_path / "file").write_text("")
    ended = harness("timeline", tmp_path / "test", "--into", tmp_path / "file" / "below")
    assert ended.status == 3
    assert "cannot write" in ended.line
