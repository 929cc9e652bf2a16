"""The filter and its supervisor, on a Python process that makes system calls in threads, as QEMU does."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import cast

import pytest

from harness.deadline import check_during, wait_until
from harness.errors import SetupError, UsageError
from harness.history import HARNESS_ERROR as NOTED
from harness.history import History, read
from harness.holds import seccomp, supervisor
from harness.holds.supervisor import Call, Rule, Rules, Supervisor

#: Python's os.preadv is preadv2 where the C library has that.
READ = frozenset(["preadv", "preadv2"])
BY_WHOLE_PATH = ("mkdir", "rename", "unlink", "rmdir", "setxattr")
_OTHERS = "preadv,preadv2,pwritev,pwritev2,newfstatat,lstat,fsync,fstatfs,lsetxattr,statfs"
FILTERED = ",".join((_OTHERS, *BY_WHOLE_PATH))
#: Reads commands "THREAD CALL PATH" and answers with the call's result or errno; THREAD is main or worker.
CHILD = (
    f"""
NUMBERS = { ({f"whole_{name}": seccomp.CALLS[name] for name in BY_WHOLE_PATH}) }
"""
    + """
import ctypes, os, sys, threading
def answer(words):
    os.write(1, (words + "\\n").encode())  # One write: print() of two threads can mingle.
def call(name, path):
    try:
        if name == "stat":
            os.stat(path)
            answer("ok")
        elif name == "lstat":  # libc has newfstatat for that today
            ctypes.CDLL(None).syscall(6, path.encode(), ctypes.create_string_buffer(256))
            answer("ok")
        elif name == "setxattr":  # as QEMU does, by a folder that it has open
            folder = os.open(os.path.dirname(path), os.O_PATH)
            path = f"/proc/self/fd/{folder}/{os.path.basename(path)}"
            os.setxattr(path, "user.x", b"1", follow_symlinks=False)
            answer("ok")
        elif name == "statfs":
            found = os.fstatvfs(os.open(path, os.O_RDONLY))
            answer(f"ok {found.f_bsize} {found.f_namemax}")
        elif name == "statfs_by_path":  # Python's os.statvfs
            found = os.statvfs(path)
            answer(f"ok {found.f_bsize} {found.f_namemax}")
        elif name in NUMBERS:
            number = ctypes.CDLL(None, use_errno=True).syscall
            if number(NUMBERS[name], path.encode(), b"user.x", b"y", 1, 0) != 0:
                raise OSError(ctypes.get_errno(), name)
            answer("ok")
        else:
            fd = os.open(path, os.O_RDWR)
            if name == "fsync":
                os.fsync(fd)
                answer("ok")
            elif name == "pwritev":
                answer(f"ok {os.pwritev(fd, [b'WX', b'YZAB', b'CD'], 0)}")
            else:
                buffers = bytearray(3), bytearray(6)
                count = os.preadv(fd, buffers, 0)
                answer(f"ok {count} {b''.join(buffers)[:count].decode()}")
    except OSError as exc:
        answer(str(exc.errno))
for line in sys.stdin:
    thread, name, path = line.split()
    if thread == "main":
        call(name, path)
    else:
        threading.Thread(target=call, args=(name, path)).start()
