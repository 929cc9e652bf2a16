from __future__ import annotations

from pathlib import Path

import pytest

from harness.tests.checkers.record_writer import RecordWriter


@pytest.fixture
def record(tmp_path: Path) -> RecordWriter:
    """The record of a test that went well, up to where its machine would be ended."""
    return RecordWriter(tmp_path)
