"""The other side of the filter: decides, for each system call that asks, whether it may go on.

Without a rule every call goes on at once. A rule keeps the calls it matches until it is lifted, or makes
them fail, or do half of what they should, as a file system may. Calls of QEMU's main thread are left alone:
holding one would stop QMP and with it the test, and no 9p request runs there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from harness.background import inherit
from harness.errors import UsageError
from harness.history import History
from harness.holds import shortened
from harness.holds.seccomp import CALLS

_NAMES = {number: name for name, number in CALLS.items()}
# kernel: include/uapi/linux/seccomp.h, SECCOMP_IOCTL_NOTIF_RECV and _SEND, SECCOMP_USER_NOTIF_FLAG_CONTINUE
_IOCTL_RECV, _IOCTL_SEND = 0xC0502100, 0xC0182101
_FLAG_CONTINUE = 1
_NOTIFICATION = struct.Struct("<QIIiIQ6Q")
_RESPONSE = struct.Struct("<QqiI")
_AT_FDCWD = 0xFFFFFF9C
_HANDOVER_TIMEOUT_S = 30
#: Calls whose second argument is a path relative to the directory in their first, and those whose first is
#: a path; the others take a descriptor in their first.
_BY_PATH = ("newfstatat", "openat", "unlinkat", "renameat", "mkdirat")
_BY_WHOLE_PATH = ("lstat",)


@dataclass(frozen=True)
class Answer:
    """What becomes of a call: by default it goes on; with ``error``, an errno, it fails; with ``value``, it
    returns that, and was done by somebody else."""

    error: int = 0
    value: int | None = None


GO_ON = Answer()


@dataclass(frozen=True)
class Call:
    """A system call that asked: its name, the thread that makes it, and the file it is about."""

    name: str
    tid: int
    path: str
    arguments: list[int] = field(repr=False)
    answer: Callable[[Answer], None] = field(repr=False)

    def halve(self) -> Answer:
        """Do half of it."""
        try:
            return Answer(value=shortened.transfer_half(self.tid, self.name, self.arguments))
        except OSError as exc:
            return Answer(error=exc.errno or errno.EIO)


@dataclass(eq=False)
class Rule:
    """What to do with the calls that match: keep them, unless ``error`` or ``halved`` says otherwise.

    :param calls: names of system calls, each one of :data:`harness.holds.seccomp.CALLS`.
    :param below: a folder or file.
    :param error: let them fail with this errno.
    :param halved: let them transfer half of their bytes; for reads and writes.
    :ivar held: the calls that wait now. :ivar hits: how many have matched so far.
    """

    calls: frozenset[str]
    below: Path
    error: int | None = None
    halved: bool = False
    held: list[Call] = field(default_factory=list)
    hits: int = 0

    def __post_init__(self) -> None:
        unknown = sorted(self.calls - set(CALLS))
        if unknown or not self.calls:
            known = ", ".join(sorted(CALLS))
            raise UsageError(f"cannot hold {', '.join(unknown) or 'nothing'}; known calls: {known}")
        whole = sorted(self.calls - {*shortened.READS, *shortened.WRITES})
        if self.halved and whole:
            raise UsageError(f"half of {', '.join(whole)} is nothing: halve reads and writes")

    def matches(self, name: str, path: str) -> bool:
        """Whether this rule is about a call of that name on that path."""
        return name in self.calls and (path == str(self.below) or path.startswith(f"{self.below}/"))


class Rules:
    """The rules of one test, shared by the supervisors of all its machines."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._lock = threading.Lock()
        self._rules: list[Rule] = []

    def add(self, rule: Rule) -> None:
        """Apply ``rule`` from now on."""
        with self._lock:
            self._rules.append(rule)

    def lift(self, rule: Rule) -> int:
        """Stop applying ``rule``, and let what it holds go on; returns how many calls that were."""
        with self._lock:
            if rule in self._rules:
                self._rules.remove(rule)
            held, rule.held = rule.held, []
        for call in held:
            call.answer(GO_ON)
        return len(held)

    def clear(self) -> None:
        """Lift every rule."""
        for rule in tuple(self._rules):
            self.lift(rule)

    def wants(self, name: str) -> bool:
        """Whether a rule may be about calls of that name."""
        return any(name in rule.calls for rule in self._rules)

    def decide(self, machine: str, call: Call) -> None:
        """Hold the call, answer it as its rule says, or let it go on."""
        answer = GO_ON
        with self._lock:
            rule = next((rule for rule in self._rules if rule.matches(call.name, call.path)), None)
            if rule is not None:
                rule.hits += 1
                what = {"call": call.name, "path": call.path, "tid": call.tid}
                if rule.error is not None:
                    answer = Answer(error=rule.error)
                    self._history.note(machine, "hold:failed", {**what, "errno": errno.errorcode[rule.error]})
                elif rule.halved:
                    answer = call.halve()
                    self._history.note(machine, "hold:halved", {**what, "bytes": answer.value})
                else:
                    rule.held.append(call)
                    self._history.note(machine, "hold:held", what)
                    return
        call.answer(answer)