"""
)


class Child:
    """A process under the filter."""

    def __init__(self, socket: Path, rules: Rules) -> None:
        self.supervisor = Supervisor(socket, "child", rules)
        words = [
            sys.executable,
            seccomp.__file__,
            str(socket),
            FILTERED,
            "--",
        ]
        self.process = subprocess.Popen(
            [*words, sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.supervisor.join(60)


@pytest.fixture
def rules(tmp_path: Path) -> Rules:
    return Rules(History(tmp_path / "history.ndjson"))


@pytest.fixture
def child(tmp_path: Path, rules: Rules) -> Iterator[Child]:
    made = Child(tmp_path / "hold", rules)
    yield made
    made.end()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "share" / "file"
    path.parent.mkdir()
    path.write_text("content")
    return path


def held(rule: Rule, count: int = 1) -> None:
    wait_until(lambda: len(rule.held) == count, what=f"{count} held call(s)", timeout_s=60)


def test_without_a_rule_every_call_goes_on(child: Child, file: Path) -> None:
    child.ask(f"worker preadv {file}")
    assert child.answer() == "ok 7 content"


def test_a_call_waits_until_its_rule_is_lifted(child: Child, rules: Rules, file: Path) -> None:
    rule = Rule(READ, file.parent)
    rules.add(rule)
    child.ask(f"worker preadv {file}")
    held(rule)
    assert rule.held[0].path == str(file)
    # The process itself lives on, and other files and calls are not concerned.
    child.ask(f"worker fsync {file}")
    assert child.answer() == "ok"
    check_during(0.2, partial(held, rule))
    assert rules.lift(rule) == 1
    assert child.answer() == "ok 7 content"


def test_other_folders_are_not_concerned(child: Child, rules: Rules, file: Path, tmp_path: Path) -> None:
    rules.add(rule := Rule(READ, tmp_path / "sha"))
    child.ask(f"worker preadv {file}")
    assert child.answer() == "ok 7 content"
    assert rule.hits == 0


@pytest.mark.parametrize(("word", "call"), [("stat", "newfstatat"), ("lstat", "lstat")])
def test_a_call_by_path_is_distinguished_from_another_file_of_the_folder(
    child: Child, rules: Rules, file: Path, word: str, call: str
) -> None:
    (file.parent / "other").write_text("")
    rules.add(rule := Rule(frozenset([call]), file))
    child.ask(f"worker {word} {file.parent / 'other'}")
    assert child.answer() == "ok"
    child.ask(f"worker {word} {file}")
    held(rule)


def test_the_main_thread_is_never_held(child: Child, rules: Rules, file: Path) -> None:
    rules.add(rule := Rule(READ, file.parent))
    child.ask(f"main preadv {file}")
    assert child.answer() == "ok 7 content"
    assert rule.hits == 0


def test_a_call_fails_with_the_errno_of_its_rule(
    child: Child, rules: Rules, file: Path, tmp_path: Path
) -> None:
    rules.add(rule := Rule(frozenset(["fsync"]), file.parent, error=errno.EIO))
    child.ask(f"worker fsync {file}")
    assert child.answer() == str(errno.EIO)
    assert rule.hits == 1
    rules.lift(rule)
    child.ask(f"worker fsync {file}")
    assert child.answer() == "ok"
    (entry,) = [e for e in read(tmp_path / "history.ndjson") if e.f == "hold:failed"]
    assert isinstance(entry.value, dict)
    assert entry.value["errno"] == "EIO"


def test_several_are_held_at_once_and_rules_do_not_disturb_each_other(
    child: Child, rules: Rules, file: Path
) -> None:
    rules.add(reads := Rule(READ, file.parent))
    rules.add(syncs := Rule(frozenset(["fsync"]), file.parent))
    for _ in range(3):
        child.ask(f"worker preadv {file}")
    child.ask(f"worker fsync {file}")
    held(reads, 3)
    held(syncs, 1)
    rules.lift(syncs)
    assert child.answer() == "ok"
    held(reads, 3)
    rules.clear()
    assert [child.answer() for _ in range(3)] == ["ok 7 content"] * 3


def test_the_supervisor_ends_with_a_process_that_is_killed_while_held(
    child: Child, rules: Rules, file: Path
) -> None:
    rules.add(rule := Rule(READ, file.parent))
    child.ask(f"worker preadv {file}")
    held(rule)
    child.process.kill()
    child.process.communicate()
    # By itself, before join() is called.
    wait_until(lambda: not child.supervisor._thread.is_alive(), what="the thread's end", timeout_s=60)
    rules.lift(rule)  # The caller has ended; that is no error.
    rules.check()


@pytest.mark.parametrize("calls", [frozenset(), frozenset(["preadv", "reboot"])])
def test_what_cannot_be_held_is_refused(calls: frozenset[str], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot hold .*known calls: .*preadv"):
        Rule(calls, tmp_path)


def test_a_call_transfers_half_of_what_it_should(
    child: Child, rules: Rules, file: Path, tmp_path: Path
) -> None:
    rules.add(rule := Rule(READ, file.parent, halved=True))
    child.ask(f"worker preadv {file}")
    assert child.answer() == "ok 4 cont"  # 9 bytes were asked for.
    rules.lift(rule)
    child.ask(f"worker preadv {file}")
    assert child.answer() == "ok 7 content"
    (entry,) = [e for e in read(tmp_path / "history.ndjson") if e.f == "hold:halved"]
    assert isinstance(entry.value, dict)
    assert entry.value["bytes"] == 4


def test_a_halved_read_at_the_end_of_the_file(child: Child, rules: Rules, file: Path) -> None:
    file.write_text("x")
    rules.add(Rule(READ, file.parent, halved=True))
    child.ask(f"worker preadv {file}")
    assert child.answer() == "ok 1 x"


def test_a_call_without_bytes_cannot_be_halved(file: Path) -> None:
    with pytest.raises(UsageError, match="fsync transfers no bytes"):
        Rule(frozenset(["fsync", "preadv"]), file.parent, halved=True)


def test_a_write_transfers_half_of_what_it_should(child: Child, rules: Rules, file: Path) -> None:
    rules.add(Rule(frozenset(["pwritev", "pwritev2"]), file, halved=True))
    child.ask(f"worker pwritev {file}")
    assert child.answer() == "ok 4"
    assert file.read_text() == "WXYZent"


def test_a_file_system_that_reports_a_block_size_of_0(child: Child, rules: Rules, file: Path) -> None:
    """Everything else of its answer is true."""
    rules.add(rule := Rule(frozenset(["fstatfs"]), file.parent, zero_block_size=True))
    child.ask(f"worker statfs {file}")
    assert child.answer() == f"ok 0 {os.statvfs(file).f_namemax}"
    rules.lift(rule)
    child.ask(f"worker statfs {file}")
    assert child.answer() == f"ok {os.statvfs(file).f_bsize} {os.statvfs(file).f_namemax}"


def test_a_block_size_of_0_by_path(child: Child, rules: Rules, file: Path) -> None:
    """Older local fsdevs call statfs with the file's path."""
    rules.add(rule := Rule(frozenset(["fstatfs", "statfs"]), file.parent, zero_block_size=True))
    child.ask(f"worker statfs_by_path {file}")
    assert child.answer() == f"ok 0 {os.statvfs(file).f_namemax}"
    assert rule.hits == 1


