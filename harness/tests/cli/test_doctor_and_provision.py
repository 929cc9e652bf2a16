from __future__ import annotations

import importlib.util
import json
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.cli.provision import _wanted
from harness.provision import Cache, Provisioner
from harness.qemu import accel
from harness.qemu.architectures import X86_64, Architecture
from harness.tests.cli.conftest import Harness


def _states(harness: Harness) -> tuple[int, dict[str, tuple[str, str]]]:
    ended = harness("doctor", "--json")
    return ended.status, {f["name"]: (f["state"], f["what"]) for f in ended.json}


def test_a_fresh_host_with_apt_can_run(
    harness: Harness, cache_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "shutil.which", lambda tool, **_: None if tool.startswith("qemu") else f"/usr/bin/{tool}"
    )
    status, found = _states(harness)
    assert status == 0
    assert found["QEMU"][0] == found["guest image"][0] == "warning"
    assert "harness provision" in found["QEMU"][1]
    assert not cache_root.exists(), "the doctor must not change anything"


def test_why_kvm_is_not_used(
    harness: Harness, cache_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A verdict that has expired is not reported."""
    device = tmp_path / "kvm"
    device.write_text("")
    for name in ("harness.cli.doctor.KVM", "harness.qemu.accel.KVM"):
        monkeypatch.setattr(name, device)
    state = accel._state()
    (cache_root / "accel").mkdir(parents=True)
    for name, reason, timed_out, at in (
        ("new", "it hung", True, time.time()),
        ("old", "it hung long ago", True, 0),
        ("no", "no nesting", False, 0),
    ):
        kept = {"reason": reason, "timed_out": timed_out, "state": state, "at": at}
        (cache_root / "accel" / f"kvm-{name}.json").write_text(json.dumps(kept))
    _, found = _states(harness)
    details = "TCG is used instead: it hung (tried again after 60 minutes); no nesting"
    assert found["KVM"] == ("warning", details)


def test_a_host_without_apt_lacks_a_qemu(
    harness: Harness, cache_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not cache_root.exists()
    monkeypatch.setattr("shutil.which", lambda _tool, **_: None)
    status, found = _states(harness)
    assert status == 1
    assert found["QEMU"] == (
        "missing",
        "none on PATH, and it cannot be fetched without apt-get and dpkg-deb",
    )


def test_a_qemu_on_path_without_9p(
    harness: Harness, cache_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not cache_root.exists()
    fake = tmp_path / "bin" / "qemu-system-x86_64"
    fake.parent.mkdir()
    fake.write_text(
        "#!/bin/sh\ncase \"$*\" in *version*) echo 'QEMU emulator version 7.2.0';;"
        " *machine*) echo 'pc  Standard PC';; *) echo 'name \"virtio-net-pci\"';; esac\n"
    )
    fake.chmod(0o755)
    (fake.parent / "pc-bios").mkdir()
    monkeypatch.setattr(Architecture, "program", fake.name)
    monkeypatch.setenv("PATH", f"{fake.parent}:/usr/bin:/bin")
    status, found = _states(harness)
    assert status == 1
    assert found["QEMU"][0] == "missing"


def test_a_cache_that_cannot_be_written(
    harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "file" / "cache"))
    status, found = _states(harness)
    assert status == 1
    assert found["cache"][0] == "missing"
    assert "HARNESS_CACHE" in found["cache"][1]


def test_a_cache_of_another_user(harness: Harness, cache_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache_root.mkdir(mode=0o755)
    mine = os.geteuid()
    monkeypatch.setattr("os.geteuid", lambda: mine + 4242)
    status, found = _states(harness)
    assert status == 1
    assert found["cache"][0] == "missing"
    assert "belongs to" in found["cache"][1]
    assert "HARNESS_CACHE" in found["cache"][1]
    assert cache_root.stat().st_mode & 0o777 == 0o755, "the doctor must not change anything"


def test_a_heap_library_is_provisioned_for_a_qemu_on_path(
    cache_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest that this host's libc can load, so that later runs need no network."""
    monkeypatch.setattr("harness.provision.provisioner._host_glibc", lambda: (2, 36))
    provisioner = Provisioner(Cache(cache_root))
    monkeypatch.setattr("harness.qemu.binary.on_path", lambda **_: SimpleNamespace(binary="/usr/bin/qemu"))
    assert _wanted(provisioner, (), False, X86_64) == [("guest", None), ("heap", "bookworm")]
    monkeypatch.setattr("harness.qemu.binary.on_path", lambda **_: None)
    assert _wanted(provisioner, (), False, X86_64) == [("guest", None), ("qemu", None)]
    everything = _wanted(provisioner, (), True, X86_64)
    assert [name for kind, name in everything if kind == "heap"] == ["bookworm", "bullseye"]


@pytest.mark.parametrize("word", ["qemu:1.0", "guest", "disk:6.1", "heap:buzz"])
def test_an_unknown_name_to_provision(harness: Harness, cache_root: Path, word: str) -> None:
    ended = harness("provision", word)
    assert ended.status == 2
    assert ended.line.startswith(f"harness: {word}: there is no recipe of that name; known: guest:")
    assert not cache_root.exists()


@pytest.mark.parametrize("installed", [True, False])
def test_whether_coverage_can_be_measured(
    harness: Harness, cache_root: Path, monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: found(name) if installed else None)
    wanted, words = ("ok", "it is built once") if installed else ("warning", "pip install")
    state, what = _states(harness)[1]["coverage"]
    assert state == wanted
    assert words in what


def test_an_architecture_that_is_not_known(harness: Harness, cache_root: Path) -> None:
    done = harness("provision", "--arch", "pdp11")
    assert done.status != 0
    assert "--arch pdp11: unknown architecture; known: x86_64, s390x" in done.line


def test_what_an_architecture_does_not_have_to_provision(harness: Harness, cache_root: Path) -> None:
    done = harness("provision", "--arch", "s390x", "qemu:5.2")
    assert done.status != 0
    assert "qemu:5.2: there is no recipe of that name; known: guest:6.1" in done.line


def test_the_architectures_are_listed(harness: Harness, cache_root: Path) -> None:
    _, found = _states(harness)
    assert "s390x (s390-ccw): QEMU 7.2" in found["architectures"][1]
    assert "not in the cache" in found["architectures"][1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--arch", "pdp11"], "--arch pdp11: unknown architecture"),
        (["--arch", "s390x", "--machine", "pc"], "--machine pc: is of architecture x86_64, not s390x"),
        (["--arch", "s390x", "--kernel", "5.10"], "--kernel 5.10: unknown kernel for s390x"),
    ],
)
def test_a_command_takes_an_architecture(
    harness: Harness, cache_root: Path, words: list[str], message: str
) -> None:
    done = harness("shell", *words)
    assert (done.status != 0, message in done.line) == (True, True), done
