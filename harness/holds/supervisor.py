"""The other side of the filter: decides, for each system call that asks, whether it may go on.

Without a rule every call goes on at once. A rule keeps the calls it matches until it is lifted, or makes
them fail, or do half of what they should, as a file system may. Calls of QEMU's main thread are left alone:
holding one would stop QMP and with it the test, and no 9p request runs there.

An error of the supervisor itself must neither stop QEMU nor pass for QEMU's: the call that met it goes on,
and the error is recorded (:meth:`Rules.report`). An error that only says that the caller has ended is none.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import select
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from harness.errors import HarnessError, SetupError, UsageError
from harness.history import HARNESS_ERROR, History
from harness.holds import shortened, sizeless
from harness.holds.seccomp import CALLS

_NAMES = {number: name for name, number in CALLS.items()}
# kernel: include/uapi/linux/seccomp.h, SECCOMP_IOCTL_NOTIF_RECV and _SEND, SECCOMP_USER_NOTIF_FLAG_CONTINUE
_IOCTL_RECV, _IOCTL_SEND = 0xC0502100, 0xC0182101
_FLAG_CONTINUE = 1
_NOTIFICATION = struct.Struct("<QIIiIQ6Q")
_RESPONSE = struct.Struct("<QqiI")
_AT_FDCWD = 0xFFFFFF9C
#: What the kernel says of a thread that has ended (``man 5 proc``).
_ENDED = (errno.ENOENT, errno.ESRCH)
_CLOSED = -1
#: Calls whose second argument is a path relative to the directory in their first, and those whose first is
#: a path; the others take a descriptor in their first.
_BY_PATH = ("newfstatat", "openat", "unlinkat", "renameat", "mkdirat")
_BY_WHOLE_PATH = ("lstat", "lsetxattr")
#: How QEMU names a file in a folder that it has open (``hw/9pfs/9p-util-linux.c``).
_IN_DESCRIPTOR = re.compile(r"/proc/self/(fd/\d+)(/.*)?")


@dataclass(frozen=True)
class Answer:
    """What becomes of a call: by default it goes on; with ``error``, an errno, it fails; with ``value``, it
    returns that, and was done by somebody else."""

    error: int = 0
    value: int | None = None


GO_ON = Answer()


@dataclass(frozen=True)
class Call:
    """A system call that asked: whose it is, its name, the thread that makes it, the file it is about."""

    machine: str
    name: str
    tid: int
    path: str
    arguments: list[int] = field(repr=False)
    answer: Callable[[Answer], None] = field(repr=False)

    def halve(self) -> Answer:
        """Do half of it.

        :raises HarnessError: when the memory or the file of its process cannot be reached.
        """
        try:
            return Answer(value=shortened.transfer_half(self.tid, self.name, self.arguments))
        except OSError as exc:
            return Answer(error=exc.errno or errno.EIO)

    def without_block_size(self) -> Answer:
        """Do it, with a block size of 0 in its answer; errors as for :meth:`halve`."""
        try:
            return Answer(value=sizeless.fstatfs(self.tid, self.arguments))
        except OSError as exc:
            return Answer(error=exc.errno or errno.EIO)


@dataclass(eq=False)
class Rule:
    """What to do with the calls that match: keep them, unless ``error``, ``halved`` or ``sizeless`` is given.

    :param calls: names of system calls, each one of :data:`harness.holds.seccomp.CALLS`.
    :param below: a folder or file.
    :param error: let them fail with this errno.
    :param halved: let them transfer half of their bytes; for reads and writes.
    :param sizeless: let them tell a block size of 0; for ``fstatfs``.
    :param machine: whose calls; by default everybody's. A rule that holds calls becomes that of the machine
        whose call it holds first: a migration's destination has the same share, and is not meant.
    :ivar held: the calls that wait now. :ivar hits: how many have matched so far.
    """

    calls: frozenset[str]
    below: Path
    error: int | None = None
    halved: bool = False
    sizeless: bool = False
    machine: str | None = None
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
        if self.sizeless and self.calls != {sizeless.CALL}:
            raise UsageError(f"only {sizeless.CALL} tells a block size, not {', '.join(sorted(self.calls))}")

    def matches(self, call: Call) -> bool:
        """Whether this rule is about ``call``."""
        below = call.path == str(self.below) or call.path.startswith(f"{self.below}/")
        return below and call.name in self.calls and self.machine in (None, call.machine)


class Rules:
    """The rules of one test, shared by the supervisors of all its machines."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._lock = threading.Lock()
        self._rules: list[Rule] = []
        self._failures: list[str] = []

    def report(self, machine: str, doing: str, error: Exception) -> None:
        """Record an error of a supervisor's own, which makes the test's record inconclusive; each one once.

        :param doing: what the supervisor was at, as in "while it handled preadv".
        """
        text = f"the supervisor of {machine!r} failed {doing}: {_told(error)}"
        with self._lock:
            if text in self._failures:
                return
            self._failures.append(text)
        self._history.note("host", HARNESS_ERROR, {"error": text})

    def check(self) -> None:
        """:raises SetupError: when a supervisor has failed; calls are not held reliably since."""
        with self._lock:
            if self._failures:
                raise SetupError(self._failures[0], details="\n".join(self._failures[1:]))

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
            try:
                call.answer(GO_ON)
            except OSError as exc:  # The others are to go on all the same.
                self.report(call.machine, f"while it let {call.name} go on", exc)
        return len(held)

    def clear(self) -> None:
        """Lift every rule."""
        for rule in tuple(self._rules):
            self.lift(rule)

    def wants(self, name: str) -> bool:
        """Whether a rule may be about calls of that name."""
        return any(name in rule.calls for rule in self._rules)

    def decide(self, call: Call) -> None:
        """Hold the call, answer it as its rule says, or let it go on."""
        answer = GO_ON
        with self._lock:
            rule = next((rule for rule in self._rules if rule.matches(call)), None)
            if rule is not None:
                rule.hits += 1
                what = {"call": call.name, "path": call.path, "tid": call.tid}
                if rule.error is not None:
                    answer = Answer(error=rule.error)
                    name = errno.errorcode.get(rule.error, str(rule.error))
                    self._history.note(call.machine, "hold:failed", {**what, "errno": name})
                elif rule.halved:
                    answer = call.halve()
                    self._history.note(call.machine, "hold:halved", {**what, "bytes": answer.value})
                elif rule.sizeless:
                    answer = call.without_block_size()
                    self._history.note(call.machine, "hold:sizeless", what)
                else:
                    rule.machine = call.machine
                    rule.held.append(call)
                    self._history.note(call.machine, "hold:held", what)
                    return
        call.answer(answer)


