from __future__ import annotations

import pytest

from harness.bench.endurance import LEAST, LIMITS
from harness.tests.cli.conftest import Harness


def test_bad_input(harness: Harness) -> None:
    assert "--workers" in harness("endurance", "--workers", "0").err
    assert harness("endurance", "--qemu", "/nothing").line == (
        "harness: --qemu /nothing: no such file (give a path to a binary, or a provisioned name)"
    )


@pytest.mark.qemu
def test_too_few_guests(harness: Harness) -> None:
    ended = harness("endurance", "--guests", "8", "--workers", "2", "--accel", "tcg")
    assert ended.status == 3
    assert "harness: 4 guests in one process are too few to measure growth" in ended.err


@pytest.mark.qemu
def test_the_table_as_json(harness: Harness) -> None:
    ended = harness("endurance", "--guests", str(2 * LEAST), "--workers", "2", "--accel", "tcg", "--json")
    assert ended.status == 0, ended.err + ended.out
    assert len(ended.json["rows"]) == 2 * len(LIMITS)