@pytest.mark.parametrize("call", BY_WHOLE_PATH)
def test_a_call_by_a_whole_path(child: Child, rules: Rules, file: Path, call: str) -> None:
    """It fails below the rule's folder, and nowhere else."""
    rules.add(rule := Rule(frozenset([call]), file.parent, error=errno.EDQUOT))
    child.ask(f"worker whole_{call} {file.parent}/other")
    assert child.answer() == str(errno.EDQUOT)
    child.ask(f"worker whole_{call} {file.parent.parent}/missing/other")
    assert child.answer() == str(errno.ENOENT)
    assert rule.hits == 1


def test_only_fstatfs_reports_a_block_size(file: Path) -> None:
    with pytest.raises(UsageError, match="only fstatfs and statfs report a block size, not fsync"):
        Rule(frozenset(["fsync"]), file.parent, zero_block_size=True)


def test_a_rule_for_the_main_thread_is_for_no_other(child: Child, rules: Rules, file: Path) -> None:
    rules.add(rule := Rule(READ, file, error=errno.EIO, main_thread=True))
    child.ask(f"worker preadv {file}")
    assert child.answer() == "ok 7 content"
    child.ask(f"main preadv {file}")
    assert child.answer() == str(errno.EIO)
    assert rule.hits == 1


def test_a_rule_for_the_main_thread_can_only_let_calls_fail(file: Path) -> None:
    Rule(READ, file, error=errno.EIO, main_thread=True)
    with pytest.raises(UsageError, match="main thread can only fail"):
        Rule(READ, file, main_thread=True)


def test_a_call_by_a_descriptor_in_its_path(child: Child, rules: Rules, file: Path) -> None:
    """The rule is about the file that the path means, not about one below /proc."""
    other = file.with_name("other")
    other.touch()
    rules.add(rule := Rule(frozenset(["lsetxattr"]), file, error=errno.ENOTSUP))
    child.ask(f"worker setxattr {file}")
    assert child.answer() == str(errno.ENOTSUP)
    rules.lift(rule)
    assert rule.hits == 1
    rules.add(elsewhere := Rule(frozenset(["lsetxattr"]), file, error=errno.ENOTSUP))
    child.ask(f"worker setxattr {other}")
    assert child.answer() in ("ok", str(errno.ENOTSUP))  # The host's file system may have no such attributes.
    assert elsewhere.hits == 0


def errors(tmp_path: Path) -> list[str]:
    """What is on record of the supervisor's own errors."""
    return [cast(dict[str, str], e.value)["error"] for e in read(tmp_path / "history.ndjson") if e.f == NOTED]


