"""Runs of pytest on the scenarios: what they give is read from their summary, never from their output."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO

from harness.deadline import Deadline, wait_until
from harness.errors import SetupError
from harness.layout import pytest_command, pytest_folder, scenarios_folder
from harness.matrix import DEFAULT
from harness.reaper import RunFolder
from harness.report import summary
from harness.report.summary import Run

#: pytest's exit codes for "all passed" and "some failed"; anything else is no result.
_RESULTS = (0, 1)
#: Those of a collection: some tests, or none.
_COLLECTED = (0, 5)
#: Seconds without a word after which a run of pytest hangs. It has one for each test that ends, and one
#: before whatever it provisions; the longest of both (a leak hunt, QEMU's build) take some minutes on a busy
#: machine.
SILENCE_S = 1800.0
#: Seconds for pytest to end its guests when it is interrupted.
_END_S = 60.0


def run_scenarios(
    qemu: str,
    selection: Sequence[str],
    artifacts: Path,
    run: RunFolder,
    *,
    alone: bool,
) -> Run:
    """Run scenarios against the QEMU called ``qemu``.

    :param selection: pytest's arguments and options that say which; paths are relative to the scenarios.
    :param run: the folder whose processes end with this one.
    :param alone: nothing else runs meanwhile, so pytest takes as many workers as the machine has room for.
    :raises SetupError: when the run gives no result.
    """
    folder = scenarios_folder()
    into = Path(tempfile.mkdtemp(dir=run.path))
    argv = [*pytest_command(), *selection, "--qemu", qemu, "--summary", str(into)]
    argv += ["-n", "auto" if alone else "0", "-q", "-p", "no:cacheprovider", "--artifacts", str(artifacts)]
    what = f"the scenarios against QEMU {qemu}"
    done = run_pytest(argv, pytest_folder(folder), what=what, environment={**os.environ, **run.environment()})
    if done.returncode not in _RESULTS or not (into / summary.NAME).is_file():
        raise _no_result(what, done)
    return summary.read(into)


def collected(*options: str) -> tuple[str, ...]:
    """The scenarios that a run with these options is of, as ``file.py::test[parameters]``.

    pytest itself collects them: which are left out by default, and on which machine types each runs, is
    written nowhere else.

    :raises SetupError: when it cannot.
    """
    folder = scenarios_folder()
    argv = [*pytest_command(), str(folder), "--collect-only", "-q", "-p", "no:cacheprovider"]
    what = "the collection of the scenarios"
    done = run_pytest([*argv, *options], pytest_folder(folder), what=what)
    if done.returncode not in _COLLECTED:
        raise _no_result(what, done)
    tests = [line for line in done.stdout.splitlines() if "::" in line]
    return tuple(short(summary.scenario_of(test, DEFAULT, DEFAULT)) for test in tests)


def short(scenario: str) -> str:
    """A scenario's name as faults give it: without the folder of all scenarios."""
    path, _, test = scenario.partition("::")
    return f"{path.rpartition('/')[2]}::{test.removesuffix('[]')}"


def paths(scenarios: Iterable[str]) -> list[str]:
    """pytest's arguments for files (``file.py``) and tests (``file.py::test``)."""
    folder = scenarios_folder()
    return [str(folder / scenario) for scenario in scenarios]


def files() -> list[Path]:
    """The files of scenarios."""
    return sorted(scenarios_folder().glob("test_*.py"))


def _no_result(what: str, done: subprocess.CompletedProcess[str]) -> SetupError:
    said = (done.stderr.strip() or done.stdout.strip()).splitlines() or ["nothing"]
    return SetupError(
        f"{what} gave no result (pytest exited with {done.returncode}): {said[-1]}",
        details="\n".join(said[-20:]),
    )


def run_pytest(
    argv: list[str],
    folder: Path,
    *,
    what: str,
    environment: Mapping[str, str] | None = None,
    show: IO[bytes] | None = None,
    silence_s: float = SILENCE_S,
) -> subprocess.CompletedProcess[str]:
    """Run pytest in ``folder``, in a process group of its own; end it when it says nothing for too long.

    How long a whole run takes depends on the scenarios, the machine and what else runs there; how long it is
    silent does not.

    :param what: is run, for the error. :param show: where its output goes as well, as it comes.
    :param silence_s: seconds.
    :raises SetupError: when it was silent for so long; nothing of it is left then.
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
        heard = _Heard((out, err), show)
        silent = Deadline.after(silence_s)

        def watch() -> None:
            nonlocal silent
            if heard.more():
                silent = Deadline.after(silence_s)
            if silent.expired:
                text = heard.text(out) + heard.text(err)
                raise SetupError(
                    f"{what}: pytest said nothing for {silence_s:g} s, and was ended",
                    details="\n".join(text.splitlines()[-20:]),
                )

        try:
            forever = float("inf")
            wait_until(
                lambda: process.poll() is not None, what=what, timeout_s=forever, watch=watch, interval_s=0.1
            )
        finally:
            _end(process)
        heard.more()
        return subprocess.CompletedProcess(argv, process.returncode, heard.text(out), heard.text(err))


class _Heard:
    """What a process has written to its files."""

    def __init__(self, files: tuple[IO[bytes], ...], show: IO[bytes] | None) -> None:
        self._sizes, self._show = dict.fromkeys(files, 0), show

    def more(self) -> bool:
        """Whether there is more than last time; it is shown."""
        grown = False
        for file, before in self._sizes.items():
            # At a place of its own: the process writes where the file's one position is.
            said = os.pread(file.fileno(), os.fstat(file.fileno()).st_size - before, before)
            self._sizes[file] += len(said)
            grown = grown or bool(said)
            if said and self._show is not None:
                self._show.write(said)
                self._show.flush()
        return grown

    def text(self, file: IO[bytes]) -> str:
        """All of it."""
        return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode("utf-8", "replace")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process that still runs, and its group: as with Ctrl-C at first, so that it ends its guests."""
    for number in (signal.SIGINT, signal.SIGKILL):
        if process.poll() is not None and number != signal.SIGKILL:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_S)
