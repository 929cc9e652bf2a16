from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.errors import Unsupported
from harness.holds.open_files import OpenFileLimit
from harness.testbed import Testbed


def a_testbed(tools: list[Any]) -> Testbed:
    return cast(Testbed, SimpleNamespace(attach=tools.append))


def test_what_is_started_has_the_limit(tmp_path: Path) -> None:
    tools: list[Any] = []
    OpenFileLimit(a_testbed(tools), 77)
    prefix = tools[0].wrap(cast(Any, None), tmp_path).prefix
    done = subprocess.run([*prefix, "sh", "-c", "ulimit -n"], capture_output=True, text=True, check=True)
    assert done.stdout == "77\n"


def test_a_host_without_prlimit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    tools: list[Any] = []
    with pytest.raises(Unsupported, match="this host has no prlimit"):
        OpenFileLimit(a_testbed(tools), 77)
    assert not tools
