"""The scenario that a user names, or that left a folder: what is bisected or repeated."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.artifacts import HISTORY
from harness.checkers import Record
from harness.errors import UsageError
from harness.history import as_mapping
from harness.layout import scenarios_folder
from harness.matrix import DEFAULT
from harness.qemu.machine_types import MACHINE_TYPES
from harness.report.summary import Result


@dataclass(frozen=True)
class Scenario:
    """A scenario, or another test that asks for a guest, on one machine type and kernel.

    :ivar test: pytest's name of the function: a path, ``::`` and the function.
    :ivar parameters: the test's own parameters, without QEMU, kernel and machine type.
    """

    test: str
    parameters: tuple[str, ...] = ()
    machine: str = "pc"
    kernel: str = DEFAULT
    accel: str = "auto"

    def __str__(self) -> str:
        named = "-".join(self.parameters)
        return f"{self.test}[{named}]" if named else self.test

    def arguments(self) -> list[str]:
        """pytest's arguments that select the scenario."""
        accel = [] if self.accel == "auto" else ["--accel", self.accel]
        chosen = ["-k", " and ".join(self.parameters)] if self.parameters else []
        return [self.test, *chosen, "--machine", self.machine, "--kernel", self.kernel, *accel, "--thorough"]

    def is_of(self, result: Result) -> bool:
        """Whether a result is this scenario's; ``-k`` also selects parameters that contain the wanted one."""
        inside = f"-{(result.scenario or result.test).partition('[')[2].rstrip(']')}-"
        return all(f"-{parameter}-" in inside for parameter in self.parameters)


def scenario(text: str, machine: str = "pc", kernel: str = DEFAULT, accel: str = "auto") -> Scenario:
    """The scenario that the user names: ``file.py::test`` or ``file.py::test[parameter]``.

    :param text: the file is below the current folder, or one of the project's scenarios.
    :raises UsageError: when it names no function, or there is no such file.
    """
    path, colons, test = text.partition("::")
    function, _, parameters = test.rstrip("]").partition("[")
    if not colons or not function:
        raise UsageError(f"{text}: give one scenario, as file.py::test or file.py::test[parameter]")
    candidates = (Path(path), scenarios_folder() / Path(path).name)
    found = next((file for file in candidates if file.is_file()), None)
    if found is None:
        raise UsageError(f"{text}: no such file, neither here nor in {scenarios_folder()}")
    chosen = tuple(parameters.split("-")) if parameters else ()
    return Scenario(f"{found.absolute()}::{function}", chosen, machine, kernel, accel)


def test_of(folder: Path) -> str:
    """The id of the test whose scenario is run again: of the one that left a folder.

    :raises UsageError: when the folder has no record, or its record names no test.
    """
    entry = Record.load(folder).last("host", "test")
    test = as_mapping(entry.value).get("id") if entry is not None else None
    if not isinstance(test, str):
        raise UsageError(f"{folder}: its {HISTORY} names no test")
    return test


def recorded(test: str, qemus: Sequence[str], kernels: Sequence[str]) -> Scenario:
    """The scenario of a test's id, on the machine type and kernel that it was run with.

    :param qemus: the names of provisioned QEMUs. :param kernels: of kernels.
    :raises UsageError: when its file is gone, or the id does not name a cell.
    """
    before, _, inside = test.rstrip("]").partition("[")
    names, images = (_any_of([DEFAULT, *known]) for known in (qemus, kernels))
    cell = re.search(
        rf"(^|-)((?:{names})(?:\+[\w-]+?)?|/.*?)-(?P<kernel>{images})(?:-(?P<machine>{_any_of(MACHINE_TYPES)}))?"
        r"(?=-|$)",
        inside,
    )
    if cell is None:
        raise UsageError(f"{test}: its id names no QEMU and kernel")
    rest = "-".join(part.strip("-") for part in (inside[: cell.start()], inside[cell.end() :]) if part)
    return scenario(f"{before}[{rest}]" if rest else before, cell["machine"] or "pc", cell["kernel"])


def _any_of(names: Iterable[str]) -> str:
    return "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
