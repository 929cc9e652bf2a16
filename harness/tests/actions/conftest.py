from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.tests import fakes
from harness.tests.fakes import World


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = fakes.world(tmp_path, monkeypatch)
    yield made
    made.machine.history.close()
