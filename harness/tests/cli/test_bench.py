from __future__ import annotations

import subprocess
from collections.abc import Sequence
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


def test_a_suite_that_fails_gives_an_error(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """That pytest does fail is shown in ``tests/bench/test_suite.py``."""
    asked: list[Sequence[str]] = []

    def run_pytest(argv: Sequence[str], _folder: Path, **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(argv)
        return subprocess.CompletedProcess(argv, 5, "no tests ran", "")

    monkeypatch.setattr("harness.bench.suite.run_pytest", run_pytest)
    ended = harness("bench", "suite", "-k", "no_such_scenario")
    assert ended.status != 0
    assert "with -n 1, pytest exited with 5: no tests ran" in ended.err
    assert [argv[-2:] for argv in asked] == [["-k", "no_such_scenario"]]
