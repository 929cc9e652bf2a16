"""Starts pytest and reads the summary of its run.

Results are read from the summary that pytest writes, not from its output.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

from harness.deadline import Deadline, wait_until
from harness.errors import SetupError
from harness.report import summary
from harness.report.summary import Run

#: pytest's exit codes for "all passed" and "some failed"; anything else is no result.
_RESULTS = (0, 1)
#: Seconds without output after which pytest is taken to hang. It prints something when a test ends, and
#: before it provisions something. The longest steps (a leak hunt, QEMU's build) take some minutes on a busy
#: machine.
SILENCE_S = 1800.0
#: Seconds that pytest has to end its guests after SIGINT.
_END_S = 60.0


def read_summary(what: str, done: subprocess.CompletedProcess[str], folder: Path) -> Run:
    """The summary that a pytest which was started wrote into ``folder`` (``--summary``).

    :raises SetupError: when the run gave no result.
    """
    if done.returncode not in _RESULTS or not (folder / summary.NAME).is_file():
        raise no_result(what, done)
    return summary.read(folder)


def no_result(what: str, done: subprocess.CompletedProcess[str]) -> SetupError:
    """The error for a pytest that was started and gave no result, with the last line of its output."""
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines() or ["no output"]
    return SetupError(
        f"{what} gave no result (pytest exited with {done.returncode}): {lines[-1]}",
        details="\n".join(lines[-20:]),
    )


def run_pytest(
    argv: list[str],
    folder: Path,
    *,
    what: str,
    environment: Mapping[str, str] | None = None,
    show: IO[bytes] | None = None,
    silence_s: float = SILENCE_S,
    observe: Callable[[int], None] | None = None,
    interval_s: float = 0.1,
) -> subprocess.CompletedProcess[str]:
    """Run pytest in ``folder``, in a new session, and end it when it prints nothing for too long.

    There is no limit for the whole run: its time depends on the number of scenarios and on the machine. The
    time without output does not.

    :param what: a description of the run, for the error.
    :param show: a file to which the output is copied while it is written.
    :param silence_s: the longest time without output, in seconds.
    :param observe: is called with pytest's process id while it runs, every ``interval_s`` seconds.
    :raises SetupError: when there was no output for ``silence_s``. By then all its processes have ended.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            argv,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
        output = _Output((out, err), show)
        silence = Deadline.after(silence_s)

        def watch() -> None:
            nonlocal silence
            if observe is not None:
                observe(process.pid)
            if output.has_grown():
                silence = Deadline.after(silence_s)
            if silence.expired:
                text = output.text(out) + output.text(err)
                raise SetupError(
                    f"{what}: pytest printed nothing for {silence_s:g} s, and was ended",
                    details="\n".join(text.splitlines()[-20:]),
                )

        try:
            wait_until(
                lambda: process.poll() is not None,
                what=what,
                timeout_s=float("inf"),
                watch=watch,
                interval_s=interval_s,
            )
        finally:
            _end(process)
        output.has_grown()
        return subprocess.CompletedProcess(argv, process.returncode, output.text(out), output.text(err))


class _Output:
    """The output that a process has written to its files."""

    def __init__(self, files: tuple[IO[bytes], ...], show: IO[bytes] | None) -> None:
        self._sizes, self._show = dict.fromkeys(files, 0), show

    def has_grown(self) -> bool:
        """Copy the new output of pytest to ``show``; return whether there was any."""
        grown = False
        for file, before in self._sizes.items():
            # pread() leaves the file's position alone, at which the process writes.
            new = os.pread(file.fileno(), os.fstat(file.fileno()).st_size - before, before)
            self._sizes[file] += len(new)
            grown = grown or bool(new)
            if new and self._show is not None:
                self._show.write(new)
                self._show.flush()
        return grown

    def text(self, file: IO[bytes]) -> str:
        """The whole output of pytest in ``file``."""
        return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode("utf-8", "replace")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a pytest that still runs, and its group. SIGINT comes first, so that it ends its guests."""
    for number in (signal.SIGINT, signal.SIGKILL):
        if process.poll() is not None and number != signal.SIGKILL:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_S)
