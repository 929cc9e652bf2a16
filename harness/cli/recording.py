"""``--record FILE`` of the commands: what they find goes into a history of runs."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from click.core import ParameterSource

from harness.report.nights.circumstances import about
from harness.report.nights.recorder import Lenient, Recorder
from harness.testbed import Cell

_OPTION = "record"
record_option = click.option(
    f"--{_OPTION}",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Add this run to the history in this SQLite file (see harness nights).",
)


@contextmanager
def opened(path: Path | None) -> Iterator[Recorder | None]:
    """The history that a command's ``--record`` names; ``None`` without the option.

    :raises UsageError: when the file cannot be a history, before anything is done.
    """
    if path is None:
        yield None
        return
    with Recorder(path) as recorder:
        yield recorder


def recording(path: Path | None) -> Lenient:
    """A command's history, until it has ended. A write that fails is said at the end, and ends nothing.

    :raises UsageError: when the file cannot be a history, before anything is done.
    """
    context = click.get_current_context()
    lenient: Lenient = context.with_resource(_recording(path))
    return lenient


@contextmanager
def _recording(path: Path | None) -> Iterator[Lenient]:
    with opened(path) as recorder:
        lenient = Lenient(recorder)
        try:
            yield lenient
        finally:
            if lenient.failed:
                line = f"harness: --{_OPTION} {path}: the history lacks what this run found: {lenient.failed}"
                print(line, file=sys.stderr, flush=True)


def begin(history: Lenient, kind: str, cells: Iterable[Cell] = ()) -> None:
    """Record that a command begins. Until it calls :meth:`Recorder.end`, the run is incomplete."""
    history.write(lambda recorder: recorder.begin(kind, about(_given(click.get_current_context()), cells)))


def _given(context: click.Context) -> list[str]:
    """What the user of a command that records gave, as on the command line."""
    given = []
    for parameter in context.command.params:
        name = parameter.name or ""
        if name != _OPTION and context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            option = f"{parameter.opts[0]}=" if isinstance(parameter, click.Option) else ""
            values = context.params[name]
            given += [f"{option}{one}" for one in (values if isinstance(values, tuple) else (values,))]
    return given
