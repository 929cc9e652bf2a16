from __future__ import annotations

from pathlib import Path

import pytest

from harness.tests.cli.conftest import Harness


def test_bad_input(harness: Harness) -> None:
    assert "start" in harness("bench", "nothing").err
    assert harness("bench", "--rounds", "0").status == 2


@pytest.mark.qemu
def test_the_table_as_json(harness: Harness) -> None:
    ended = harness("bench", "cycle", "--rounds", "1", "--accel", "tcg", "--json")
    assert ended.status == 0, ended.err
    facts = ended.json
    assert [row["name"] for row in facts["rows"]] == ["booted guest", "restored guest"]
    assert facts["machine"] == "pc"


@pytest.mark.qemu
def test_the_profile_of_a_start(harness: Harness) -> None:
    ended = harness("bench", "profile", "--rounds", "1", "--accel", "tcg")
    assert ended.status == 0, ended.err
    assert "the first command" in ended.out
    assert "100 %" in ended.out


@pytest.mark.qemu
def test_the_suite_with_1_2_and_4_workers(harness: Harness) -> None:
    chosen = ("-k", "test_names_that_are_taken_or_unknown", "--machine", "pc", "--accel", "tcg")
    ended = harness("bench", "suite", *chosen, "--json")
    assert ended.status == 0, ended.err
    rows = ended.json["rows"]
    assert [row["workers"] for row in rows] == [1, 2, 4]
    assert all(0 < row["python_s"] < row["cpu_s"] for row in rows), rows


def test_a_suite_that_fails_gives_an_error(
    harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenarios = tmp_path / "scenarios"
    scenarios.mkdir()
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    monkeypatch.setattr("harness.cli.bench.scenarios_folder", lambda: scenarios)
    ended = harness("bench", "suite", "-k", "no_such_scenario")
    assert ended.status != 0
    assert "with -n 1, pytest exited with 5" in ended.err
