"""What the commands share: progress lines, new folders, and the options that choose a cell of the matrix."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click

from harness.matrix import ACCELS, DEFAULT
from harness.qemu.architectures import ARCHITECTURES
from harness.qemu.machine_types import MACHINE_TYPES, chosen, of_architectures

F = TypeVar("F", bound=Callable[..., Any])


def progress(line: str) -> None:
    """Print one line of progress to stderr. stdout has only the result."""
    print(f"harness: {line}", file=sys.stderr, flush=True)


def _of_architecture(context: click.Context, _: click.Parameter, name: str | None) -> None:
    """The option ``--arch`` of commands: its first machine type is the default of ``--machine``."""
    if name is not None:
        machine = of_architectures(name)[0]
        context.default_map = {**(context.default_map or {}), "machine": machine}
        context.meta[_ARCH] = name


def _machine(context: click.Context, _: click.Parameter, name: str) -> str:
    """The option ``--machine`` of commands. :raises UsageError: when it is of another ``--arch``."""
    chosen([context.meta[_ARCH]] if _ARCH in context.meta else [], [name])
    return name


#: Where ``--arch`` is kept until ``--machine`` is known.
_ARCH = f"{__name__}.arch"


def axes(command: F) -> F:
    """The options that choose one cell of the matrix, for a command."""
    for option in (
        click.option("--accel", default="auto", metavar="|".join(ACCELS), help="Accelerator."),
        click.option("--kernel", default=DEFAULT, metavar="NAME", help="A provisioned guest kernel."),
        click.option(
            "--machine",
            default="pc",
            metavar="|".join(MACHINE_TYPES),
            callback=_machine,
            help="Machine type.",
        ),
        click.option(
            "--arch",
            metavar="|".join(ARCHITECTURES),
            is_eager=True,
            expose_value=False,
            callback=_of_architecture,
            help="The guest's architecture: selects its first machine type.",
        ),
        click.option(
            "--qemu-data",
            type=Path,
            metavar="DIR",
            help="The folder of QEMU's firmware, if it is not beside the binary.",
        ),
        click.option(
            "--qemu",
            default=DEFAULT,
            metavar="NAME|PATH",
            help="A provisioned QEMU, or the path of a binary.",
        ),
    ):
        command = option(command)
    return command


def new_folder(parent: Path) -> Path:
    """The path of a folder for a command below ``parent`` that no other run has; it is not made."""
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return parent / f"{stamp}-{os.getpid()}"
