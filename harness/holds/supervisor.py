"""The supervisor of the seccomp filter: decides what happens to each system call that is notified.

A call that matches no rule continues at once. A rule holds the calls that it matches until it is lifted, or
makes them fail, or transfer half of their bytes, as a file system may. Calls of QEMU's main thread continue,
because no 9p request runs there, unless a rule is for that thread alone. Such a rule only makes them fail:
holding one would stop QMP and with it the test.

An error of the supervisor must neither stop QEMU nor count as QEMU's error. The call during which it happened
continues, and the error is recorded (:meth:`Rules.report`). An error that only means that the caller has
ended is ignored.
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
from harness.holds import short_transfer, zero_block_size
from harness.holds.seccomp import CALLS

_NAMES = {number: name for name, number in CALLS.items()}
# kernel: include/uapi/linux/seccomp.h, SECCOMP_IOCTL_NOTIF_RECV and _SEND, SECCOMP_USER_NOTIF_FLAG_CONTINUE
_IOCTL_RECV, _IOCTL_SEND = 0xC0502100, 0xC0182101
_FLAG_CONTINUE = 1
_NOTIFICATION = struct.Struct("<QIIiIQ6Q")
_RESPONSE = struct.Struct("<QqiI")
_AT_FDCWD = 0xFFFFFF9C
#: The errors of ``/proc`` for a thread that has ended (``man 5 proc``).
_ENDED = (errno.ENOENT, errno.ESRCH)
_CLOSED = -1
#: Calls whose second argument is a path relative to the directory in their first argument, and calls whose
#: first argument is a path. The first argument of all others is a descriptor.
_BY_PATH = ("newfstatat", "openat", "unlinkat", "renameat", "mkdirat")
_BY_WHOLE_PATH = ("lstat", "lsetxattr", "setxattr", "mkdir", "rename", "unlink", "rmdir", "statfs")
#: How QEMU names a file in a folder that it has open (``hw/9pfs/9p-util-linux.c``).
_IN_DESCRIPTOR = re.compile(r"/proc/self/(fd/\d+)(/.*)?")


@dataclass(frozen=True)
class Answer:
    """The answer to a notified call: by default the call continues.

    :ivar error: an errno with which the call fails.
    :ivar value: the return value of a call that the supervisor has done itself.
    """

    error: int = 0
    value: int | None = None


CONTINUE = Answer()


@dataclass(frozen=True)
class Call:
    """A notified system call: its machine, its name, the thread that makes it, and the file it is about.

    :ivar main_thread: whether that is the process's main thread.
    """

    machine: str
    name: str
    tid: int
    path: str
    arguments: list[int] = field(repr=False)
    answer: Callable[[Answer], None] = field(repr=False)
    main_thread: bool = False

    def halve(self) -> Answer:
        """Do half of a notified transfer in place of the caller.

        :raises HarnessError: when the memory or the file of the caller's process cannot be opened.
        """
        try:
            return Answer(value=short_transfer.transfer_half(self.tid, self.name, self.arguments))
        except OSError as exc:
            return Answer(error=exc.errno or errno.EIO)

    def without_block_size(self) -> Answer:
        """Do a notified ``fstatfs`` or ``statfs`` with a block size of 0 in its result; errors as for
        :meth:`halve`."""
        try:
            return Answer(value=zero_block_size.statfs(self.tid, self.name, self.path, self.arguments))
        except OSError as exc:
            return Answer(error=exc.errno or errno.EIO)


@dataclass(eq=False)
class Rule:
    """Holds the matching calls, or does what ``error``, ``halved`` or ``zero_block_size`` says instead.

    :param calls: names of system calls, each one of :data:`harness.holds.seccomp.CALLS`.
    :param below: the folder or file that the calls are about.
    :param error: the calls fail with this errno.
    :param halved: the calls transfer half of their bytes; for reads and writes.
    :param zero_block_size: the calls report a block size of 0; for ``fstatfs`` and ``statfs``.
    :param machine: the machine whose calls match; by default any. A rule that holds calls then matches only
        the machine whose call it held first, because a migration's destination has the same share.
    :param main_thread: the rule is for the calls of QEMU's main thread, and not for those of its others.
    :ivar held: the calls that are held now. :ivar hits: the number of calls that have matched so far.
    """

    calls: frozenset[str]
    below: Path
    error: int | None = None
    halved: bool = False
    zero_block_size: bool = False
    machine: str | None = None
    main_thread: bool = False
    held: list[Call] = field(default_factory=list)
    hits: int = 0

    def __post_init__(self) -> None:
        unknown = sorted(self.calls - set(CALLS))
        if unknown or not self.calls:
            known = ", ".join(sorted(CALLS))
            raise UsageError(f"cannot hold {', '.join(unknown) or 'nothing'}; known calls: {known}")
        whole = sorted(self.calls - {*short_transfer.READS, *short_transfer.WRITES})
        if self.halved and whole:
            raise UsageError(f"{', '.join(whole)} transfers no bytes: only reads and writes can be halved")
        if self.main_thread and self.error is None:
            raise UsageError("calls of QEMU's main thread can only fail: holding one stops QMP")
        if self.zero_block_size and not self.calls.issubset(zero_block_size.CALLS):
            raise UsageError(
                f"only {' and '.join(zero_block_size.CALLS)} report a block size, "
                f"not {', '.join(sorted(self.calls))}"
            )

    def matches(self, call: Call) -> bool:
        """Whether this rule of the supervisor applies to ``call``."""
        below = call.path == str(self.below) or call.path.startswith(f"{self.below}/")
        from_there = call.main_thread == self.main_thread and self.machine in (None, call.machine)
        return below and call.name in self.calls and from_there


class Rules:
    """The rules of one test, shared by the supervisors of all its machines."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._lock = threading.Lock()
        self._rules: list[Rule] = []
        self._failures: list[str] = []

    def report(self, machine: str, doing: str, error: Exception) -> None:
        """Record an error of a supervisor, each one once. It makes the test's record inconclusive.

        :param doing: what the supervisor was doing, as in "while it handled preadv".
        """
        text = f"the supervisor of {machine!r} failed {doing}: {_text_of(error)}"
        with self._lock:
            if text in self._failures:
                return
            self._failures.append(text)
        self._history.note("host", HARNESS_ERROR, {"error": text})

    def check(self) -> None:
        """Check that no supervisor has failed; after a failure calls are not held reliably.

        :raises SetupError: when one has.
        """
        with self._lock:
            if self._failures:
                raise SetupError(self._failures[0], details="\n".join(self._failures[1:]))

    def add(self, rule: Rule) -> None:
        """Let the supervisor apply ``rule`` from now on."""
        with self._lock:
            self._rules.append(rule)

    def lift(self, rule: Rule) -> int:
        """Stop applying a rule, and let the calls that the supervisor holds for it continue.

        Returns their number.
        """
        with self._lock:
            if rule in self._rules:
                self._rules.remove(rule)
            held, rule.held = rule.held, []
        for call in held:
            try:
                call.answer(CONTINUE)
            except OSError as exc:  # The other calls have to continue nevertheless.
                self.report(call.machine, f"while it let {call.name} continue", exc)
        return len(held)

    def clear(self) -> None:
        """Lift every rule of the supervisor."""
        for rule in tuple(self._rules):
            self.lift(rule)

    def wants(self, name: str) -> bool:
        """Whether a rule of the supervisor may apply to calls of that name."""
        # A copy, because another thread may lift a rule: the one after it would be left out.
        return any(name in rule.calls for rule in tuple(self._rules))

    def decide(self, call: Call) -> None:
        """Hold the call, answer it as its rule says, or let it continue."""
        answer = CONTINUE
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
                elif rule.zero_block_size:
                    answer = call.without_block_size()
                    self._history.note(call.machine, "hold:zero_block_size", what)
                else:
                    rule.machine = call.machine
                    rule.held.append(call)
                    self._history.note(call.machine, "hold:held", what)
                    return
        call.answer(answer)