class Supervisor:
    """Listens for one QEMU; its thread ends with that process, and not before.

    (Were the descriptor closed earlier, each call that asks would fail with ENOSYS.)

    :param path: the unix socket at which the filter's descriptor is handed over.
    :param machine: the actor's name in the history.
    """

    def __init__(self, path: Path, machine: str, rules: Rules) -> None:
        self._machine, self._rules = machine, rules
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._server.bind(str(path))
        self._server.listen(1)
        self._server.settimeout(_HANDOVER_TIMEOUT_S)
        self._thread = threading.Thread(target=self._run, name=f"hold-{machine}", daemon=True)
        inherit(self._thread)
        self._thread.start()

    def join(self, timeout_s: float) -> None:
        """Wait for the end of the thread."""
        self._thread.join(timeout_s)

    def _run(self) -> None:
        # An OSError means that QEMU never came, or is gone: whoever waits for it says so.
        with self._server, contextlib.suppress(OSError):
            connection, _ = self._server.accept()
            with connection:
                _, descriptors, _, _ = socket.recv_fds(connection, 1, 1)
            try:
                self._serve(descriptors[0])
            finally:
                os.close(descriptors[0])

    def _serve(self, descriptor: int) -> None:
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        # POLLHUP: no process is left that runs under the filter.
        while not poller.poll()[0][1] & (select.POLLHUP | select.POLLERR):
            call = self._next(descriptor)
            if call is None:
                continue
            if call.path and not _is_main_thread(call.tid):
                self._rules.decide(self._machine, call)
            else:
                call.answer(GO_ON)

    def _next(self, descriptor: int) -> Call | None:
        buffer = bytearray(_NOTIFICATION.size)
        try:
            fcntl.ioctl(descriptor, _IOCTL_RECV, buffer)
        except OSError as exc:
            if exc.errno in (errno.ENOENT, errno.EINTR):
                return None  # The caller was killed before it was heard.
            raise
        identity, tid, _, number, _, _, *arguments = _NOTIFICATION.unpack(buffer)

        def answer(given: Answer) -> None:
            flags = _FLAG_CONTINUE if given == GO_ON else 0
            response = _RESPONSE.pack(identity, given.value or 0, -given.error, flags)
            with contextlib.suppress(OSError):  # The thread that waited, or the whole process, is gone.
                fcntl.ioctl(descriptor, _IOCTL_SEND, response)

        name = _NAMES.get(number, str(number))
        # The path is only read where a rule might want it.
        path = _path(tid, name, arguments) if self._rules.wants(name) else ""
        return Call(name, tid, path, arguments, answer)


def _is_main_thread(tid: int) -> bool:
    try:
        return f"\nTgid:\t{tid}\n" in Path(f"/proc/{tid}/status").read_text()
    except OSError:
        return False


def _path(tid: int, name: str, arguments: list[int]) -> str:
    """The file that a call is about, as an absolute path; empty when it cannot be told."""
    try:
        if name in _BY_WHOLE_PATH:
            return os.path.normpath(Path(_link(tid, _AT_FDCWD)) / _string(tid, arguments[0]))
        folder = _link(tid, arguments[0] & 0xFFFFFFFF)
        if name not in _BY_PATH:
            return folder
        return os.path.normpath(Path(folder) / _string(tid, arguments[1]))
    except OSError:
        return ""


def _link(tid: int, descriptor: int) -> str:
    what = "cwd" if descriptor == _AT_FDCWD else f"fd/{descriptor}"
    return str(Path(f"/proc/{tid}/{what}").readlink())


def _string(tid: int, address: int) -> str:
    """The NUL-terminated string at an address of the process (``man 5 proc``, ``/proc/PID/mem``)."""
    with Path(f"/proc/{tid}/mem").open("rb", buffering=0) as memory:
        memory.seek(address)
        # A page may be followed by none.
        text = memory.read(4096 - address % 4096)
        if b"\0" not in text:
            text += memory.read(4096)
    return text.split(b"\0")[0].decode(errors="surrogateescape")
