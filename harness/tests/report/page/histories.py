"""A small history for the page: three nights on two QEMUs, with a failure whose folder exists."""

from __future__ import annotations

from pathlib import Path

from harness.report.nights import rows
from harness.report.nights.store import Store
from harness.tests.report.timeline import records

NIGHTS = ("2026-11-26", "2026-11-27", "2026-11-28")
LEAK, CRASH = "no leak", "no crash in vmstate change"
#: It would end the script that has the data, and run another one.
HOSTILE = "</script><script>window.hurt = 1</script><img src=x onerror='window.hurt = 1'> &amp; @data@"
FAILING = "scenarios/test_crash.py::test_stop[a/b c]"


def write(folder: Path, nights: tuple[str, ...] = NIGHTS) -> Path:
    """The history file, beside the folders of its failed tests; the last night is incomplete."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "nights.sqlite"
    with Store(path) as store:
        for number, night in enumerate(nights):
            last = night == nights[-1]
            run = store.begin_run(
                rows.Run(
                    uuid=f"run-{night}",
                    kind="scenarios",
                    begun=f"{night}T02:00:00+00:00",
                    host="ci",
                    cores=8,
                    load_begin=1.5,
                    harness_version="0.1.0",
                    harness_commit="abc",
                    options=("--thorough",),
                    expected=7,
                )
            )
            for qemu, machines in (("7.2", ("pc", "q35")), ("11.1", ("pc",))):
                of = store.add_qemu(
                    rows.Qemu(run_id=run, name=qemu, version=f"{qemu}.{number}", build_id="c0ffee")
                )
                for machine in machines:
                    cell = store.add_cell(
                        rows.Cell(
                            run_id=run,
                            qemu_id=of,
                            arch="x86_64",
                            kernel="6.1",
                            kernel_version="6.1.0-56",
                            machine_type=machine,
                            accelerator="tcg",
                        )
                    )
                    _results(store, folder, run, cell, night, f"{qemu}-{machine}", last=last)
            store.add_finding(
                rows.Finding(
                    run_id=run,
                    kind="fault",
                    name="tag-kept",
                    outcome="caught" if number else "missed",
                    detail=HOSTILE,
                )
            )
            if not last:
                store.end_run(run, ended=f"{night}T03:00:00+00:00", exit_code=0, load=2.0)
            else:
                store.begin_test(
                    rows.Running(run_id=run, worker="gw0", nodeid="test_x.py::test_y", begun=night)
                )
    return path


def explore(store: Store, name: str, *pairs: tuple[str, str, int]) -> None:
    """Add an exploration that has made these pairs of steps so often."""
    run = store.begin_run(
        rows.Run(
            uuid=name,
            kind="explore",
            begun=f"{NIGHTS[-1]}T04:00:00+00:00",
            host="ci",
            cores=8,
            harness_version="0.1.0",
        )
    )
    coverage = rows.Finding(run_id=run, kind="coverage", name="raw", outcome="2 states")
    store.add_finding(coverage)
    store.add_step_pairs(
        rows.StepPair(run_id=run, alphabet="raw", first=first, next=following, times=times)
        for first, following, times in pairs
    )
    store.end_run(run, ended=f"{NIGHTS[-1]}T05:00:00+00:00", exit_code=0)


#: Two explorations, and what both together have made.
EXPLORED = (
    (("", "plug", 2), ("plug", "unplug", 1200), ("plug", "stop", 0)),
    (("", "plug", 1), ("plug", "stop", 0), (HOSTILE, "plug", 5)),
)


def _results(store: Store, folder: Path, run: int, cell: int, night: str, where: str, *, last: bool) -> None:
    def result(test: str, guarantee: str, outcome: str, **more: str) -> rows.Result:
        made = rows.Result(
            run_id=run,
            cell_id=cell,
            nodeid=f"{test}[{where}]",
            test=test,
            guarantees=(guarantee,),
            outcome=outcome,
            begun=f"{night}T02:00:01+00:00",
            seconds=1.25,
        )
        return rows.Result(**{**{name: getattr(made, name) for name in made.columns()}, **more})

    start = rows.Measurement(name="start.restore", unit="s", value=0.1)
    store.add_result(result("scenarios/test_leak.py::test_cycle", LEAK, "passed"), [start])
    store.add_result(
        result("scenarios/test_leak.py::test_known", LEAK, "known bug", bug="R1", cause="it leaks")
    )
    if where == "7.2-pc":
        outcome = "new failure" if last else "passed"
        more = {"cause": HOSTILE, "signature": "qemu_alive | x", "artefacts": "tests/stop"} if last else {}
        if last:
            records.write(folder / "tests" / "stop")
            records.write(folder / "tests" / "again-3")
            (folder / "tests" / "stop" / "guest-kernel.log").write_text("[  1.0] <b>oops</b>\n")
            (folder / "tests" / "stop" / "a file & more.txt").write_text("x\n")
        again = [
            rows.Confirmation(number=1, outcome="new failure", seconds=1.0),
            rows.Confirmation(number=2, outcome="new failure", seconds=1.0, artefacts="tests/gone"),
            rows.Confirmation(number=3, outcome="passed", seconds=1.0, artefacts="tests/again-3"),
        ]
        store.add_result(result(FAILING, CRASH, outcome, **more), [], again if last else [])
    elif where == "7.2-q35":
        skipped = result("scenarios/test_crash.py::test_cpr", CRASH, "skipped", cause="no cpr-reboot")
        store.add_result(skipped)