class _Listener:
    """The filter's descriptor: each call that asks is received from it once, and answered over it once.

    It is used and closed under a lock: a rule may be lifted when QEMU is long gone, and by then the number
    may be another file's.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._lock = threading.Lock()
        self._closed = False

    def receive(self) -> bytes | None:
        """The next notification; ``None`` when its caller was killed before it was heard.

        :raises OSError: when the kernel refuses to say.
        """
        buffer = bytearray(_NOTIFICATION.size)
        try:
            fcntl.ioctl(self.descriptor, _IOCTL_RECV, buffer)
        except OSError as exc:
            if exc.errno in (errno.ENOENT, errno.EINTR):
                return None
            raise
        return bytes(buffer)

    def send(self, response: bytes) -> None:
        """Answer a call; one whose caller has ended needs no answer.

        :raises OSError: when the kernel does not take the answer.
        """
        with self._lock:
            if self._closed:
                return
            try:
                fcntl.ioctl(self.descriptor, _IOCTL_SEND, response)
            except OSError as exc:
                # ENOENT: the caller was killed. EINPROGRESS: it was answered before.
                if exc.errno not in (errno.ENOENT, errno.EINPROGRESS):
                    raise

    def close(self) -> None:
        """Every call that asks from now on fails with ENOSYS."""
        with self._lock:
            self._closed = True
            os.close(self.descriptor)


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
        #: Written to when the machine has ended: it may never have come, and a kernel before 5.9 does not
        #: tell that no process is left under a filter.
        self._ended = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name=f"hold-{machine}", daemon=True)
        self._thread.start()

    def join(self, timeout_s: float) -> None:
        """The machine has ended: wait for the thread's end, and report one that does not come. Idempotent."""
        if self._ended == _CLOSED:
            return
        os.eventfd_write(self._ended, 1)
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            self._rules.report(self._machine, "to end", TimeoutError(f"it still runs after {timeout_s} s"))
            return
        os.close(self._ended)
        self._ended = _CLOSED

    def _run(self) -> None:
        try:
            with self._server:
                descriptor = self._handed_over()
            if descriptor is not None:
                listener = _Listener(descriptor)
                try:
                    self._serve(listener)
                finally:
                    listener.close()
        except Exception as exc:  # In a thread of its own, nobody else would hear of it.
            self._rules.report(self._machine, "and ended", exc)

    def _handed_over(self) -> int | None:
        """The filter's descriptor; ``None`` when the machine ended first, which whoever waits for it says."""
        poller = select.poll()
        poller.register(self._server, select.POLLIN)
        poller.register(self._ended, select.POLLIN)
        if self._ended in dict(poller.poll()):
            return None
        connection, _ = self._server.accept()
        with connection:
            _, descriptors, _, _ = socket.recv_fds(connection, 1, 1)
        return descriptors[0] if descriptors else None

    def _serve(self, listener: _Listener) -> None:
        poller = select.poll()
        poller.register(listener.descriptor, select.POLLIN)
        poller.register(self._ended, select.POLLIN)
        while self._ended not in (ready := dict(poller.poll())):
            # POLLHUP: no process is left that runs under the filter.
            if ready[listener.descriptor] & (select.POLLHUP | select.POLLERR):
                return
            notification = listener.receive()
            if notification is not None:
                self._handle(listener, notification)

    def _handle(self, listener: _Listener, notification: bytes) -> None:
        identity, tid, _, number, _, _, *arguments = _NOTIFICATION.unpack(notification)
        name = _NAMES.get(number, str(number))

        def answer(given: Answer) -> None:
            flags = _FLAG_CONTINUE if given == GO_ON else 0
            listener.send(_RESPONSE.pack(identity, given.value or 0, -given.error, flags))

        try:
            # The path is only read where a rule might want it.
            path = _path(tid, name, arguments) if self._rules.wants(name) else ""
            if path and not _is_main_thread(tid):
                self._rules.decide(Call(self._machine, name, tid, path, arguments, answer))
            else:
                answer(GO_ON)
        except Exception as exc:  # Whatever it is: QEMU must not wait for its answer for ever.
            self._rules.report(self._machine, f"while it handled {name}", exc)
            answer(GO_ON)


