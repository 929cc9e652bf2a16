"""Checks whether holds work on this host: seccomp user notification, and access to another process's memory.

A kernel before 5.5 does not support it. A container's policy may refuse ``seccomp(2)``, or a second listener
when the container's runtime has one already (EBUSY). Yama may forbid reading another process's memory. No
version number distinguishes these cases, so a hold is tried once, with a trivial process instead of QEMU
(``man 2 seccomp_unotify``; kernel ``Documentation/admin-guide/LSM/Yama.rst``).
"""

from __future__ import annotations

import contextlib
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from harness.deadline import Watch, wait_until
from harness.errors import HarnessError, Unsupported, WaitTimeout
from harness.history import History
from harness.holds import seccomp
from harness.holds.supervisor import Rule, Rules, Supervisor

#: Seconds for the whole attempt, which takes 0.2 s on an idle host.
_TIMEOUT_S = 60.0
#: In a thread, as QEMU does: looks up a file by its name, then reads it.
_SUBJECT = """
import os, sys, threading
def work():
    os.stat(sys.argv[1])
    file = os.open(sys.argv[1], os.O_RDONLY)
    os.write(1, b"%d" % os.preadv(file, [bytearray(8)], 0))
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""
_STAT, _READ = frozenset(["newfstatat", "lstat"]), frozenset(["preadv", "preadv2"])


def require_holds() -> None:
    """Check that requests can be held on this host.

    :raises Unsupported: when they cannot, with the reason.
    """
    reason = why_no_holds()
    if reason is not None:
        raise Unsupported(f"this host cannot hold a system call: {reason}")


@cache
def why_no_holds() -> str | None:
    """Why no system call can be held on this host, in one line, or ``None``. Tried once a process."""
    if platform.machine() != "x86_64":
        return f"holds support x86-64 only, and this host is {platform.machine()}"
    try:
        with tempfile.TemporaryDirectory(prefix="hold-probe-") as folder:
            _try(Path(folder).resolve())
    except WaitTimeout as exc:
        return f"a trial hold waited {exc.elapsed_s:.0f} s for {exc.what}"
    except HarnessError as exc:
        return exc.message
    except OSError as exc:
        return str(exc)
    return None


def _try(folder: Path) -> None:
    """Probe holds: hold a call and let it continue, then do half of another.

    :raises HarnessError: with what went wrong. :raises WaitTimeout: when a call does not arrive or continue.
    """
    file = folder / "file"
    file.write_bytes(b"8 bytes.")
    with contextlib.closing(History(folder / "history.ndjson")) as history:
        rules = Rules(history)
        rules.add(holding := Rule(_STAT, file))
        rules.add(Rule(_READ, file, halved=True))
        with _subject(folder / "socket", file, rules) as subject:

            def watch() -> None:
                rules.check()
                ended = subject.poll()
                if ended or (ended == 0 and not holding.hits):
                    raise HarnessError(_last_line(subject))

            _wait(lambda: bool(holding.held), "a system call to be notified", watch)
            rules.lift(holding)
            _wait(lambda: subject.poll() == 0, "a held system call to continue", watch)
            out, _ = subject.communicate()
        rules.check()
        if out != b"4":
            raise HarnessError(f"a read that had to transfer 4 bytes returned {out.decode()!r}")


def _wait(probe: Callable[[], bool], what: str, watch: Watch) -> None:
    wait_until(probe, what=what, timeout_s=_TIMEOUT_S / 2, watch=watch)


@contextlib.contextmanager
def _subject(socket: Path, file: Path, rules: Rules) -> Iterator[subprocess.Popen[bytes]]:
    """The process on which holds are probed: under the filter and its supervisor; ended with the context."""
    supervisor = Supervisor(socket, "probe", rules)
    try:
        subject = subprocess.Popen(
            [*seccomp.launcher(socket), sys.executable, "-I", "-S", "-c", _SUBJECT, str(file)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            yield subject
        finally:
            subject.kill()
            subject.communicate()
    finally:
        supervisor.join(_TIMEOUT_S)


def _last_line(subject: subprocess.Popen[bytes]) -> str:
    _, err = subject.communicate()
    printed = err.decode(errors="replace").strip().splitlines()
    return printed[-1] if printed else f"the trial process exited with {subject.returncode}"
