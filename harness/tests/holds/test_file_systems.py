from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.errors import Unsupported
from harness.holds.file_systems import FileSystems
from harness.testbed import Testbed


def a_testbed(tools: list[Any]) -> Testbed:
    return cast(Testbed, SimpleNamespace(attach=tools.append))


def test_what_is_started_sees_a_file_system_in_each_folder(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "with space")]
    for folder in folders:
        folder.mkdir()
        (folder / "hidden").touch()
    tools: list[Any] = []
    FileSystems(a_testbed(tools), folders)
    prefix = tools[0].wrap(cast(Any, None), tmp_path).prefix
    command = ["stat", "--format", "%d", str(tmp_path), *map(str, folders)]
    started = subprocess.Popen([*prefix, *command], stdout=subprocess.PIPE, text=True)
    devices = started.communicate()[0].split()
    assert started.returncode == 0, "the command's own status, so it is the same process"
    assert len(set(devices)) == 3
    assert all((folder / "hidden").exists() for folder in folders), "nobody else sees them"


def test_a_host_that_does_not_permit_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuses = tmp_path / "unshare"
    refuses.write_text("#!/bin/sh\necho 'unshare: unshare failed: Operation not permitted' >&2; exit 1\n")
    refuses.chmod(0o755)
    tools: list[Any] = []
    for path, why in ((f"{tmp_path}:/bin", "Operation not permitted"), ("/nowhere", "no unshare")):
        monkeypatch.setenv("PATH", path)
        with pytest.raises(Unsupported, match=f"no mounts of its own: .*{why}"):
            FileSystems(a_testbed(tools), [tmp_path])
    assert not tools
