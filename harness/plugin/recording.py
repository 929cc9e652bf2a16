"""``--record FILE``: the run, and each result when its test ends, go into a history of runs.

Only the process that the user started writes. Workers add what they know to their reports, as ``outcomes``
does. Nothing that happens to the file after the start of the run changes the outcome of a test: what could
not be written is said at the end.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from harness.checkers import Record, Verdict
from harness.errors import UsageError
from harness.explore.attempt import Failure
from harness.explore.failures import DIED, death
from harness.matrix import architecture_of
from harness.plugin.fixtures import FOLDER
from harness.plugin.judging import JUDGEMENTS
from harness.plugin.marks import guarantee_of
from harness.plugin.options import is_worker, option, without
from harness.plugin.outcomes import ABOUT, COLLECTOR, FACTS, first_line
from harness.plugin.provisioning import CELLS, MATRIX
from harness.plugin.sharding import wanted
from harness.report.nights.circumstances import about, at, load, now
from harness.report.nights.measurements import measurements
from harness.report.nights.recorder import SCENARIOS, Lenient, Recorder
from harness.report.summary import About
from harness.testbed import Cell

_OPTION = "record"
_RECORDING = pytest.StashKey["_Recording"]()
_WORKER_KEY = "harness_expected"
_AXES = ("kernel_name", "machine_name")
#: The phases of a test of which more follow; another report, such as that of a worker that died, is the last.
_NOT_LAST = ("setup", "call")
#: The name of the one process that runs tests without pytest-xdist.
MAIN = "main"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """``--record``: add to the report what the history keeps of a test.

    This wraps ``reporting``, which removes the folder of a test that passed, and ``outcomes``.
    """
    artifacts = item.stash.get(FOLDER, None)
    facts: dict[str, Any] = {}
    if call.when == "setup":
        facts["begun"] = at(call.start)
    if call.when == "teardown":
        facts |= {"load": load(), "worker": _worker(item.config), "kernel_name": _kernel(item)}
        if artifacts is not None and _is_kept(item.config):
            found = measurements(artifacts.folder)
            facts["measurements"] = {name: measured.model_dump() for name, measured in found.items()}
    report = yield
    if report.failed:
        facts["signature"] = _signature(item, report)
    if call.when == "teardown" and artifacts is not None and artifacts.folder.exists():
        facts["artifacts"] = str(artifacts.folder)
    getattr(report, FACTS, {}).update(facts)
    return report


def _is_kept(config: pytest.Config) -> bool:
    return bool(option(config, _OPTION) or option(config, "summary"))


def _worker(config: pytest.Config) -> str:
    return str(getattr(config, "workerinput", {}).get("workerid", MAIN))


def _kernel(item: pytest.Item) -> str:
    callspec = getattr(item, "callspec", None)
    kernel, machine = (callspec.params.get(axis) if callspec else None for axis in _AXES)
    if not isinstance(kernel, str) or not isinstance(machine, str):
        return ""
    return item.config.stash[MATRIX].image(kernel, architecture_of(machine)).name


def _signature(item: pytest.Item, report: pytest.TestReport) -> str:
    """``--record``: the signature of a failed test, in the form that explorations and bisections have."""
    guarantee, artifacts = guarantee_of(item) or "", item.stash.get(FOLDER, None)
    for found in item.stash.get(JUDGEMENTS, []):
        if artifacts is not None and (found.checker, found.verdict) == (DIED, Verdict.INVALID):
            try:
                return death(Record.load(artifacts.folder), found, None, guarantee).signature
            except UsageError:
                break
    return Failure(guarantee, first_line(report)).signature


def pytest_configure(config: pytest.Config) -> None:
    """``--record``: open the history, before anything runs.

    :raises pytest.UsageError: when it cannot be one.
    """
    given = option(config, _OPTION)
    if not given or is_worker(config) or config.getoption("collectonly"):
        return
    try:
        recorder = Recorder(Path(config.invocation_params.dir, given))
    except UsageError as exc:
        raise pytest.UsageError(f"--{_OPTION} {exc.message}") from None
    config.stash[_RECORDING] = _Recording(config, recorder)
    config.pluginmanager.register(config.stash[_RECORDING])


@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """``--record``: the circumstances of the run, once it is known what it is on."""
    config = session.config
    if not is_worker(config) and _is_kept(config):
        cells: list[Cell] = config.stash.get(CELLS, [])
        config.stash[ABOUT] = about(_options(config), cells)
        if _RECORDING in config.stash:
            config.stash[_RECORDING].begin(config.stash[ABOUT])


def _options(config: pytest.Config) -> list[str]:
    named = {f"--{_OPTION}", f"--harness-{_OPTION}"}
    args = without(list(map(str, config.invocation_params.args)), named)
    return [arg for arg in args if arg.partition("=")[0] not in named]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """``--record``: the rest of the circumstances; from a worker the number of tests.

    A worker has collected.
    """
    config = session.config
    if hasattr(config, "workeroutput"):
        config.workeroutput[_WORKER_KEY] = _expected(session)
    if ABOUT in config.stash:
        update = {"ended": now(), "exit_code": int(session.exitstatus), "load_end": load()}
        config.stash[ABOUT] = config.stash[ABOUT].model_copy(update=update)


def _expected(session: pytest.Session) -> int:
    return sum(guarantee_of(item) is not None for item in getattr(session, "items", ()))


def pytest_unconfigure(config: pytest.Config) -> None:
    """``--record``: close the history."""
    recording = config.stash.get(_RECORDING, None)
    if recording is not None:
        recording.close()


class _Recording:
    """Writes this run; registered in the process that the user started."""

    def __init__(self, config: pytest.Config, recorder: Recorder) -> None:
        self._config, self._recorder, self._history = config, recorder, Lenient(recorder)
        #: The worker of each running test. pytest-xdist does not say which worker begins one, so they are
        #: numbered: at most as many run as there are workers.
        self._running: dict[str, str] = {}

    def close(self) -> None:
        self._recorder.close()

    def begin(self, circumstances: About) -> None:
        part = wanted(self._config)
        shard = f"{part[0]}/{part[1]}" if part else None
        self._history.write(lambda recorder: recorder.begin(SCENARIOS, circumstances, shard=shard))

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """``--record``: so many tests were selected."""
        self._history.write(lambda recorder: recorder.expect(_expected(session)))

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        """``--record``: so many tests were selected at most.

        Tests that have no guest are among them.
        """
        self._history.write(lambda recorder: recorder.expect(len(ids)))

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """``--record``: so many of the selected tests have a guest."""
        sent = getattr(node, "workeroutput", {}).get(_WORKER_KEY)
        if sent is not None:
            self._history.write(lambda recorder: recorder.expect(sent))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """``--record``: a test is running."""
        self._history.write(lambda recorder: recorder.begin_test(nodeid, self._slot(nodeid)))

    def _slot(self, nodeid: str) -> str:
        if not self._config.pluginmanager.hasplugin("dsession"):
            return MAIN
        taken = {slot for test, slot in self._running.items() if test != nodeid}
        self._running[nodeid] = next(
            slot for number in range(len(taken) + 1) if (slot := f"{number + 1}") not in taken
        )
        return self._running[nodeid]

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """``--record``: the result, after the last phase."""
        if report.when in _NOT_LAST:
            return
        self._running.pop(report.nodeid, None)
        result = self._config.stash[COLLECTOR].result(report.nodeid)
        if result is not None:
            self._history.write(lambda recorder: recorder.add(result))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None, object, object]:
        """``--record``: the run is complete.

        Its exit status is final, and failed tests were run again.
        """
        ended = yield
        self._history.write(self._confirm)
        self._history.write(lambda recorder: recorder.end(int(session.exitstatus)))
        return ended

    def _confirm(self, recorder: Recorder) -> None:
        for result in self._config.stash[COLLECTOR].results:
            recorder.confirm(result.test, result.again)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """``--record``: say where the run was recorded, or that it was not."""
        given = option(self._config, _OPTION)
        if self._history.failed:
            terminalreporter.write_line(
                f"--{_OPTION} {given}: the history lacks results of this run: {self._history.failed}",
                red=True,
                bold=True,
            )
        else:
            terminalreporter.write_line(f"history: {given}")
