"""``harness replay``: runs a program, or the scenario of a failed test, many times in fresh guests."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from harness import reaper
from harness.artifacts import CELL, HISTORY, of_command
from harness.cli.common import axes, progress
from harness.cli.programs import Options, Subject, cores, load, of_program
from harness.cli.signals import ended_by_sigterm
from harness.deadline import Deadline
from harness.errors import HarnessError, UsageError
from harness.explore import exit_status, finding
from harness.explore import replay as replays
from harness.explore.replay import TIMES, Replay
from harness.explore.scenario import recorded, test_of
from harness.explore.scenario_attempts import PLACEHOLDER, ScenarioRuns
from harness.explore.workers import Workers
from harness.matrix import DEFAULT, Matrix, Selection
from harness.provision import Cache, Provisioner, default_cache_root

_REPORT_S = 2.0


@click.command(epilog="Example: harness replay images/programs/R2.json --qemu 7.2 --times 50")
@click.argument("path", metavar="PROGRAM|ARTEFACTS", type=click.Path(path_type=Path))
@axes
@click.option(
    "--times", type=click.IntRange(1), default=TIMES, show_default=True, help="The most attempts to make."
)
@click.option("-n", "workers", type=click.IntRange(1), help="Processes; by default one for each core.")
@click.option("--into", type=click.Path(path_type=Path), help="Where the records of failures are kept.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option(
    "--exit-for-bisect",
    is_flag=True,
    help="Exit as git bisect run expects: 0 good, 1 bad (at the first failure), 125 skip, 128 abort.",
)
@click.option(
    "--signature",
    default="",
    metavar="TEXT",
    help="With --exit-for-bisect: only this failure is bad; a commit that only fails otherwise is skipped.",
)
@click.pass_context
def replay(
    context: click.Context,
    path: Path,
    qemu: str,
    qemu_data: Path | None,
    machine: str,
    kernel: str,
    accel: str,
    times: int,
    workers: int | None,
    into: Path | None,
    as_json: bool,
    exit_for_bisect: bool,
    signature: str,
) -> None:
    """Run a program in fresh guests, and print how often it fails, and how.

    ARTEFACTS is the folder of a finding, or the folder that a failed test left: its scenario is run. It runs
    on its own cell; --qemu, --machine and --kernel replace parts of that. With many attempts it stops as soon
    as the answer is clear. Errors of the host are counted apart.

    Exits with 0 when it always passes, and with 1 when it fails at least once.
    """
    if signature and not exit_for_bisect:
        raise UsageError("--signature can only be used with --exit-for-bisect")
    cell = Options.of(context, qemu, machine, kernel, accel, qemu_data)
    if not exit_for_bisect:
        found = _replayed(path, cell, times, workers, into, replays.is_clear)
    else:
        try:
            enough = partial(exit_status.is_enough, signature=signature)
            found = _replayed(path, cell, times, workers, into, enough)
        except HarnessError as exc:
            print(f"harness: {exc.message}", file=sys.stderr)
            sys.exit(exit_status.of_error(exc, qemu))
    print(json.dumps(_as_data(found), indent=2) if as_json else "\n".join(found.lines()))
    sys.exit(exit_status.of_replay(found, signature) if exit_for_bisect else 1 if found.failures else 0)


def _replayed(
    path: Path,
    cell: Options,
    times: int,
    workers: int | None,
    into: Path | None,
    enough: Callable[[Replay], bool],
) -> Replay:
    reaper.sweep()
    with of_command("replay") if into is None else nullcontext(into) as records:
        subject = _subject(path, cell, records.absolute())
        progress(f"{subject.name}: up to {times} attempts")
        with ended_by_sigterm(), Workers(subject.setup, workers or cores()) as attempts:
            found = replays.replay(subject.program, attempts, times, enough=enough, report=_Progress(times))
        replays.keep_shortest(found)
        if found.failures:
            progress(f"artefacts: {records}")
        elif into is None and not found.errors:
            shutil.rmtree(records)  # Only of attempts that were ended because the answer was clear.
        return found


def _subject(path: Path, options: Options, records: Path) -> Subject:
    """What the user of ``harness replay`` named: a program, a finding, or the folder of a test.

    :raises UsageError: when it is neither a program, nor a finding, nor the folder of a failed test.
    """
    if path.is_dir() and (path / HISTORY).exists() and not (path / finding.PROGRAM).exists():
        return _scenario(path, options, records)
    return of_program(load(path), options, records)


def _scenario(folder: Path, options: Options, records: Path) -> Subject:
    """``harness replay`` of a failed test: its scenario, on the cell that it was run on."""
    provisioner = Provisioner(Cache(default_cache_root()), report=progress)
    chosen = recorded(test_of(folder), provisioner.qemu_names(), provisioner.guest_names())
    chosen = replace(
        chosen,
        machine=options.machine or chosen.machine,
        kernel=chosen.kernel if options.kernel == DEFAULT else options.kernel,
    )
    qemu = options.qemu if options.qemu != DEFAULT else _recorded_qemu(folder, provisioner)
    Matrix(Selection((qemu,), (chosen.machine,), (chosen.kernel,), options.accel), report=progress).prepare()
    file = Path(chosen.test.partition("::")[0])
    name = f"{file.name}{str(chosen).removeprefix(str(file))} on QEMU {qemu}, {chosen.machine}"
    return Subject(name, PLACEHOLDER, ScenarioRuns(chosen, qemu, records))


def _recorded_qemu(folder: Path, provisioner: Provisioner) -> str:
    """The QEMU of a test's record, for ``harness replay``: its name, or the binary's path without one.

    :raises UsageError: when the record does not say.
    """
    try:
        seen: Any = json.loads((folder / CELL).read_text())["qemu"]
        name, path = str(seen["name"]), str(seen["binary"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"{folder}: its {CELL} names no QEMU; give --qemu") from None
    return name if provisioner.is_provisioned(name) else path


class _Progress:
    """Prints how far it is, from time to time."""

    def __init__(self, times: int) -> None:
        self._times, self._next = times, Deadline.after(_REPORT_S)

    def __call__(self, found: Replay) -> None:
        if self._next.expired:
            self._next = Deadline.after(_REPORT_S)
            progress(f"{len(found.attempts)} of up to {self._times} attempts: failed {found.reliability}")


def _as_data(found: Replay) -> dict[str, Any]:
    low, high = found.reliability.interval
    return {
        "attempts": len(found.attempts),
        "failures": found.reliability.failures,
        "interval": [round(low, 4), round(high, 4)],
        "deterministic": found.is_deterministic,
        "signatures": {signature: len(attempts) for signature, attempts in found.failures.items()},
        "errors": len(found.errors),
    }
