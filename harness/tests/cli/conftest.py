from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness.cli.main import main
from harness.qemu.architectures import Architecture


@dataclass(frozen=True)
class Ended:
    """The exit status and the output of a command."""

    status: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line on stderr."""
        (only,) = self.err.splitlines()
        return only

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Harness = Callable[..., Ended]


@pytest.fixture
def harness(capsys: pytest.CaptureFixture[str]) -> Harness:
    """Runs ``harness WORDS…`` in this process, through its entry point."""

    def run(*words: str | Path) -> Ended:
        capsys.readouterr()
        argv: Sequence[str] = [str(word) for word in words]
        with pytest.raises(SystemExit) as ended:
            main(argv)
        printed = capsys.readouterr()
        code = ended.value.code
        return Ended(code if isinstance(code, int) else int(code is not None), printed.out, printed.err)

    return run


@pytest.fixture
def cache_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder that does not exist yet, on a host without a QEMU."""
    root = tmp_path / "cache"
    monkeypatch.setenv("HARNESS_CACHE", str(root))
    monkeypatch.setattr(Architecture, "program", "qemu-that-nobody-has")
    return root