class _Listener:
    """The filter's listening descriptor: each notification is received from it once, and answered once.

    A lock guards the answers and the close: a rule may be lifted after QEMU has ended, when the descriptor's
    number may belong to another file.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._lock = threading.Lock()
        self._closed = False

    def receive(self) -> bytes | None:
        """The next notification; ``None`` when its caller was killed before it could be received.

        :raises OSError: when the kernel returns another error.
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
        """Answer a notification; one whose caller has ended needs no answer.

        :raises OSError: when the kernel rejects the answer.
        """
        with self._lock:
            if self._closed:
                return
            try:
                fcntl.ioctl(self.descriptor, _IOCTL_SEND, response)
            except OSError as exc:
                # ENOENT: the caller was killed. EINPROGRESS: the call has been answered already.
                if exc.errno not in (errno.ENOENT, errno.EINPROGRESS):
                    raise

    def close(self) -> None:
        """Close the descriptor; every call that is notified from now on fails with ENOSYS."""
        with self._lock:
            self._closed = True
            os.close(self.descriptor)


class Supervisor:
    """Answers the notifications of one QEMU; its thread ends after that process, not before.

    (If the descriptor were closed earlier, each notified call would fail with ENOSYS.)

    :param path: the unix socket over which the filter's descriptor is handed over.
    :param machine: the machine's name, which is the actor in the history.
    """

    def __init__(self, path: Path, machine: str, rules: Rules) -> None:
        self._machine, self._rules = machine, rules
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._server.bind(str(path))
        self._server.listen(1)
        #: Written to when the machine has ended. The machine may never have connected, and a kernel before
        #: 5.9 does not report that no process is left under a filter.
        self._ended = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name=f"hold-{machine}", daemon=True)
        self._thread.start()

    def join(self, timeout_s: float) -> None:
        """Called when the machine has ended: wait for the thread's end, or report a thread that does not end.

        Idempotent.

        :param timeout_s: seconds.
        """
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
        except Exception as exc:  # Nothing else reports an exception of this thread.
            self._rules.report(self._machine, "and ended", exc)

    def _handed_over(self) -> int | None:
        """The filter's descriptor; ``None`` when the machine ended first, which its launch reports."""
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
            # POLLHUP: no process is left under the filter.
            if ready[listener.descriptor] & (select.POLLHUP | select.POLLERR):
                return
            notification = listener.receive()
            if notification is not None:
                self._handle(listener, notification)

    def _handle(self, listener: _Listener, notification: bytes) -> None:
        identity, tid, _, number, _, _, *arguments = _NOTIFICATION.unpack(notification)
        name = _NAMES.get(number, str(number))

        def answer(given: Answer) -> None:
            flags = _FLAG_CONTINUE if given == CONTINUE else 0
            listener.send(_RESPONSE.pack(identity, given.value or 0, -given.error, flags))

        try:
            # The path is read only when a rule may need it.
            path = _path(tid, name, arguments) if self._rules.wants(name) else ""
            if path:
                call = Call(self._machine, name, tid, path, arguments, answer, _is_main_thread(tid))
                self._rules.decide(call)
            else:
                answer(CONTINUE)
        except Exception as exc:  # After any error the call has to be answered, or QEMU waits for ever.
            self._rules.report(self._machine, f"while it handled {name}", exc)
            answer(CONTINUE)


