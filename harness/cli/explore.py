"""``harness explore``: searches for failures that no scenario looks for."""

from __future__ import annotations

import contextlib
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import click
from rich.markup import escape
from rich.table import Table

from harness import reaper
from harness.cli.common import axes, new_folder, progress
from harness.cli.programs import cores
from harness.cli.recording import begin, record_option, recording
from harness.errors import UsageError
from harness.explore import run as one
from harness.explore.explore import FINDINGS, Explorer, KnownBugs, Settings, read_settings
from harness.explore.fresh_guests import FreshGuests, cell_of
from harness.explore.generate import Space
from harness.explore.known import bug_of, programs_of_bugs
from harness.explore.program import AlphabetName, ProgramCell
from harness.explore.qtest_repro import with_text
from harness.explore.workers import Workers
from harness.report import tables
from harness.report.nights.recorder import EXPLORE, Recorder
from harness.testbed import Cell

_RECORDS = "attempts"
_SECONDS = 300.0


@click.command(epilog="Example: harness explore --qemu 11.1 --seconds 600 --alphabet raw")
@axes
@click.option("--seconds", type=click.FloatRange(0), help=f"How long to search; {_SECONDS:g} by default.")
@click.option("--programs", "most", type=click.IntRange(1), help="Stop after this number of programs.")
@click.option(
    "--steps",
    type=click.IntRange(1, 5),
    default=3,
    show_default=True,
    help="Every program of up to this number of steps is run, then random ones.",
)
@click.option(
    "--longest",
    type=click.IntRange(1, 200),
    default=15,
    show_default=True,
    help="The most steps of a random program.",
)
@click.option(
    "--alphabet",
    "names",
    default="all",
    show_default=True,
    metavar="raw,guest,all",
    help="Programs of the raw 9p client, of a Linux guest, or of both.",
)
@click.option("--seed", type=int, default=1, show_default=True, help="The same seed gives the same programs.")
@click.option(
    "-n",
    "workers",
    type=click.IntRange(1),
    help="Processes; by default two for each core, as each waits half of its time.",
)
@click.option("--into", type=click.Path(path_type=Path), help="The folder of the results; a new one.")
@click.option("--resume", type=click.Path(path_type=Path), help="Go on with the search of this folder.")
@click.option(
    "--known-bugs",
    type=click.Choice([mode.value for mode in KnownBugs]),
    default=KnownBugs.AVOID.value,
    show_default=True,
    help="avoid: count failures that the ledger explains, and steer around them; only: look for these; "
    "ignore: treat them like others.",
)
@click.option(
    "--minimise-seconds",
    "minimise_s",
    type=click.FloatRange(0),
    default=90.0,
    show_default=True,
    help="How long to make the program of each finding smaller; 0: not at all.",
)
@record_option
def explore(
    qemu: str,
    qemu_data: Path | None,
    machine: str,
    kernel: str,
    accel: str,
    seconds: float | None,
    most: int | None,
    steps: int,
    longest: int,
    names: str,
    seed: int,
    workers: int | None,
    into: Path | None,
    resume: Path | None,
    known_bugs: str,
    minimise_s: float,
    record: Path | None,
) -> None:
    """Make programs, run them in fresh guests, and keep each new failure with its smallest program.

    Each finding has a folder below DIR/findings, with README.txt. Ctrl-C ends the search and keeps
    everything. With --resume the options that say what is searched are those of the search that is resumed.

    Exits with 0 when nothing new was found, with 1 when there are findings, and with 3 when no program had a
    result.
    """
    if resume is not None and into is not None:
        raise UsageError("--resume goes on in its own folder: leave out --into")
    history = recording(record)
    settings = Settings(seed, steps, longest, known_bugs, _alphabets(names), qemu, machine, kernel)
    if resume is not None:
        settings = read_settings(resume)
    folder = resume or into or new_folder(Path("artifacts") / "explore")
    reaper.sweep()
    names_of_cell = ProgramCell(qemu=settings.qemu, machine=settings.machine, kernel=settings.kernel)
    spaces = _spaces(settings, names_of_cell, explicit=names != "all" or resume is not None)
    progress("preparing the cell …")
    cell = cell_of(names_of_cell, accel=accel, qemu_data=qemu_data)
    begin(history, EXPLORE, [cell])
    settings = replace(settings, alphabets=tuple(spaces))
    records = folder / _RECORDS
    setup = FreshGuests(records, accel, qemu_data)
    with Workers(setup, workers or 2 * cores()) as attempts:
        explorer = Explorer(
            spaces,
            settings,
            attempts,
            folder,
            bug_of=bug_of(cell),
            qemu=cell.capabilities.version_text,
            minimise_s=minimise_s,
            finish=lambda found: with_text(found, cell),
            report=progress,
        )
        _begin(explorer, cell, resumed=resume is not None)
        try:
            limit_s = seconds if seconds is not None else float("inf") if most else _SECONDS
            explorer.run(limit_s, most)
        except KeyboardInterrupt:
            progress(f"interrupted; harness explore --resume {folder} goes on")
            raise
        finally:
            _show(explorer)
            history.write(lambda recorder: _record(recorder, explorer))
            shutil.rmtree(records, ignore_errors=True)
    status = 1 if explorer.new else 0
    history.write(lambda recorder: recorder.end(status))
    sys.exit(status)


