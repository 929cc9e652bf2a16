from __future__ import annotations

import pytest

from harness.tests.cli.conftest import Harness


def test_bad_input_is_one_line(harness: Harness) -> None:
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
    assert "the key exchange" in ended.out
    assert "100 %" in ended.out
