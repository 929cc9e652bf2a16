"""``harness shell``: opens a shell in a guest with a mounted share, or in one in the middle of a program."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NoReturn

import click

from harness import reaper
from harness.actions.hotplug import Hotplug
from harness.artifacts import Artifacts, of_command
from harness.checkers import Verdict, judge
from harness.cli.common import axes, progress
from harness.cli.programs import Options, cell_of, load
from harness.cli.signals import ended_by_sigterm
from harness.errors import UsageError
from harness.explore.program import Program
from harness.explore.run import perform_before, state_before
from harness.guest.guest import Guest
from harness.guest.ways_in import line, ways_in
from harness.matrix import Matrix, Selection
from harness.reaper import RunFolder
from harness.testbed import Cell, Testbed

_SCRIPT_TIMEOUT_S = 3600.0


@click.command(
    epilog="Examples: harness shell --machine q35 --share ~/src; harness shell --program FINDING --until 3"
)
@axes
@click.option(
    "--share",
    "folder",
    type=click.Path(path_type=Path),
    help="The folder to export; a temporary one by default.",
)
@click.option(
    "--program",
    "path",
    type=click.Path(path_type=Path),
    help="A program or a finding: its steps are made first, on its own cell, instead of a mount.",
)
@click.option(
    "--until",
    type=click.IntRange(0),
    metavar="STEP",
    help="With --program: the number of the first step that is not made (from 0); by default all are made.",
)
@click.pass_context
def shell(
    context: click.Context,
    qemu: str,
    qemu_data: Path | None,
    machine: str,
    kernel: str,
    accel: str,
    folder: Path | None,
    path: Path | None,
    until: int | None,
) -> None:
    """Boot a guest, plug and mount a share, and open an SSH session in the guest.

    With --program the guest makes the steps of a program instead, up to --until.
    Also prints how to reach the serial console, QMP and gdb. When stdin is not a terminal, it is run as a
    shell script in the guest, and this command exits with the status of the script. The guest ends with the
    command. A machine that the program has stopped is kept until Enter is pressed.
    """
    options = Options.of(context, qemu, machine, kernel, accel, qemu_data)
    if path is None and until is not None:
        raise UsageError("--until can only be used with --program")
    if path is not None and folder is not None:
        raise UsageError("--share cannot be used with --program: a program has shares of its own")
    reaper.sweep()
    if path is not None:
        cell, start = _of_program(load(path), until, options)
    else:
        cell, start = _plain_cell(folder, options), partial(_boot, folder=folder)
    _run(cell, start)


def _plain_cell(folder: Path | None, options: Options) -> Cell:
    if folder is not None and not folder.is_dir():
        raise UsageError(f"--share {folder}: {'not a folder' if folder.exists() else 'no such folder'}")
    axes = (options.qemu,), (options.machine or "pc",), (options.kernel,)
    matrix = Matrix(Selection(*axes, options.accel, qemu_data=options.qemu_data), report=progress)
    (cell,) = matrix.prepare()
    return cell


@dataclass(frozen=True)
class Opened:
    """A guest that is ready for its user.

    :ivar about: one line about it. :ivar at: the folder in which the shell begins.
    :ivar running: the machine runs, so that its guest answers.
    """

    guest: Guest
    about: str
    at: str
    running: bool = True


def _of_program(
    program: Program, until: int | None, options: Options
) -> tuple[Cell, Callable[[Testbed], Opened]]:
    """``harness shell --program``: the cell of a program, and what makes its steps in a testbed.

    :raises UsageError: when there is no guest to open a shell in; nothing is started then.
    """
    number = len(program.steps) if until is None else until
    state = state_before(program, number)
    if not state.running and not sys.stdin.isatty():
        raise UsageError(f"the machine is stopped before step {number}: its guest cannot run a script")
    cell = cell_of(
        program,
        qemu=options.qemu,
        machine=options.machine or program.cell.machine,
        kernel=options.kernel,
        accel=options.accel,
        qemu_data=options.qemu_data,
    )

    def start(testbed: Testbed) -> Opened:
        progress(f"making the steps before step {number} …")
        on = perform_before(program, testbed, number)
        then = "all steps were made"
        if number < len(program.steps):
            then = f"the next step is {number}, {program.steps[number]}"
        mounts = [mount.mountpoint for _, mount in sorted(on.mounts.items())]
        return Opened(on.guest, line("program", then), mounts[0] if mounts else "/", state.running)

    return cell, start


def _run(cell: Cell, start: Callable[[Testbed], Opened]) -> NoReturn:
    run = RunFolder()
    artifacts = Artifacts.create(run.path, "shell")
    testbed = Testbed(cell, run, artifacts)
    testbed.monitors = True
    try:
        with ended_by_sigterm():
            opened = start(testbed)
            guest = opened.guest
            print("\n".join([opened.about, *ways_in(guest.machine, guest)]), file=sys.stderr, flush=True)
            status = _session(opened)
    finally:
        testbed.close()
        _keep_if_not_valid(artifacts)
        run.close()
    sys.exit(status)


def _boot(testbed: Testbed, folder: Path | None) -> Opened:
    share = testbed.shares[0]
    if folder is not None:
        share = replace(share, path=folder.resolve())
        testbed.shares = (share, *testbed.shares[1:])
    progress("booting a guest …")
    guest = testbed.boot()
    Hotplug(guest).plug(share)
    mount = guest.mount(share)
    return Opened(guest, line("share", f"{share.path} is mounted at {mount.mountpoint}"), mount.mountpoint)


def _session(opened: Opened) -> int:
    guest = opened.guest
    if not opened.running:
        print("The machine is stopped: it runs after 'cont' over QMP. Enter ends it.", file=sys.stderr)
        sys.stdin.readline()
        return 0
    if sys.stdin.isatty():
        return guest.ssh.interact(f"cd {opened.at} && exec sh -i")
    script = f"cd {opened.at}\n".encode() + sys.stdin.buffer.read()
    done = guest.run("sh -s", stdin=script, timeout_s=_SCRIPT_TIMEOUT_S)
    sys.stdout.write(done.stdout)
    sys.stderr.write(done.stderr)
    return done.returncode


def _keep_if_not_valid(artifacts: Artifacts) -> None:
    """``harness shell``: copy the artefacts out of the run folder unless every checker finds them valid."""
    bad = [found for found in judge(artifacts.folder) if found.verdict is not Verdict.VALID]
    if bad:
        with of_command("shell") as kept:
            shutil.copytree(artifacts.folder, kept, dirs_exist_ok=True)
        print(f"harness: {bad[0].summary}; artefacts: {kept}", file=sys.stderr)