def _told(error: Exception) -> str:
    return error.message if isinstance(error, HarnessError) else f"{type(error).__name__}: {error}"


def _is_main_thread(tid: int) -> bool:
    try:
        return f"\nTgid:\t{tid}\n" in Path(f"/proc/{tid}/status").read_text()
    except OSError as exc:
        if exc.errno in _ENDED:
            return False
        raise


def _path(tid: int, name: str, arguments: list[int]) -> str:
    """The file that a call is about, as an absolute path; empty when the call is about none.

    :raises OSError: when the kernel does not let us look.
    """
    try:
        if name in _BY_WHOLE_PATH:
            return _whole(tid, _string(tid, arguments[0]))
        folder = _link(tid, arguments[0] & 0xFFFFFFFF)
        if name not in _BY_PATH:
            return folder
        return os.path.normpath(Path(folder) / _string(tid, arguments[1]))
    except OSError as exc:
        # The caller has ended, or its descriptor or address (EIO) is wrong: the call itself fails for that.
        if exc.errno in (*_ENDED, errno.EIO):
            return ""
        raise


def _whole(tid: int, path: str) -> str:
    inside = _IN_DESCRIPTOR.fullmatch(path)
    if inside is None:
        return os.path.normpath(Path(_link(tid, _AT_FDCWD)) / path)
    folder = Path(f"/proc/{tid}/{inside[1]}").readlink()
    return os.path.normpath(f"{folder}{inside[2] or ''}")


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