def _text_of(error: Exception) -> str:
    return error.message if isinstance(error, HarnessError) else f"{type(error).__name__}: {error}"


def _is_main_thread(tid: int) -> bool:
    try:
        return f"\nTgid:\t{tid}\n" in Path(f"/proc/{tid}/status").read_text()
    except OSError as exc:
        if exc.errno in _ENDED:
            return False
        raise


def _path(tid: int, name: str, arguments: list[int]) -> str:
    """The file that a notified call is about, as an absolute path; empty when there is none.

    :raises OSError: when the kernel refuses access to the caller's process.
    """
    try:
        if name in _BY_WHOLE_PATH:
            return _whole(tid, _string(tid, arguments[0]))
        folder = _link(tid, arguments[0] & 0xFFFFFFFF)
        if name not in _BY_PATH:
            return folder
        return os.path.normpath(Path(folder) / _string(tid, arguments[1]))
    except OSError as exc:
        # The caller has ended, or its descriptor or address (EIO) is invalid: the call itself fails then.
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
    """The NUL-terminated string at an address of a notifying process (``man 5 proc``, ``/proc/PID/mem``)."""
    with Path(f"/proc/{tid}/mem").open("rb", buffering=0) as memory:
        memory.seek(address)
        # The next page may not be mapped, so it is read only when the string continues there.
        text = memory.read(4096 - address % 4096)
        if b"\0" not in text:
            text += memory.read(4096)
    return text.split(b"\0")[0].decode(errors="surrogateescape")