def test_an_error_of_its_own_stops_no_call_and_is_on_record_once(
    child: Child, rules: Rules, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where Yama forbids to read another process's memory."""

    def denied(tid: int, address: int) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", f"/proc/{tid}/mem")

    tid = child.process.pid
    monkeypatch.setattr(supervisor, "_string", lambda _tid, address: denied(tid, address))
    rules.add(rule := Rule(frozenset(["newfstatat"]), file.parent))
    for _ in range(2):
        child.ask(f"worker stat {file}")
        assert child.answer() == "ok"
    assert rule.hits == 0
    expected = (
        "the supervisor of 'child' failed while it handled newfstatat: "
        f"PermissionError: [Errno 13] Permission denied: '/proc/{tid}/mem'"
    )
    with pytest.raises(SetupError) as error:
        rules.check()
    assert str(error.value) == expected
    assert errors(tmp_path) == [expected]


def test_a_call_that_cannot_be_halved_is_done_in_full_and_that_is_on_record(
    child: Child, rules: Rules, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An errno in its place would be one that no file system gave."""
    rules.add(Rule(READ, file.parent, halved=True))
    with monkeypatch.context() as patch:
        real = os.open

        def denied(path: str, *more: int) -> int:
            if str(path).startswith("/proc/"):
                raise PermissionError(errno.EACCES, "Permission denied", path)
            return real(path, *more)

        patch.setattr("harness.holds.short_transfer.os.open", denied)
        child.ask(f"worker preadv {file}")
        assert child.answer() == "ok 7 content"
    (error,) = errors(tmp_path)
    assert error.endswith("/mem: Permission denied")


def test_an_errno_without_a_name(child: Child, rules: Rules, file: Path, tmp_path: Path) -> None:
    """QEMU's fsdev hands any number on."""
    rules.add(Rule(frozenset(["fsync"]), file.parent, error=250))
    child.ask(f"worker fsync {file}")
    assert child.answer() == "250"
    assert errors(tmp_path) == []


def test_a_file_whose_name_is_not_text(rules: Rules, file: Path, tmp_path: Path) -> None:
    """The record can still be read."""
    rules.add(Rule(READ, file.parent))
    odd = str(file.parent / os.fsdecode(b"odd\xff"))
    rules.decide(Call("source", "preadv", 1, odd, [], lambda answer: None))
    (entry,) = [e for e in read(tmp_path / "history.ndjson") if e.f == "hold:held"]
    assert cast(dict[str, str], entry.value)["path"] == f"{file.parent}/odd\\xff"


def test_a_rule_stays_wanted_while_another_one_is_lifted(rules: Rules, file: Path) -> None:
    class Lifts(frozenset[str]):
        """The rule is lifted, by another thread, when it has just been looked at."""

        def __contains__(self, name: object) -> bool:
            rules.lift(first)
            return False

    first = Rule(frozenset(["fsync"]), file)
    rules.add(first)
    rules.add(Rule(READ, file))
    first.calls = Lifts(first.calls)
    assert rules.wants("preadv")


def test_a_rule_that_holds_a_call_is_of_that_machine_from_then_on(rules: Rules, file: Path) -> None:
    """A migration's destination has the same share; its calls continue."""
    went_on: list[str] = []

    def call(machine: str) -> Call:
        return Call(machine, "preadv", 1, str(file), [], lambda answer: went_on.append(machine))

    rules.add(rule := Rule(READ, file.parent))
    for machine in ("source", "destination-1", "source"):
        rules.decide(call(machine))
    assert went_on == ["destination-1"]
    assert [held.machine for held in rule.held] == ["source", "source"]


def test_a_machine_that_never_starts_ends_its_supervisor(rules: Rules, tmp_path: Path) -> None:
    waiting = Supervisor(tmp_path / "hold", "nobody", rules)
    waiting.join(60)
    waiting.join(60)
    assert not waiting._thread.is_alive()
    rules.check()


def test_a_launcher_that_ends_before_it_hands_over(rules: Rules, tmp_path: Path) -> None:
    waiting = Supervisor(tmp_path / "hold", "nobody", rules)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as launcher:
        launcher.connect(str(tmp_path / "hold"))
    wait_until(lambda: not waiting._thread.is_alive(), what="the thread's end", timeout_s=60)
    waiting.join(60)
    rules.check()


def test_something_else_than_a_filter_is_handed_over(rules: Rules, tmp_path: Path) -> None:
    """The thread's end is on record: what the machine asks from then on fails with ENOSYS."""
    waiting = Supervisor(tmp_path / "hold", "source", rules)
    readable, writable = os.pipe()
    os.write(writable, b"!")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as launcher:
        launcher.connect(str(tmp_path / "hold"))
        socket.send_fds(launcher, [b"!"], [readable])
    wait_until(lambda: errors(tmp_path), what="the error on record", timeout_s=60)
    os.close(readable)
    os.close(writable)
    waiting.join(60)
    (error,) = errors(tmp_path)
    assert error.startswith("the supervisor of 'source' failed and ended: OSError: [Errno 25]")
