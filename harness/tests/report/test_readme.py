"""README.md shows bugs of the ledger, and names files: both have to be as they are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness.guarantees import BY_FILE
from harness.report import ledger

ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text()
ROWS = re.findall(r"^\| (R\d+) \| (.*) \| (.*) \|$", README, re.MULTILINE)
BUGS = {bug.id: bug for bug in ledger.load().bug}
BASES = (ROOT, ROOT / "harness")
#: Files of QEMU and of the kernel.
ELSEWHERE = ("hw/", "fsdev/", "drivers/", "net/")
DOCUMENTS = ("README.md", "harness/ARCHITECTURE.md", "harness/GUIDE.md")


def test_readme_counts_the_bugs() -> None:
    assert f"\n{len(BUGS)} bugs of QEMU releases are in the ledger" in README
    assert ROWS


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_bug_in_readme_is_as_in_the_ledger(row: tuple[str, str, str]) -> None:
    identifier, title, versions = row
    assert title == BUGS[identifier].title
    assert re.findall(r"`(.*?)`", versions) == list(BUGS[identifier].affected)


def test_readme_lists_each_file_of_scenarios() -> None:
    assert set(re.findall(r"^\| `scenarios/(test_\w+\.py)` \|", README, re.MULTILINE)) == set(BY_FILE)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_a_document_names_exist(document: str) -> None:
    """Those with a folder: ``restore/store.py`` is below the package."""
    text = (ROOT / document).read_text()
    named = set(re.findall(r"`((?:\w[\w.-]*/)+[\w.-]+\.(?:py|pl|toml|supp|json))`", text))
    named -= {name for name in named if name.startswith(ELSEWHERE) or "NAME" in name or "RELEASE" in name}
    assert sorted(name for name in named if not any((base / name).exists() for base in BASES)) == []
