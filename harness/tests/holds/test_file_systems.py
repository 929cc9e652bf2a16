from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.errors import Unsupported
from harness.holds.file_systems import FileSystems
from harness.qemu.machine import Machine
from harness.testbed import Testbed


def a_testbed(tools: list[Any]) -> Testbed:
    return cast(Testbed, SimpleNamespace(attach=tools.append))


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A process that was started as QEMU is; it ends when its input does."""
    tools: list[Any] = []
    FileSystems(a_testbed(tools))
    prefix = tools[0].wrap(cast(Any, None), tmp_path).prefix
    with subprocess.Popen([*prefix, "sh", "-c", "echo; cat"], stdin=subprocess.PIPE, stdout=-1) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield cast(Machine, SimpleNamespace(pid=process.pid))


def test_a_machine_alone_sees_its_file_system(machine: Machine, tmp_path: Path) -> None:
    folder = tmp_path / "with space"
    folder.mkdir()
    before = FileSystems.stat(machine, folder)
    FileSystems.mount(machine, folder)
    assert FileSystems.stat(machine, folder).st_dev not in (before.st_dev, folder.stat().st_dev)
    assert FileSystems.stat(machine, tmp_path).st_dev == tmp_path.stat().st_dev == before.st_dev


def test_what_cannot_be_mounted(machine: Machine, tmp_path: Path) -> None:
    with pytest.raises(
        Unsupported, match=r"mounted for QEMU on .*/none: mount: .*mount point does not exist"
    ):
        FileSystems.mount(machine, tmp_path / "none")


def test_a_host_that_does_not_permit_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuses = tmp_path / "unshare"
    refuses.write_text("#!/bin/sh\necho 'unshare: unshare failed: Operation not permitted' >&2; exit 1\n")
    refuses.chmod(0o755)
    tools: list[Any] = []
    for path, why in ((f"{tmp_path}:/bin", "Operation not permitted"), ("/nowhere", "no unshare")):
        monkeypatch.setenv("PATH", path)
        with pytest.raises(Unsupported, match=f"no mounts of its own: .*{why}"):
            FileSystems(a_testbed(tools))
    assert not tools
