"""``harness minimise``: makes a failing program smaller."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click

from harness import reaper
from harness.cli.common import axes, progress
from harness.cli.programs import Options, cores, load, of_program
from harness.cli.signals import ended_by_sigterm
from harness.errors import SetupError, UsageError
from harness.explore import finding
from harness.explore import minimise as minimising
from harness.explore import program as programs
from harness.explore.finding import Finding
from harness.explore.fresh_guests import alphabets, cell_of
from harness.explore.minimise import Minimised
from harness.explore.program import Program
from harness.explore.qtest_repro import with_text
from harness.explore.replay import Attempts, replay
from harness.explore.workers import Workers

#: Attempts at a program in which it has to fail once.
_TRIES = 100


@click.command(epilog="Example: harness minimise program.json --seconds 120 --into smaller.json")
@click.argument("path", metavar="PROGRAM|FINDING", type=click.Path(path_type=Path))
@axes
@click.option(
    "--seconds", type=click.FloatRange(1), default=120.0, show_default=True, help="The time for it."
)
@click.option("-n", "workers", type=click.IntRange(1), help="Processes; by default one for each core.")
@click.option(
    "--signature",
    help="The failure to keep, as 'harness replay' prints it; by default the most frequent one.",
)
@click.option(
    "--into",
    type=click.Path(path_type=Path),
    help="The file for the smallest program so far; by default PROGRAM with .min.json at its end. A finding "
    "is changed in place.",
)
@click.pass_context
def minimise(
    context: click.Context,
    path: Path,
    qemu: str,
    qemu_data: Path | None,
    machine: str,
    kernel: str,
    accel: str,
    seconds: float,
    workers: int | None,
    signature: str | None,
    into: Path | None,
) -> None:
    """Find the smallest program that fails in the same way, and about as often.

    The smallest program so far is written as soon as it is found, and validated at the end. Other failures
    that are met are listed with their programs; they never take over.

    Exits with 0 when the result was validated, and with 1 when the program did not fail.
    """
    reaper.sweep()
    loaded = load(path)
    known = finding.read(path) if (path / finding.DATA).exists() else None
    target = into or (path / finding.PROGRAM if path.is_dir() else path.with_suffix(".min.json"))
    if target.resolve() == path.resolve():
        raise UsageError(f"--into {target}: this is the program itself; give another file")
    with tempfile.TemporaryDirectory(
        prefix="virtio-9p-harness-minimise-", ignore_cleanup_errors=True
    ) as folder:
        records = Path(folder)
        options = Options.of(context, qemu, machine, kernel, accel, qemu_data)
        subject = of_program(loaded, options, records)
        with ended_by_sigterm(), Workers(subject.setup, workers or cores()) as attempts:
            chosen = signature or (known.signature if known else _most_frequent(subject.program, attempts))
            found = minimising.minimise(
                subject.program,
                chosen,
                attempts,
                alphabets(),
                seconds,
                on_best=lambda best: _write(target, best),
                report=progress,
            )
        _finish(found, known, path, target)
    sys.exit(0 if found.reproduced else 1)


def _write(target: Path, program: Program) -> None:
    """``harness minimise``: replace the program's file at once.

    Whoever interrupts this has the program before or the one after.

    :raises SetupError: when it cannot be written.
    """
    partial = target.with_name(f".{target.name}.partial")
    try:
        partial.write_text(programs.text(program))
        partial.replace(target)
    except OSError as exc:
        raise SetupError(f"{target}: {exc.strerror}") from None


def _most_frequent(program: Program, attempts: Attempts) -> str:
    """The signature of the program's most frequent failure.

    :raises UsageError: when it does not fail.
    """
    found = replay(program, attempts, _TRIES, enough=lambda seen: seen.reliability.failures >= 3)
    if not found.failures:
        raise UsageError(f"the program does not fail: {found.reliability}")
    return next(iter(found.failures))


def _finish(found: Minimised, known: Finding | None, path: Path, target: Path) -> None:
    if found.reproduced:
        _write(target, found.program)
        if known is not None and target == path / finding.PROGRAM:
            finding.write(path, with_text(known.minimised(found), cell_of(found.program.cell)), found.example)
    print(f"{len(found.program.steps)} steps, failed {found.reliability}: {found.program}")
    print(f"signature: {found.signature}")
    end = "nothing smaller is left to try" if found.complete else "the time was up"
    print(f"{found.decisions} smaller programs, {found.attempts} attempts, {found.seconds:.0f} s; {end}")
    for signature, (program, _) in found.others.items():
        print(f"another failure was met: {signature}\n  by {program}")
    if found.reproduced:
        print(f"program: {target}")
