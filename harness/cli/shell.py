"""``harness shell``: opens a shell in a guest with a mounted share."""

from __future__ import annotations

import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import click

from harness import reaper
from harness.actions.hotplug import Hotplug
from harness.artifacts import Artifacts
from harness.checkers import Verdict, judge
from harness.cli.report import axes, progress
from harness.cli.signals import ended_by_sigterm
from harness.errors import UsageError
from harness.guest.guest import Guest
from harness.guest.mount import Mount
from harness.guest.ways_in import line, ways_in
from harness.matrix import Matrix, Selection
from harness.reaper import RunFolder
from harness.testbed import Testbed

_SCRIPT_TIMEOUT_S = 3600.0


@click.command(epilog="Example: harness shell --machine q35 --share ~/src")
@axes
@click.option(
    "--share",
    "folder",
    type=click.Path(path_type=Path),
    help="The folder to export; a temporary one by default.",
)
def shell(
    qemu: str, qemu_data: Path | None, machine: str, kernel: str, accel: str, folder: Path | None
) -> None:
    """Boot a guest, plug and mount a share, and open an SSH session in the guest.

    Also prints how to reach the serial console, QMP and gdb. When stdin is not a terminal, it is run as a
    shell script in the guest, and this command exits with the status of the script. The guest ends with the
    command.
    """
    if folder is not None and not folder.is_dir():
        raise UsageError(f"--share {folder}: {'not a folder' if folder.exists() else 'no such folder'}")
    reaper.sweep()
    matrix = Matrix(Selection((qemu,), (machine,), (kernel,), accel, qemu_data=qemu_data), report=progress)
    (cell,) = matrix.prepare()
    run = RunFolder()
    artifacts = Artifacts.create(run.path, "shell")
    testbed = Testbed(cell, run, artifacts)
    try:
        with ended_by_sigterm():
            guest, mount = _boot(testbed, folder)
            _print_ways_in(guest, mount)
            status = _session(guest, mount)
    finally:
        testbed.close()
        _keep_if_not_valid(artifacts)
        run.close()
    sys.exit(status)


def _boot(testbed: Testbed, folder: Path | None) -> tuple[Guest, Mount]:
    share = testbed.shares[0]
    if folder is not None:
        share = replace(share, path=folder.resolve())
        testbed.shares = (share, *testbed.shares[1:])
    progress("booting a guest …")
    testbed.monitors = True
    guest = testbed.boot()
    Hotplug(guest).plug(share)
    return guest, guest.mount(share)


def _print_ways_in(guest: Guest, mount: Mount) -> None:
    share = line("share", f"{mount.share.path} is mounted at {mount.mountpoint}")
    print("\n".join([share, *ways_in(guest.machine, guest)]), file=sys.stderr, flush=True)


def _session(guest: Guest, mount: Mount) -> int:
    if sys.stdin.isatty():
        return guest.ssh.interact(f"cd {mount.mountpoint} && exec sh -i")
    script = f"cd {mount.mountpoint}\n".encode() + sys.stdin.buffer.read()
    done = guest.run("sh -s", stdin=script, timeout_s=_SCRIPT_TIMEOUT_S)
    sys.stdout.write(done.stdout)
    sys.stderr.write(done.stderr)
    return done.returncode


def _keep_if_not_valid(artifacts: Artifacts) -> None:
    """Copy the artefacts out of the run folder unless every checker finds them valid."""
    bad = [found for found in judge(artifacts.folder) if found.verdict is not Verdict.VALID]
    if bad:
        kept = Path(tempfile.mkdtemp(prefix="shell-"))
        shutil.copytree(artifacts.folder, kept, dirs_exist_ok=True)
        print(f"harness: {bad[0].summary}; artefacts: {kept}", file=sys.stderr)