def _record(recorder: Recorder, explorer: Explorer) -> None:
    """``harness explore --record``: every finding, and how far each alphabet was explored."""
    for seen in explorer.new:
        found = seen.finding
        recorder.find(
            "known bug" if found.bug else "finding",
            found.signature,
            str(found.reliability) if found.reliability.attempts else "not measured",
            detail=f"{found.bug} {found.program}".strip(),
            artefacts=str(seen.folder or ""),
        )
    for name in explorer.tallies:
        recorder.find("coverage", name, str(explorer.coverage.counts(name)))
        recorder.cover(name, explorer.coverage.pairs(name))


def _alphabets(names: str) -> tuple[str, ...]:
    known = [name.value for name in AlphabetName]
    if names == "all":
        return tuple(known)
    chosen = tuple(dict.fromkeys(names.split(",")))
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise UsageError(
            f"--alphabet {names}: unknown: {unknown[0] or '(nothing)'}; known: {', '.join(known)}, all"
        )
    return chosen


def _spaces(settings: Settings, names: ProgramCell, *, explicit: bool) -> dict[AlphabetName, Space]:
    """``harness explore``: the programs of each alphabet that this machine type can run.

    :raises UsageError: when it cannot run one that the user has named, or none at all.
    """
    found, why = {}, UsageError("no alphabet can be run")
    for name in map(AlphabetName, settings.alphabets):
        try:
            one.check_machine_type(name, names.machine)
            space = Space(name, one.alphabet(name), names)
        except UsageError as exc:
            if explicit:
                raise
            why = exc
            continue
        found[name] = space
    if not found:
        raise why
    return found


def _begin(explorer: Explorer, cell: Cell, *, resumed: bool) -> None:
    explorer.resume() if resumed else explorer.begin()
    for line in explorer.plan():
        progress(line)
    if explorer.settings.known_bugs == KnownBugs.AVOID:
        avoided = [bug for bug, program in programs_of_bugs(cell) if explorer.avoid(program)]
        if avoided:
            progress(f"steering around the programs of {', '.join(avoided)}")
    progress(f"results: {explorer.into}")


def _show(explorer: Explorer) -> None:
    """Print the result of ``harness explore``."""
    with contextlib.suppress(BrokenPipeError):
        for name, tally in explorer.tallies.items():
            print(
                f"{name}: {tally.programs} programs, {tally.a_minute:.0f} a minute; "
                f"{explorer.coverage.counts(name)}"
            )
            never = [f"{do} {n}" for do, (_, n) in explorer.coverage.by_step(name).items() if n]
            if never:
                print(f"  states in which a step was possible and never made: {', '.join(never)}")
        print(explorer.in_short())
        for error, times in explorer.errors.most_common(3):
            print(f"  {times} times no result: {error}")
        if explorer.new:
            tables.show(_table(explorer))
            print(f"each in a folder below {explorer.into / FINDINGS}")


def _table(explorer: Explorer) -> Table:
    table = Table("finding", "failure", "program", "reliability", "seen", "known bug")
    for seen in explorer.new:
        found = seen.finding
        failure = f"{found.failure.checker}: {found.failure.message}"
        reliability = str(found.reliability) if found.reliability.attempts else "not measured"
        table.add_row(
            found.name,
            escape(failure),
            escape(str(found.program)),
            reliability,
            f"{seen.times} times",
            found.bug,
        )
    return table
