"""What tells one build of QEMU from another."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness.qemu import identity
from harness.qemu.binary import Capabilities, QemuInstall


def _identity(binary: Path, banner: str) -> identity.Identity:
    install = QemuInstall(name="q", binary=binary, command=(str(binary),))
    return identity.identity(install, Capabilities(banner, (7, 2, 0), frozenset(), frozenset()))


@pytest.mark.parametrize(
    ("banner", "package", "described"),
    [
        ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)", "Debian 1:7.2+dfsg-7+deb12u18", None),
        ("QEMU emulator version 8.1.50 (v8.1.0-123-gabcdef0123)", None, "v8.1.0-123-gabcdef0123"),
        (
            "QEMU emulator version 8.1.50 (v8.1.0-rc2-123-gabcdef0123-dirty)",
            None,
            "v8.1.0-rc2-123-gabcdef0123-dirty",
        ),
        ("QEMU emulator version 9.0.0", None, None),
    ],
)
def test_the_banner_has_the_package_or_the_commit(
    tmp_path: Path, banner: str, package: str | None, described: str | None
) -> None:
    found = _identity(tmp_path / "qemu", banner)
    assert (found.package_version, found.git_describe, found.build_id) == (package, described, None)


def test_a_build_tree_is_described_by_its_source_tree(tmp_path: Path) -> None:
    source, build = tmp_path / "source", tmp_path / "build"
    for folder in (source, build):
        folder.mkdir()
    (build / "config-host.mak").write_text(f"# generated\nSRC_PATH={source}\n")
    assert _identity(build / "qemu", "QEMU emulator version 7.2.0").git_describe is None, "no git tree"
    who = ("-c", "user.name=n", "-c", "user.email=e@example.org")
    for argv in (
        ("init", "-q"),
        (*who, "commit", "-q", "--allow-empty", "-m", "m"),
        (*who, "tag", "-a", "-m", "m", "v7.2.0"),
    ):
        subprocess.run(["git", "-C", str(source), *argv], check=True)
    assert _identity(build / "qemu", "QEMU emulator version 7.2.0").git_describe == "v7.2.0"
    old = build / "x86_64-softmmu" / "qemu"
    assert _identity(old, "QEMU emulator version 4.2.0").git_describe == "v7.2.0"


def test_the_build_id_is_that_of_the_linker(tmp_path: Path) -> None:
    program = next(path for path in map(Path, (sys.executable, "/bin/ls")) if identity.build_id(path))
    printed = subprocess.run(["file", "-Lb", program], capture_output=True, text=True, check=False).stdout
    assert re.fullmatch("[0-9a-f]{40}", identity.build_id(program) or "")
    assert not printed or (identity.build_id(program) or "") in printed
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\n")
    assert identity.build_id(script) is None
