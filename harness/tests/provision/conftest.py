from __future__ import annotations

from pathlib import Path

import pytest

from harness.tests.provision.archive import Archive, write_recipes


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    """A Debian archive on disk that this host's apt is configured for."""
    made = Archive(tmp_path / "debian")
    monkeypatch.setenv("APT_CONFIG", str(made.configure_host()))
    return made


@pytest.fixture
def recipes(tmp_path: Path) -> Path:
    return write_recipes(tmp_path / "recipes")
