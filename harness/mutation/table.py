"""Which scenario catches which fault, and how long each takes: measured, kept in ``images/detection.json``.

A scenario is written as pytest collects it, ``file.py::test[parameters]``, the machine type among the
parameters. What was measured of a fault is kept by file of scenarios (``test_leak.py``) or by test
(``test_leak.py::test_heavy_use``), with a hash of the file: a table can be made in parts, and a part that was
changed since is measured again. Scenarios that passed are not listed: they are those of the fault-free run
that belong to what was measured, and did not fail.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from harness.errors import SetupError, UsageError
from harness.provision.recipes import recipes_folder

#: Scenarios (``file.py::test[parameters]``), by what they take in seconds.
Seconds = dict[str, float]
T = TypeVar("T")
_DOCUMENTED = ast.Module | ast.FunctionDef | ast.ClassDef


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Measured(_Data):
    """What the scenarios say of one fault.

    :ivar key: what was done to the source (:attr:`harness.mutation.catalogue.Fault.key`).
    :ivar of: what was measured, by the hash of its file at that time.
    :ivar failed: the scenarios that failed, and after how many seconds.
    """

    key: str
    of: dict[str, str] = {}
    failed: Seconds = {}


class OnQemu(_Data):
    """What was measured on one QEMU that is built from source.

    :ivar of: what was run without a fault, as in :class:`Measured`.
    :ivar scenarios: what passed then, or was a known bug.
    :ivar alarms: what failed then, and why: such a scenario says nothing of a fault.
    :ivar at_once: how many scenarios ran at the same time, on average, in the fault-free run.
    """

    of: dict[str, str] = {}
    scenarios: Seconds = {}
    alarms: dict[str, str] = {}
    at_once: float = 1.0
    faults: dict[str, Measured] = {}

    def catches(self, fault: str) -> set[str]:
        """The scenarios that find a fault; none when nothing is known of it."""
        measured = self.faults.get(fault)
        return set(measured.failed) - set(self.alarms) if measured else set()

    def has_all(self, scenarios: Iterable[str], fault: str) -> bool:
        """Whether each of these was measured with the fault, but for what is skipped on that QEMU."""
        of = self.faults[fault].of if fault in self.faults else {}
        ran = {*self.scenarios, *self.alarms}
        skipped = [name for name in scenarios if is_of(name, self.of) and name not in ran]
        return all(is_of(name, of) for name in scenarios if name not in skipped)


class Detection(_Data):
    """The table.

    :ivar qemus: by a QEMU's name, such as ``7.2-src``.
    """

    qemus: dict[str, OnQemu] = {}

    def on(self, qemu: str) -> OnQemu:
        """What is known of that QEMU; entered when nothing is."""
        return self.qemus.setdefault(qemu, OnQemu())


def default_path() -> Path:
    """The table that goes with the marks."""
    return recipes_folder() / "detection.json"


def read(path: Path, *, missing_is_empty: bool = False) -> Detection:
    """:raises UsageError: when there is none, or it is no such table."""
    try:
        return Detection.model_validate_json(path.read_text())
    except FileNotFoundError as exc:
        if missing_is_empty:
            return Detection()
        raise UsageError(f"{path}: there is no table; 'harness faults run --per-test' makes one") from exc
    except OSError as exc:
        raise UsageError(f"{path}: cannot be read: {exc.strerror}") from exc
    except (ValidationError, UnicodeDecodeError) as exc:
        raise UsageError(f"{path}: no table of 'harness faults run --per-test': {_first(exc)}") from exc


def _first(exc: ValidationError | UnicodeDecodeError) -> str:
    if isinstance(exc, UnicodeDecodeError):
        return str(exc)
    error = exc.errors()[0]
    return f"{'.'.join(map(str, error['loc'])) or 'it'}: {error['msg']}"


def write(table: Detection, path: Path) -> None:
    """Write it, sorted and a line for each entry, so that versions of it can be compared.

    The file is replaced as a whole.

    :raises SetupError: when it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text(table))
        partial.replace(path)
    except OSError as exc:
        raise SetupError(f"cannot write {path}: {exc.strerror}") from exc


def text(table: Detection) -> str:
    """What :func:`write` writes."""
    return json.dumps(table.model_dump(), indent=1, sort_keys=True) + "\n"


def covers(measured: Mapping[str, str], unit: str, now: str) -> bool:
    """Whether a file or a test is among what was measured, in the state of its file whose hash is ``now``."""
    return now in (measured.get(unit), measured.get(unit.partition("::")[0]))


def is_of(scenario: str, units: Collection[str]) -> bool:
    """Whether a scenario belongs to one of these files and tests."""
    return scenario.partition("[")[0] in units or scenario.partition("::")[0] in units


def replace(kept: Mapping[str, T], units: Collection[str], found: Mapping[str, T]) -> dict[str, T]:
    """Put ``found`` in the place of whatever was known of these files and tests."""
    return {name: value for name, value in kept.items() if not is_of(name, units)} | dict(found)


def fingerprint(source: str) -> str:
    """A hash of a file of scenarios: of what it does, not of its comments, nor of its marks.

    Marks are what is computed from the table, which would not be valid for a single run if they counted.
    Decorators hold them, and the parameters, which show in the scenarios' names; ``by_default`` as well.
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            node.decorator_list = []
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "by_default":
            node.args = []
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:12]


def fingerprints(files: Iterable[Path]) -> dict[str, str]:
    """The hash of each file, by its name."""
    return {path.name: fingerprint(path.read_text()) for path in files}
