"""Whether this host lets a hold work: seccomp user notification, and a look into the process that asks.

A kernel before 5.5 cannot do it; a container's policy may refuse ``seccomp(2)``, or a filter that listens
where its runtime listens already (EBUSY); Yama may forbid to read another process's memory. None of that can
be told from a version, so it is done once, with a trivial process in QEMU's place (``man 2 seccomp_unotify``;
kernel ``Documentation/admin-guide/LSM/Yama.rst``).
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

#: Seconds for the whole attempt, which takes 0.2 s on an idle host. One that takes longer is as good as none.
_TIMEOUT_S = 60.0
#: Looks at a file by its name, then reads it, in a thread, as QEMU does.
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
    """:raises Unsupported: with the reason, when no request can be held on this host."""
    reason = why_no_holds()
    if reason is not None:
        raise Unsupported(f"this host cannot hold a system call: {reason}")


@cache
def why_no_holds() -> str | None:
    """Why no system call can be held on this host, in one line, or ``None``. It is tried once a process."""
    if platform.machine() != "x86_64":
        return f"only x86-64's system calls are known, and this is {platform.machine()}"
    try:
        with tempfile.TemporaryDirectory(prefix="hold-probe-") as folder:
            _try(Path(folder).resolve())
    except WaitTimeout as exc:
        return f"it was tried, and waited {exc.elapsed_s:.0f} s for {exc.what}"
    except HarnessError as exc:
        return exc.message
    except OSError as exc:
        return str(exc)
    return None


def _try(folder: Path) -> None:
    """Hold a call and let it go on, then do half of another.

    :raises HarnessError: with what went wrong. :raises WaitTimeout: when something does not come.
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
                    raise HarnessError(_complaint(subject))

            _wait(lambda: bool(holding.held), "a call to ask", watch)
            rules.lift(holding)
            _wait(lambda: subject.poll() == 0, "a call to go on", watch)
            out, _ = subject.communicate()
        rules.check()
        if out != b"4":
            raise HarnessError(f"a read that was to transfer 4 bytes returned {out.decode()!r}")


def _wait(probe: Callable[[], bool], what: str, watch: Watch) -> None:
    wait_until(probe, what=what, timeout_s=_TIMEOUT_S / 2, watch=watch)


@contextlib.contextmanager
def _subject(socket: Path, file: Path, rules: Rules) -> Iterator[subprocess.Popen[bytes]]:
    """The process that makes the calls, under the filter and its supervisor; it is ended at the end."""
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


def _complaint(subject: subprocess.Popen[bytes]) -> str:
    _, err = subject.communicate()
    said = err.decode(errors="replace").strip().splitlines()
    return said[-1] if said else f"the process that was to be held ended with {subject.returncode}"
