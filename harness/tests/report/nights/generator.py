"""Makes histories of many nights with a known story, through the store that real runs use.

A history has one QEMU name, several machine types, and tests with noisy times, measurements and known bugs.
What is planted: a regression, a fix of a known bug, a flaky test, a drift, a step, and tests that are skipped
or gone. Each night is one run at 02:00.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from harness.report.nights import rows
from harness.report.nights.store import Store
from harness.report.summary import Outcome

FIRST = datetime(2026, 9, 30, 2, 0, tzinfo=UTC)
QEMU = "/srv/qemu/build/qemu-system-x86_64"
GUARANTEES = ("no leak", "blocked while mounted", "migrates when unmounted", "no crash in vmstate change")
SIGNATURE = "qemu_alive | QEMU 'source' was killed by SIGSEGV | v9fs_device_unrealize_common"
CAUSE = "QemuDied: QEMU 'source' was killed by SIGSEGV (last QMP command: device_del)"
FLAKY_CAUSE = "WaitTimeout: waited 60.0 s for DEVICE_DELETED of share0"


@dataclass(frozen=True)
class Plan:
    """A story. A night of ``None`` leaves its part out; nights count from 0.

    :ivar tests: tests of each night, over all machine types.
    :ivar noise: the standard deviation of the logarithm of times.
    :ivar busy: the probability that all of a night's times are one and a half times as long.
    :ivar regression: from this night on, three tests of one guarantee crash QEMU.
    :ivar fix: from this night on, the known bug R4 is gone.
    :ivar flaky: the probability that one test fails in a night, and each time that it is run again.
    :ivar flaky_from: in no night before this one.
    :ivar drift: from this night on, one test's ``start`` grows by 2 % a night.
    :ivar step: from this night on, all tests of one machine type take 1.4 times as long.
    :ivar leak: from this night on, one leak hunt loses a thread in every second cycle.
    :ivar skips: from this night on, the tests of one guarantee are skipped.
    :ivar gone: from this night on, one test does not exist.
    :ivar killed: the last run is killed while a test is running.
    :ivar confirm: how often a failed test is run again.
    """

    tests: int = 24
    machines: tuple[str, ...] = ("pc", "q35")
    noise: float = 0.08
    busy: float = 0.03
    regression: int | None = None
    fix: int | None = None
    flaky: float = 0.0
    flaky_from: int = 0
    drift: int | None = None
    step: int | None = None
    leak: int | None = None
    skips: int | None = None
    gone: int | None = None
    killed: bool = False
    confirm: int = 3

    def has_begun(self, part: int | None, night: int) -> bool:
        """Whether a part of the story has begun."""
        return part is not None and night >= part


@dataclass(frozen=True)
class Names:
    """The tests of the story, by the ids that do not name a cell."""

    crashing: tuple[str, ...]
    known: str
    flaky: str
    drifting: str
    leaking: str
    gone: str


#: The first tests of a night have a part in the story; the others never change.
NAMES = Names(
    crashing=tuple(f"scenarios/test_crash.py::test_crash_{number}" for number in range(3)),
    known="scenarios/test_migration.py::test_known",
    flaky="scenarios/test_blocker.py::test_flaky",
    drifting="scenarios/test_lifecycle.py::test_drifting",
    leaking="scenarios/test_leak.py::test_leaking",
    gone="scenarios/test_blocker.py::test_gone",
)


def write(path: Path, plan: Plan | None = None, *, nights: int = 60, seed: int = 1) -> None:
    """Write a history of so many nights into the file ``path``."""
    story, rng = plan or Plan(), random.Random(seed)
    tests = _tests(story, rng)
    with Store(path) as store, store.transaction():
        for night in range(nights):
            _Night(story, night, rng, last=night == nights - 1).write(store, tests)


@dataclass(frozen=True)
class _Test:
    test: str
    machine: str
    guarantee: str
    seconds: float
    start: float


def _tests(plan: Plan, rng: random.Random) -> list[_Test]:
    special = [
        *((test, GUARANTEES[3]) for test in NAMES.crashing),
        (NAMES.known, GUARANTEES[2]),
        (NAMES.flaky, GUARANTEES[1]),
        (NAMES.drifting, GUARANTEES[2]),
        (NAMES.leaking, GUARANTEES[0]),
        (NAMES.gone, GUARANTEES[1]),
    ]
    number = plan.tests - len(special)
    plain = [
        (f"scenarios/test_plain.py::test_{index}", GUARANTEES[index % len(GUARANTEES)])
        for index in range(number)
    ]
    return [
        _Test(
            test,
            plan.machines[index % len(plan.machines)],
            guarantee,
            rng.uniform(1, 12),
            rng.uniform(0.1, 0.3),
        )
        for index, (test, guarantee) in enumerate([*special, *plain])
    ]


class _Night:
    """One run of a story."""

    def __init__(self, plan: Plan, night: int, rng: random.Random, *, last: bool) -> None:
        self._plan, self._night, self._rng, self._last = plan, night, rng, last
        self._begun = FIRST + timedelta(days=night)
        self._slow = 1.5 if rng.random() < plan.busy else 1.0

    def _has(self, part: int | None) -> bool:
        return self._plan.has_begun(part, self._night)

    def write(self, store: Store, tests: list[_Test]) -> None:
        listed = [one for one in tests if one.test != NAMES.gone or not self._has(self._plan.gone)]
        run = store.begin_run(self._run(len(listed)))
        qemu = store.add_qemu(replace(self._qemu(), run_id=run))
        cells = {
            machine: store.add_cell(
                rows.Cell(
                    run_id=run,
                    qemu_id=qemu,
                    arch="x86_64",
                    kernel="default",
                    kernel_version="6.1.0-56-amd64",
                    machine_type=machine,
                    accelerator="tcg",
                )
            )
            for machine in self._plan.machines
        }
        killed = self._last and self._plan.killed
        for number, test in enumerate(listed):
            if killed and number == len(listed) // 2:
                nodeid, begun = f"{test.test}[x]", self._begun.isoformat()
                store.begin_test(rows.Running(run_id=run, worker="gw0", nodeid=nodeid, begun=begun))
                return
            self._add(store, run, cells[test.machine], test)
        ended = (self._begun + timedelta(minutes=20)).isoformat()
        store.end_run(run, ended=ended, exit_code=0, load=1.0)

    def _run(self, tests: int) -> rows.Run:
        return rows.Run(
            uuid=f"night-{self._night}",
            kind="scenarios",
            begun=self._begun.isoformat(),
            host="ci-1",
            cores=2,
            load_begin=0.5 * self._slow,
            harness_version="0.1.0",
            harness_commit="c0ffee" + "0" * 34,
            options=("--thorough", "--qemu", QEMU),
            expected=tests,
        )

    def _qemu(self) -> rows.Qemu:
        """A build of a tree: each part of the story begins with another commit."""
        parts = (self._plan.regression, self._plan.fix, self._plan.step, self._plan.leak)
        commits = sorted({part for part in parts if part is not None and part <= self._night})
        commit = commits[-1] if commits else 0
        return rows.Qemu(
            name=QEMU,
            version="10.0.50",
            build_id=f"{commit:02x}" * 20,
            git_describe=f"v10.0.0-{100 + commit}-g{commit:010x}",
            path=QEMU,
        )

    def _add(self, store: Store, run: int, cell: int, test: _Test) -> None:
        outcome, cause, signature, bug = self._outcome(test)
        failed = outcome is Outcome.FAILED
        result = rows.Result(
            run_id=run,
            cell_id=cell,
            nodeid=f"{test.test}[{QEMU}-default-{test.machine}]",
            test=f"{test.test}[{test.machine}]",
            guarantees=(test.guarantee,),
            outcome=outcome.value,
            signature=signature,
            cause=cause,
            bug=bug,
            begun=self._begun.isoformat(),
            seconds=0.0 if outcome is Outcome.SKIPPED else self._seconds(test),
            worker="gw0",
            artefacts=f"/nowhere/{self._night}/{test.test.partition('::')[2]}" if failed else None,
            load=self._rng.uniform(0.5, 2.0),
        )
        again = tuple(self._again(test, result)) if failed else ()
        store.add_result(result, self._measured(test) if outcome is not Outcome.SKIPPED else (), again)

    def _outcome(self, test: _Test) -> tuple[Outcome, str | None, str | None, str | None]:
        if test.guarantee == GUARANTEES[1] and self._has(self._plan.skips):
            return Outcome.SKIPPED, "source has no savevm", None, None
        if test.test in NAMES.crashing and self._has(self._plan.regression):
            return Outcome.FAILED, CAUSE, SIGNATURE, None
        if test.test == NAMES.known:
            if self._has(self._plan.fix):
                return Outcome.FIXED, "R4 is gone", None, "R4"
            return Outcome.KNOWN, "AssertionError: the mount hangs", "mount | the mount hangs", "R4"
        if test.test == NAMES.flaky and self._fails():
            return Outcome.FAILED, FLAKY_CAUSE, "wait | waited N s for DEVICE_DELETED", None
        return Outcome.PASSED, None, None, None

    def _fails(self) -> bool:
        return self._night >= self._plan.flaky_from and self._rng.random() < self._plan.flaky

    def _again(self, test: _Test, result: rows.Result) -> Iterator[rows.Confirmation]:
        for number in range(1, self._plan.confirm + 1):
            failed = test.test != NAMES.flaky or self._fails()
            yield rows.Confirmation(
                number=number,
                outcome=(Outcome.FAILED if failed else Outcome.PASSED).value,
                signature=result.signature if failed else None,
                seconds=self._seconds(test),
            )

    def _seconds(self, test: _Test) -> float:
        step = 1.4 if self._has(self._plan.step) and test.machine == self._plan.machines[0] else 1.0
        return test.seconds * step * self._slow * self._noise()

    def _noise(self) -> float:
        return self._rng.lognormvariate(0, self._plan.noise)

    def _measured(self, test: _Test) -> Iterator[rows.Measurement]:
        drift = 1.0
        if test.test == NAMES.drifting and self._has(self._plan.drift):
            drift += 0.02 * (self._night - (self._plan.drift or 0))
        yield rows.Measurement(name="start", unit="s", value=test.start * drift * self._slow * self._noise())
        if test.guarantee == GUARANTEES[2]:
            yield rows.Measurement(name="migration", unit="s", value=0.3 * self._slow * self._noise())
        if test.guarantee == GUARANTEES[0]:
            leaks = test.test == NAMES.leaking and self._has(self._plan.leak)
            slope = 0.5 if leaks else self._rng.choice((0.0, 0.0, 0.0, 0.01))
            yield rows.Measurement(name="leak.threads", unit="1/cycle", value=slope)
