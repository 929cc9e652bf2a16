"""The command ``harness``. Bad input gives one line on stderr and exit status 2."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

import click

from harness.errors import HarnessError, SetupError, UsageError

#: Exit statuses: 2 is also click's own for a usage error, 130 a shell's for Ctrl-C.
_STATUS = ((UsageError, 2), (SetupError, 3), (HarnessError, 1))
_INTERRUPTED = 130


#: Each is a module of this package with a command of the same name.
COMMANDS = (
    "doctor",
    "provision",
    "shell",
    "check",
    "timeline",
    "bench",
    "endurance",
    "faults",
    "merge",
    "compare",
    "nights",
    "coverage",
    "explore",
    "replay",
    "minimise",
    "bisect",
)


class _Commands(click.Group):
    """Imports the module of a command when it is used: all of them take most of a second."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*COMMANDS, *super().list_commands(ctx)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in COMMANDS and cmd_name not in self.commands:
            self.add_command(getattr(import_module(f"harness.cli.{cmd_name}"), cmd_name))
        return super().get_command(ctx, cmd_name)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Test hotplug and migration of virtio-9p-pci devices in real QEMU guests.

    The scenarios themselves run under pytest: pytest scenarios --help
    """


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
