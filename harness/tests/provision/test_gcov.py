"""A QEMU that counts its lines: which files are compiled for it, and what the data file may say."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.errors import UsageError
from harness.layout import recipes_folder
from harness.provision import Cache, Provisioner, gcov
from harness.provision.gcov import Part
from harness.qemu.binary import QemuInstall

PARTS = (Part(file="hw/9pfs/"), Part(file="hw/pci/pcie.c"))


@pytest.fixture
def compiler(tmp_path: Path) -> Path:
    """The script, with a gcc that prints its arguments."""
    (tmp_path / "gcc").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "cc").write_text(gcov.compiler(PARTS))
    for name in ("gcc", "cc"):
        (tmp_path / name).chmod(0o755)
    return tmp_path / "cc"


def _compiled(compiler: Path, *arguments: str) -> str:
    environment = {"PATH": f"{compiler.parent}:{os.environ['PATH']}"}
    done = subprocess.run([compiler, *arguments], capture_output=True, text=True, check=True, env=environment)
    return done.stdout.strip()


@pytest.mark.parametrize("file", ["hw/9pfs/9p.c", "hw/9pfs/deeper/9p.c", "hw/pci/pcie.c"])
def test_a_file_of_the_report_is_compiled_with_counters_and_not_optimised(compiler: Path, file: str) -> None:
    made = _compiled(compiler, "-O2", "-o", "x.o", "-c", f"../source/{file}")
    assert made == f"-O2 -o x.o -c ../source/{file} -O0 --coverage -fprofile-update=atomic"


@pytest.mark.parametrize("file", ["hw/9pfs-other/9p.c", "tcg/tcg.c", "more/hw/9pfs/9p.c"])
def test_any_other_file_is_compiled_as_ever(compiler: Path, file: str) -> None:
    assert _compiled(compiler, "-O2", "-c", f"../source/{file}") == f"-O2 -c ../source/{file}"


def test_a_part_is_a_folder_a_file_or_functions_of_a_file() -> None:
    part = Part(file="hw/virtio/virtio.c", functions="virtio_(save|\n  load)")
    assert part.has("hw/virtio/virtio.c", "virtio_load")
    assert not part.has("hw/virtio/virtio.c", "virtio_load_more")
    assert not part.has("hw/virtio/virtio.c", None)
    assert not part.has("hw/virtio/virtio.c.inc", "virtio_load")
    assert Part(file="fsdev/").has("fsdev/9p-marshal.c", None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[[part]]\nfile = "/hw"', "file"),
        ('[[part]]\nfile = "hw/a.c"\nfunctions = "("', "not a regular expression"),
        ('[[part]]\nfile = "hw/a.c"\n[[reason]]\nfile = "hw/a.c"\nfunction = "f"\nwhy = ""', "why"),
    ],
)
def test_a_bad_data_file_gives_one_line(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "coverage.toml").write_text(text)
    with pytest.raises(UsageError, match=rf"coverage.toml:\d+: .*{words}") as caught:
        gcov.load(tmp_path)
    assert "\n" not in caught.value.message


def test_counters_are_put_aside_unless_somebody_wants_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(gcov.PREFIX, raising=False)
    monkeypatch.delenv(gcov.COMPLAINTS, raising=False)
    assert gcov.environment(Path("/aside")) == {gcov.PREFIX: "/aside", gcov.COMPLAINTS: "/dev/null"}
    monkeypatch.setenv(gcov.PREFIX, "/wanted")
    monkeypatch.setenv(gcov.COMPLAINTS, "complaints.txt")
    assert gcov.environment(Path("/aside")) == {gcov.PREFIX: "/wanted", gcov.COMPLAINTS: "complaints.txt"}


def test_no_fault_has_the_name_of_the_flavour() -> None:
    assert not (recipes_folder() / "faults" / f"{gcov.FLAVOUR}.toml").exists()


def test_the_name_of_the_flavour_is_a_qemu(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    provisioner = Provisioner(cache)
    assert provisioner.is_provisioned("7.2-src+coverage")
    asked: list[str] = []
    install = QemuInstall("7.2-src+coverage", Path("q"), ("q",), environment={"QEMU_MODULE_DIR": "m"})

    def build(name: str) -> SimpleNamespace:
        asked.append(name)
        return SimpleNamespace(source=Path("/tree/source"))

    monkeypatch.setattr(provisioner, "coverage_build", build)
    monkeypatch.setattr(provisioner, "_built", lambda build: install)
    made = provisioner.qemu_release("7.2-src+coverage")
    assert asked == ["7.2-src"]
    assert made.environment == {"QEMU_MODULE_DIR": "m", **gcov.environment(Path("/tree/counters"))}
