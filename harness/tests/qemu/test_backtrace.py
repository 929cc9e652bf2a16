"""How gdb is called and how problems are reported; real backtraces of a real QEMU."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from harness.artifacts import Artifacts
from harness.matrix import Matrix, Selection
from harness.qemu import backtrace
from harness.qemu.binary import QemuInstall
from harness.reaper import RunFolder
from harness.testbed import Testbed

_PYTHON = Path(os.path.realpath(sys.executable))
_INSTALL = QemuInstall("fake", _PYTHON, (str(_PYTHON),))
_NAMED = "#0  0x0000000000000001 in main_loop_wait ()"
FakeGdb = Callable[..., None]


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEBUGINFOD_URLS", raising=False)


@pytest.fixture
def gdb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeGdb:
    """Puts a gdb on PATH that prints ``output``, after its arguments were written to ``calls``."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def put(output: str, then: str = "") -> None:
        (tmp_path / "output").write_text(f"{output}\n")
        program = folder / "gdb"
        record = f'echo "$DEBUGINFOD_URLS| $*" >>{tmp_path}/calls'
        program.write_text(f"#!/bin/sh\n{record}\ncat {tmp_path}/output\n{then}\n")
        program.chmod(0o755)

    return put


def _gdb_calls(tmp_path: Path) -> list[str]:
    return (tmp_path / "calls").read_text().splitlines()


def _nameless() -> str:
    """A frame in the program that this process runs."""
    place = next(m for m in backtrace._mappings_of(os.getpid()) if m.path == str(_PYTHON))
    return f"#0  {place.start + 16:#018x} in ?? ()"


def _attach(to: Path, install: QemuInstall = _INSTALL) -> str:
    backtrace.attach(install, os.getpid(), to)
    return to.read_text()


def test_a_backtrace_with_names_is_left_as_it_is(gdb: FakeGdb, tmp_path: Path) -> None:
    gdb(f"{_NAMED}\n#1  0x0000000000000002 in ?? () from /lib/libslirp.so")
    text = _attach(tmp_path / "to")
    assert text.startswith("#0")
    assert "note:" not in text
    (call,) = _gdb_calls(tmp_path)
    assert f"-p {os.getpid()}" in call
    assert "thread apply all backtrace" in call
    assert "debuginfod" not in call


def test_code_that_qemu_translated_has_no_names_in_any_flavour(gdb: FakeGdb, tmp_path: Path) -> None:
    gdb(f"{_NAMED}\n#1  0x0000000000000002 in ?? ()")
    assert "note:" not in _attach(tmp_path / "to")


@pytest.mark.parametrize(
    ("unstripped", "advice"),
    [
        (("9.9-asan", "9.9-src"), "--qemu 9.9-asan or --qemu 9.9-src has all of them"),
        ((), "a flavour that is built from source, such as 7.2-src or 7.2-asan"),
    ],
)
def test_advice_for_a_stripped_qemu(
    gdb: FakeGdb, tmp_path: Path, unstripped: tuple[str, ...], advice: str
) -> None:
    gdb(_nameless())
    first, *rest = _attach(tmp_path / "to", replace(_INSTALL, unstripped=unstripped)).splitlines()
    assert first.startswith("note: this QEMU is stripped")
    assert advice in first
    assert rest == [_nameless()]


def test_a_qemu_that_its_loader_started_is_shown_to_gdb(gdb: FakeGdb, tmp_path: Path) -> None:
    """gdb takes the loader for the program."""
    gdb(_NAMED)
    libc = next(m for m in backtrace._mappings_of(os.getpid()) if "/libc" in m.path)
    _attach(tmp_path / "to", replace(_INSTALL, binary=Path(libc.path)))
    assert f"add-symbol-file {libc.path} -o {libc.start:#x} " in _gdb_calls(tmp_path)[0]
    assert _gdb_calls(tmp_path)[0].endswith(f"-se {_PYTHON}")


