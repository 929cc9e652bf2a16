from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from harness.deadline import wait_until
from harness.errors import GuestError, QemuDied, WaitTimeout
from harness.leaks import footprint
from harness.leaks.footprint import _children, handles, open_fds, private_kib, wait_open_fds
from harness.qemu.machine import Machine
from harness.qemu.process import process
from harness.qemu.spec import MachineSpec, MemoryFile
from harness.tests.qemu.specs import spec

_MIB = 1 << 20
HEAP = ("7f0000000000-7f0000100000 rw-p 00000000 00:00 0 ", 700)
DATA = (
    "55d000000000-55d000010000 rw-p 00001000 fe:00 42                         /usr/bin/qemu-system-x86_64",
    40,
)
CODE = (
    "55d000020000-55d000030000 r-xp 00001000 fe:00 42                         /usr/bin/qemu-system-x86_64",
    2,
)


def smaps(*mappings: tuple[str, int]) -> str:
    """As the kernel writes it (``man 5 proc``): a header, then one line a figure."""
    body = "Size: 1024 kB\nRss: 1024 kB\nPrivate_Clean: 5 kB\nPrivate_Dirty: {} kB\nVmFlags: rd wr mr\n"
    return "".join(f"{header}\n{body.format(kib)}" for header, kib in mappings)


def guest_memory(size: int, path: str = "") -> tuple[str, int]:
    return (f"7f1000000000-{0x7F1000000000 + size:x} rw-p 00000000 00:00 0 {path}", 90_000)


def test_what_qemu_itself_holds_is_summed() -> None:
    assert private_kib(smaps(HEAP, DATA, CODE), spec()) == 742


BOOTED, RESTORED = spec(), replace(spec(), memory_file=MemoryFile(Path("/t/memory"), share=False))
GUESTS: dict[str, tuple[MachineSpec, tuple[str, int]]] = {
    "its memory": (BOOTED, guest_memory(BOOTED.memory_mib * _MIB)),
    "its memory in a file": (RESTORED, guest_memory(BOOTED.memory_mib * _MIB, "/t/memory")),
    "its memory in a memfd": (
        BOOTED,
        guest_memory(BOOTED.memory_mib * _MIB, "/memfd:memory-backend-memfd (deleted)"),
    ),
    "its translated code": (BOOTED, ("7f2000000000-7f2008000000 rwxp 00000000 00:00 0 ", 5000)),
}


@pytest.mark.parametrize("what", GUESTS)
def test_the_guests_part_is_left_out(what: str) -> None:
    machine, mapping = GUESTS[what]
    assert private_kib(smaps(HEAP, mapping, DATA), machine) == 740


