"""The command ``harness``. Bad input gives one line on stderr and exit status 2."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from harness.cli.bench import bench
from harness.cli.bisect import bisect
from harness.cli.check import check
from harness.cli.compare import compare
from harness.cli.coverage import coverage
from harness.cli.doctor import doctor
from harness.cli.endurance import endurance
from harness.cli.explore import explore
from harness.cli.faults import faults
from harness.cli.merge import merge
from harness.cli.minimise import minimise
from harness.cli.nights import nights
from harness.cli.provision import provision
from harness.cli.replay import replay
from harness.cli.shell import shell
from harness.cli.timeline import timeline
from harness.errors import HarnessError, SetupError, UsageError

#: Exit statuses: 2 is also click's own for a usage error, 130 a shell's for Ctrl-C.
_STATUS = ((UsageError, 2), (SetupError, 3), (HarnessError, 1))
_INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Test hotplug and migration of virtio-9p-pci devices in real QEMU guests.

    The scenarios themselves run under pytest: pytest scenarios --help
    """


COMMANDS = (
    doctor,
    provision,
    shell,
    check,
    timeline,
    bench,
    endurance,
    faults,
    merge,
    compare,
    nights,
    coverage,
    explore,
    replay,
    minimise,
    bisect,
)
for command in COMMANDS:
    cli.add_command(command)


def main(argv: Sequence[str] | None = None) -> None:
    """The entry point of the command ``harness``. Runs a command and exits with its status."""
    try:
        status = cli.main(args=argv, prog_name="harness", standalone_mode=False)
    except click.ClickException as exc:
        exc.show()
        sys.exit(exc.exit_code)
    except HarnessError as exc:
        print(f"harness: {exc}", file=sys.stderr)
        sys.exit(next(status for kind, status in _STATUS if isinstance(exc, kind)))
    except (KeyboardInterrupt, click.Abort):
        sys.exit(_INTERRUPTED)
    sys.exit(status or 0)