def test_debug_information_is_fetched_where_there_is_a_server(
    gdb: FakeGdb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gdb(_NAMED)
    monkeypatch.setenv("DEBUGINFOD_URLS", "http://server")
    assert _attach(tmp_path / "to").startswith("#0")
    (call,) = _gdb_calls(tmp_path)
    assert call.startswith("http://server| -nx -batch -iex set debuginfod enabled on ")


def test_a_debuginfod_server_that_does_not_answer(
    gdb: FakeGdb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gdb(_NAMED, then='[ -z "$DEBUGINFOD_URLS" ] || exec sleep 600')
    monkeypatch.setenv("DEBUGINFOD_URLS", "http://server")
    monkeypatch.setattr(backtrace, "_FETCHING_TIMEOUT_S", 0.2)
    note, frame = _attach(tmp_path / "to").splitlines()
    assert note.startswith("note: gdb did not end within 0 s with debug information from DEBUGINFOD_URLS")
    assert frame == _NAMED


def test_a_gdb_that_does_not_end(gdb: FakeGdb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gdb("Attaching to process 1", then="exec sleep 600")
    monkeypatch.setattr(backtrace, "_TIMEOUT_S", 0.2)
    assert _attach(tmp_path / "to").startswith("no backtrace: gdb did not end within 0 s")


def test_a_gdb_that_may_not_attach_is_quoted(gdb: FakeGdb, tmp_path: Path) -> None:
    gdb("ptrace: Operation not permitted.")
    assert _attach(tmp_path / "to") == "no backtrace: gdb printed none\nptrace: Operation not permitted.\n"


def test_no_gdb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert _attach(tmp_path / "to") == "no backtrace: no gdb on PATH\n"


def _collect(folder: Path, to: Path, number: int = signal.SIGSEGV) -> str:
    backtrace.collect(_INSTALL, folder, 4711, number, to)
    return to.read_text()


@pytest.mark.parametrize(
    ("pattern", "name"),
    [("core", "core"), ("core", "core.4711"), ("dump.%e.%p", "dump.qemu.4711"), ("%p.core", "4711.core")],
)
def test_a_core_file_is_found_and_removed(
    gdb: FakeGdb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, name: str
) -> None:
    """Even one that cannot be read."""
    gdb(_NAMED)
    (tmp_path / "pattern").write_text(f"{pattern}\n")
    monkeypatch.setattr(backtrace, "_CORE_PATTERN", tmp_path / "pattern")
    folder = tmp_path / "machine"
    folder.mkdir()
    (folder / name).write_bytes(b"no ELF file")
    (folder / "disk.qcow2").write_bytes(b"")
    assert _NAMED in _collect(folder, tmp_path / "to")
    assert [path.name for path in folder.iterdir()] == ["disk.qcow2"]


def test_a_shared_folder_of_core_files(gdb: FakeGdb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gdb(_NAMED)
    cores = tmp_path / "cores"
    cores.mkdir()
    for name in ("qemu.4711", "qemu.47110", "sh.12"):
        (cores / name).write_bytes(b"")
    (tmp_path / "pattern").write_text(f"{cores}/%e.%p")
    monkeypatch.setattr(backtrace, "_CORE_PATTERN", tmp_path / "pattern")
    assert _NAMED in _collect(tmp_path, tmp_path / "to")
    assert sorted(path.name for path in cores.iterdir()) == ["qemu.47110", "sh.12"]


def test_a_host_that_sends_core_files_elsewhere(
    gdb: FakeGdb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pattern").write_text("|/usr/lib/systemd/systemd-coredump %P\n")
    monkeypatch.setattr(backtrace, "_CORE_PATTERN", tmp_path / "pattern")
    text = _collect(tmp_path, tmp_path / "to")
    assert text.startswith(f"no backtrace: no core file in {tmp_path} (kernel.core_pattern is '|/usr/lib")


def test_a_sigkill_leaves_no_core_file(tmp_path: Path) -> None:
    assert _collect(tmp_path, tmp_path / "to", signal.SIGKILL).startswith("no backtrace: SIGKILL leaves")


@pytest.fixture
def testbed(tmp_path: Path) -> Iterator[Testbed]:
    if shutil.which("gdb") is None:
        pytest.skip("no gdb on PATH")
    run = RunFolder()
    made = Testbed(
        Matrix(Selection(accel="tcg")).cell("default", "default", "pc"), run, Artifacts.create(tmp_path, "x")
    )
    yield made
    made.close()
    run.close()


def _expect_qemus_functions(testbed: Testbed) -> None:
    """Some thread was unwound completely, through functions that Debian's QEMU exports."""
    text = testbed.machines[0].artifacts.backtrace.read_text()
    threads = text.split("\nThread ")
    assert any(re.search(r" in (qemu|cpu|tcg)_\w+ \(.* in start_thread \(", t, re.DOTALL) for t in threads), (
        text
    )


@pytest.mark.qemu
def test_a_real_qemu_that_crashed(testbed: Testbed) -> None:
    if Path("/proc/sys/kernel/core_pattern").read_text().startswith("|"):
        pytest.skip("core files go to a program")
    machine = testbed.launch(testbed.spec())
    machine.expect_exit("a test")
    os.kill(machine.pid, signal.SIGSEGV)
    testbed.close()
    _expect_qemus_functions(testbed)


@pytest.mark.qemu
def test_a_real_qemu_that_hangs(testbed: Testbed) -> None:
    machine = testbed.launch(testbed.spec())
    os.kill(machine.pid, signal.SIGSTOP)
    machine.qmp.silent = True
    testbed.close()
    _expect_qemus_functions(testbed)