@pytest.mark.parametrize("suffix", ["", " (deleted)"])
def test_a_memory_file_is_recognised_by_its_real_path(tmp_path: Path, suffix: str) -> None:
    """Behind a link, as a cache may be; evicted meanwhile, as a template may be."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    machine = replace(spec(), memory_file=MemoryFile(tmp_path / "link" / "memory", share=False))
    mapping = guest_memory(machine.memory_mib * _MIB, f"{tmp_path}/real/memory{suffix}")
    assert private_kib(smaps(HEAP, mapping, DATA), machine) == 740


@pytest.mark.parametrize("size", [_MIB, BOOTED.memory_mib * _MIB - 4096])
def test_memory_of_another_size_counts(size: int) -> None:
    assert private_kib(smaps(HEAP, guest_memory(size)), BOOTED) == 90_700


def test_another_file_counts() -> None:
    mapping = guest_memory(BOOTED.memory_mib * _MIB, "/t/other")
    assert private_kib(smaps(HEAP, mapping), RESTORED) == 90_700


def test_a_container_that_an_old_qemu_has_not_made_yet_is_empty() -> None:
    """Seen with 2.4.0: it has no /objects until there is an object, and leaks the error of who asks."""
    tree = {
        "/": [{"name": "machine", "type": "child<pc>"}, {"name": "chardevs", "type": "child<container>"}],
        "/chardevs": [{"name": "type", "type": "string"}, {"name": "qmp", "type": "child<chardev>"}],
        "/machine/peripheral": [],
    }

    def answer(name: str, arguments: dict[str, str], *, watch: object) -> list[dict[str, str]]:
        assert arguments["path"] in tree, f"{name} of {arguments['path']}, which is not there"
        return tree[arguments["path"]]

    machine = cast(Machine, SimpleNamespace(qmp=SimpleNamespace(execute=answer), watch=None))
    assert [_children(machine, path) for path in ("/objects", "/chardevs", "/machine/peripheral")] == [
        0,
        1,
        0,
    ]


def test_threads_are_listed_by_id_and_fds_by_target(tmp_path: Path) -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        with (tmp_path / "open").open("w"):
            found = handles(os.getpid())
    finally:
        done.set()
        thread.join()
    assert thread.native_id in found["thread_ids"]
    assert found["threads"] == len(found["thread_ids"])
    assert found["fd_targets"][str(tmp_path / "open")] == 1
    assert found["fds"] == sum(found["fd_targets"].values())


@pytest.fixture
def gone() -> int:
    """The id of a process that has ended."""
    with subprocess.Popen(["true"]) as child:
        pass
    return child.pid


@pytest.mark.parametrize("what", ["open_fds", "open_inside", "process", "footprint"])
def test_a_qemu_that_has_ended_is_the_root_cause(
    gone: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    died = QemuDied("QEMU 'source' was killed by SIGSEGV")
    answers = {"query-cpus-fast": [{"thread-id": gone}]}
    fake = SimpleNamespace(
        pid=gone,
        name="source",
        root_cause=lambda _: died,
        watch=lambda: None,
        qmp=SimpleNamespace(execute=lambda command, **_: answers[command]),
    )
    monkeypatch.setattr(footprint, "counts", lambda _: {})
    machine = cast(Machine, fake)
    looks: dict[str, Callable[[], object]] = {
        "open_fds": lambda: open_fds(machine),
        "open_inside": lambda: footprint.open_inside(machine, tmp_path),
        "process": lambda: process(machine),
        "footprint": lambda: footprint.footprint(machine, gone),
    }
    with pytest.raises(QemuDied):
        looks[what]()


def test_open_fds_of_a_process(tmp_path: Path) -> None:
    """Of a shell: the process that runs the tests may close what it has forgotten at any time."""

    def wait(condition: Callable[[], object], *, what: str, timeout_s: float) -> None:
        assert timeout_s == 10.0
        wait_until(condition, what=what, timeout_s=0.05)

    def does(command: str) -> None:
        assert shell.stdin
        assert shell.stdout
        shell.stdin.write(f"{command}; echo done\n")
        shell.stdin.flush()
        assert shell.stdout.readline() == "done\n"

    with subprocess.Popen(["sh"], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as shell:
        does(":")  # It has opened all that it needs.
        machine = cast(Machine, SimpleNamespace(pid=shell.pid, wait_until=wait))
        before = open_fds(machine)
        does(f"exec 7> {tmp_path / 'file'}")
        assert open_fds(machine) == before + 1
        wait_open_fds(machine, before + 1)
        with pytest.raises(WaitTimeout, match=f"{before} open files in QEMU"):
            wait_open_fds(machine, before)
        does("exec 7>&-")
        wait_open_fds(machine, before)


def test_what_a_daemon_holds() -> None:
    """Of a process that maps a shared file: that is the guest's memory, and is not the daemon's."""
    code = (
        "import mmap, os, sys; "
        "f = os.memfd_create('memory-backend-memfd'); os.truncate(f, 32 << 20); m = mmap.mmap(f, 32 << 20); "
        "m[:] = b'x' * (32 << 20); os.open('/dev/null', 0); print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        held = footprint.of_daemon(process.pid)
        process.communicate(b"")
    assert held["daemon_threads"] == 1
    assert held["daemon_fds"] == 3 + 3  # The memory, which mmap opens once more, and /dev/null.
    # b'x' * 32 MiB is freed; the interpreter itself takes some MiB.
    assert 1000 < held["daemon_kib"] < 32 << 10
    with pytest.raises(GuestError, match=f"the daemon, process {process.pid}, has ended"):
        footprint.of_daemon(process.pid)
