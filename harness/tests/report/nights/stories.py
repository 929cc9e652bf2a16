"""Short histories of one test, night by night, without a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta

from harness.report.nights import rows
from harness.report.nights.history import Entry, History, Place
from harness.report.nights.runs import by_night
from harness.report.summary import Outcome
from harness.tests.report.nights.generator import FIRST

PLACE = Place("scenarios/test_a.py::test_a[pc]", "7.2", "x86_64", "default", "pc")
OUTCOMES = {
    "p": Outcome.PASSED,
    "F": Outcome.FAILED,
    "f": Outcome.FAILED,
    "k": Outcome.KNOWN,
    "x": Outcome.FIXED,
    "s": Outcome.SKIPPED,
}
#: What a night may have otherwise than the others.
Change = Callable[[Entry], Entry]


def night(outcome: str, number: int = 0, place: Place = PLACE) -> Entry:
    """A result of one night: p passed, F and f failed (in two ways), k known bug, x fixed, s skipped."""
    failed = outcome in "Ff"
    begun = (FIRST + timedelta(days=number)).isoformat()
    run = rows.Run(
        id=number + 1,
        uuid=f"night-{number}",
        kind="scenarios",
        begun=begun,
        ended=begun,
        host="ci-1",
        cores=2,
        harness_version="0.1.0",
        harness_commit="a" * 40,
        options=("--thorough",),
        expected=1,
    )
    result = rows.Result(
        id=number + 1,
        run_id=run.id,
        nodeid="scenarios/test_a.py::test_a[7.2-default-pc]",
        test=place.test,
        guarantees=("no leak",),
        outcome=OUTCOMES[outcome],
        signature=f"checker | {outcome}" if failed else None,
        cause=f"it broke: {outcome}" if failed else "no savevm" if outcome == "s" else None,
        bug="R4" if outcome in "kx" else None,
        begun=begun,
        seconds=1.0,
    )
    qemu = rows.Qemu(name=place.qemu, version="7.2.22", package_version="1:7.2+dfsg-7", build_id="b" * 40)
    cell = rows.Cell(
        arch=place.arch,
        kernel=place.kernel,
        kernel_version="6.1.0",
        machine_type=place.machine_type,
        accelerator="tcg",
    )
    return Entry(place, run, "", qemu, cell, result)


def with_new_qemu(entry: Entry) -> Entry:
    """The same on another build of QEMU."""
    assert entry.qemu is not None
    qemu = replace(entry.qemu, package_version="1:7.2+dfsg-8", build_id=entry.run.uuid)
    return replace(entry, qemu=qemu)


def again(entry: Entry, outcomes: str) -> Entry:
    """The same, run again with these outcomes."""
    confirmations = tuple(
        rows.Confirmation(number=number, outcome=OUTCOMES[outcome], seconds=1.0)
        for number, outcome in enumerate(outcomes, 1)
    )
    return replace(entry, confirmations=confirmations)


def story(outcomes: str, changed: dict[int, Change] | None = None, place: Place = PLACE) -> list[Entry]:
    """The results of one test. ``changed`` says which nights are otherwise, from then on."""
    entries = []
    for number, outcome in enumerate(outcomes):
        entry = night(outcome, number, place)
        for begin, change in (changed or {}).items():
            if number >= begin:
                entry = change(entry)
        entries.append(entry)
    return entries


def history(*stories: Sequence[Entry]) -> History:
    """The history of some tests."""
    runs = {entry.run.id: entry.run for entries in stories for entry in entries}
    ordered = tuple(sorted(runs.values(), key=lambda run: run.begun))
    nights = by_night(ordered)
    return History(
        ordered,
        {
            entries[0].place: [replace(entry, night=nights[entry.run.id]) for entry in entries]
            for entries in stories
        },
    )
