from __future__ import annotations

import pytest

from harness.provision.faults import Catalogue
from harness.tests.cli.conftest import Harness


def test_the_catalogue_is_listed(harness: Harness) -> None:
    listed = harness("faults", "list", "--json")
    assert list(listed.json) == Catalogue().names()
    assert "tag-kept" in harness("faults", "list").out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ("build", "--qemu", "1.0"),
            "--qemu 1.0: no QEMU by that name is built from source; known: 7.2, 10",
        ),
        (("run", "-n", "0"), "-n"),
        (("run", "--qemu", "/usr/bin/true"), "no QEMU by that name is built from source"),
    ],
)
def test_bad_input_is_one_line(harness: Harness, words: tuple[str, ...], told: str) -> None:
    ended = harness("faults", *words)
    assert ended.status != 0
    assert told in ended.err
