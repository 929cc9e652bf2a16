from __future__ import annotations

from pathlib import Path

import pytest

from harness.tests.checkers.story import Story


@pytest.fixture
def story(tmp_path: Path) -> Story:
    """The record of a test that went well, up to where its machine would be ended."""
    return Story(tmp_path)
