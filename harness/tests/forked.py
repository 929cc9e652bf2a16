"""Runs of pytest that start quickly: each is a process forked from one that has imported the harness.

What a process of its own costs is the import of pytest, of the harness and of what both need: more than a
second of processor time. The run itself takes a third of that. A forked process still has arguments, an
environment, a folder, options, plugins and standard streams of its own. So have the workers of pytest-xdist,
which are forked before the run begins: ``-n NUMBER`` starts these, ``-n auto`` and a worker that takes the
place of another are fresh processes. Tests that are about what is imported start fresh ones.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import IO, NoReturn

import pytest
from execnet import gateway_io
from execnet.gateway_base import ExecModel, Popen2IO

#: Imported once, by the process from which the runs are forked: what the plugin and pytest-xdist need. Not
#: the plugins themselves: pytest imports those.
_PRELOADED = (
    "pytest",
    "execnet",
    "sqlite3",
    "xml.dom.minidom",
    "xml.etree.ElementTree",
    "harness.checkers",
    "harness.explore.failures",
    "harness.guest.variant",
    "harness.guest.ways_in",
    "harness.leaks.hunt",
    "harness.matrix",
    "harness.qemu.identity",
    "harness.report.ledger",
    "harness.report.nights.recorder",
    "harness.report.nights.report",
    "harness.report.page.page",
    "harness.report.summary",
    "harness.report.tables",
    "harness.testbed",
    "harness.tests.forked",
    "harness.tests.preloaded",
)
#: Seconds that a run may take.
_LIMIT_S = 400.0


def run(
    target: Callable[..., int],
    *arguments: object,
    folder: Path,
    environment: Mapping[str, str],
    limit_s: float = _LIMIT_S,
) -> subprocess.CompletedProcess[str]:
    """Call ``target`` in a forked process, in ``folder`` and with ``environment`` alone.

    :param target: a function of a module; what it returns is the exit status.
    :raises subprocess.TimeoutExpired: when it takes longer than ``limit_s``; it was killed.
    """
    with tempfile.TemporaryDirectory() as into:
        streams = [Path(into, name) for name in ("stdout", "stderr")]
        given = (folder, dict(environment), streams, target, arguments)
        process = context().Process(target=_call, args=given)
        process.start()
        process.join(limit_s)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(str(target), limit_s)
        out, err = (stream.read_text() if stream.exists() else "" for stream in streams)
        return subprocess.CompletedProcess(str(target), process.exitcode, out, err)


def run_pytest(options: Sequence[str]) -> int:
    """``python -m pytest`` with these options: for :func:`run`."""
    number = options[options.index("-n") + 1] if "-n" in options else "0"
    for _ in range(int(number) if number.isdecimal() else 0):
        _waiting.append(_Worker())
    gateway_io.Popen2IOMaster = _WorkerIo  # type: ignore[misc]
    sys.argv = ["pytest", *options]
    sys.path.insert(0, str(Path.cwd()))
    return int(pytest.main(list(options)))


class _Worker:
    """A forked process that waits for what ``python -c CODE`` would run, and for its environment.

    It has the methods of a ``subprocess.Popen`` that execnet calls.
    """

    def __init__(self) -> None:
        lines, line = os.pipe()
        answers, answer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.dup2(lines, 0)
            os.dup2(answer, 1)
            # Those of workers that were forked before, too: each has to see the end of its own input.
            os.closerange(min([lines, *(one.stdin.fileno() for one in _waiting)]), answer + 1)
            _work()
        os.close(lines)
        os.close(answer)
        self.stdin: IO[bytes] = os.fdopen(line, "wb")
        self.stdout: IO[bytes] = os.fdopen(answers, "rb")

    def begin(self, code: str) -> None:
        """Run this code in the present folder and environment."""
        self.stdin.write(json.dumps([code, str(Path.cwd()), dict(os.environ)]).encode() + b"\n")

    def wait(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


def _work() -> NoReturn:
    """In a forked worker: what the run asks for, or nothing when it ends without it."""
    with open(0, "rb", buffering=0, closefd=False) as lines:
        given = lines.readline()
    if given:
        code, folder, environment = json.loads(given)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = ["-c"]
        sys.stdin = os.fdopen(0, closefd=False)
        exec(code, {"__name__": "__main__"})
    raise SystemExit(0)


class _WorkerIo(gateway_io.Popen2IOMaster):
    """The connection to a worker that was forked, or else to a fresh process."""

    def __init__(self, args: Sequence[str], execmodel: ExecModel) -> None:
        if not _waiting:
            super().__init__(args, execmodel)
            return
        self.popen = _waiting.pop(0)
        self.popen.begin(args[args.index("-c") + 1])
        Popen2IO.__init__(self, self.popen.stdin, self.popen.stdout, execmodel=execmodel)


_waiting: list[_Worker] = []


def in_place_of_run_pytest(
    argv: Sequence[str],
    folder: Path,
    *,
    what: str,
    environment: Mapping[str, str] | None = None,
    silence_s: float = _LIMIT_S,
) -> subprocess.CompletedProcess[str]:
    """:func:`harness.report.pytest_run.run_pytest`, with a forked process for ``python -m pytest``."""
    python, *words = argv
    assert (python, words[:2]) == (sys.executable, ["-m", "pytest"]), f"{what}: {argv}"
    given = os.environ if environment is None else environment
    return run(run_pytest, words[2:], folder=folder, environment=given, limit_s=silence_s)


def context() -> ForkServerContext:
    """For processes that begin with what a run of pytest needs: :data:`_PRELOADED`."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(list(_PRELOADED))
    return made


def _call(
    folder: Path,
    environment: dict[str, str],
    streams: Sequence[Path],
    target: Callable[..., int],
    arguments: Sequence[object],
) -> None:
    for number, stream in enumerate(streams, start=1):
        descriptor = os.open(stream, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # It is that of the environment.
    # A run collects garbage several times when it ends. What the first process imported is none.
    gc.freeze()
    raise SystemExit(target(*arguments))
