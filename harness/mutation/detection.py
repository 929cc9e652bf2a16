"""The table of faults and scenarios in ``images/detection.json``: what catches what, and in how many seconds.

A scenario is written as pytest collects it, ``file.py::test[parameters]``, the machine type among the
parameters. A measurement covers *units*: files of scenarios (``test_leak.py``) or tests
(``test_leak.py::test_heavy_use``). Each unit is kept with a hash of its file, so that a table can be made in
parts, and a unit whose file has changed is measured again. For a fault, only the scenarios that failed are
listed. Those of the fault-free run that belong to a measured unit and are not listed passed.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from harness.errors import SetupError, UsageError
from harness.provision.recipes import recipes_folder

#: Seconds by scenario (``file.py::test[parameters]``).
Seconds = dict[str, float]
T = TypeVar("T")
_IGNORED_MARKS = ("thorough", "always", "parametrize")
_DOCUMENTED = ast.Module | ast.FunctionDef | ast.ClassDef


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Measured(_Data):
    """The measurement of one fault.

    :ivar key: a hash of the edits (:attr:`harness.mutation.catalogue.Fault.key`).
    :ivar of: the units that were measured, each with the hash of its file at that time.
    :ivar failed: the scenarios that failed, each with its seconds until then.
    """

    key: str
    of: dict[str, str] = {}
    failed: Seconds = {}


class OnQemu(_Data):
    """What was measured on one QEMU that is built from source.

    :ivar of: the units that were run without a fault, as in :class:`Measured`.
    :ivar scenarios: those that passed without a fault, or met a known bug.
    :ivar false_positives: those that failed without a fault, with the first line of the failure. Their
        failures do not count as catching a fault. (Older tables call this ``alarms``.)
    :ivar at_once: how many scenarios ran at the same time, on average, in the fault-free run.
    """

    of: dict[str, str] = {}
    scenarios: Seconds = {}
    false_positives: dict[str, str] = Field(
        default={}, validation_alias=AliasChoices("false_positives", "alarms")
    )
    at_once: float = 1.0
    faults: dict[str, Measured] = {}

    def catches(self, fault: str) -> set[str]:
        """The scenarios that catch a fault, by the table; none for a fault that was not measured."""
        measured = self.faults.get(fault)
        return set(measured.failed) - set(self.false_positives) if measured else set()

    def has_all(self, scenarios: Iterable[str], fault: str) -> bool:
        """Whether the table has each of these with the fault, or it is skipped on that QEMU."""
        of = self.faults[fault].of if fault in self.faults else {}
        ran = {*self.scenarios, *self.false_positives}
        skipped = [name for name in scenarios if is_of(name, self.of) and name not in ran]
        return all(is_of(name, of) for name in scenarios if name not in skipped)


class Detection(_Data):
    """The table.

    :ivar qemus: by a QEMU's name, such as ``7.2-src``.
    """

    qemus: dict[str, OnQemu] = {}

    def on(self, qemu: str) -> OnQemu:
        """The table's entry of that QEMU. An empty one is added where there is none."""
        return self.qemus.setdefault(qemu, OnQemu())


def default_path() -> Path:
    """The project's own table, from which the scenarios' marks were computed."""
    return recipes_folder() / "detection.json"


def read(path: Path, *, missing_is_empty: bool = False) -> Detection:
    """Read a table of detection.

    :param missing_is_empty: return an empty table where there is no file.
    :raises UsageError: when there is no file, or it is not a table.
    """
    try:
        return Detection.model_validate_json(path.read_text())
    except FileNotFoundError as exc:
        if missing_is_empty:
            return Detection()
        raise UsageError(f"{path}: no such file; 'harness faults run --per-test' writes one") from exc
    except OSError as exc:
        raise UsageError(f"{path}: cannot be read: {exc.strerror}") from exc
    except (ValidationError, UnicodeDecodeError) as exc:
        raise UsageError(f"{path}: not a table of 'harness faults run --per-test': {_first(exc)}") from exc


def _first(exc: ValidationError | UnicodeDecodeError) -> str:
    if isinstance(exc, UnicodeDecodeError):
        return str(exc)
    error = exc.errors()[0]
    return f"{'.'.join(map(str, error['loc'])) or 'it'}: {error['msg']}"


def write(table: Detection, path: Path) -> None:
    """Write a table of detection, sorted and one line an entry, so that ``diff`` shows what changed.

    The file is replaced atomically.

    :raises SetupError: when it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text(table))
        partial.replace(path)
    except OSError as exc:
        raise SetupError(f"cannot write {path}: {exc.strerror}") from exc


def text(table: Detection) -> str:
    """The text of a table that :func:`write` writes."""
    return json.dumps(table.model_dump(), indent=1, sort_keys=True) + "\n"


def covers(measured: Mapping[str, str], unit: str, now: str) -> bool:
    """Whether the table has a unit that was measured when its file had the hash ``now``.

    :param measured: the hashes by measured unit. A test is measured when its file was.
    """
    return now in (measured.get(unit), measured.get(unit.partition("::")[0]))


def is_of(scenario: str, units: Collection[str]) -> bool:
    """Whether a scenario of the table belongs to one of these units."""
    return scenario.partition("[")[0] in units or scenario.partition("::")[0] in units


def replace(kept: Mapping[str, T], units: Collection[str], found: Mapping[str, T]) -> dict[str, T]:
    """Replace in ``kept`` of the table every entry of these units by those in ``found``."""
    return {name: value for name, value in kept.items() if not is_of(name, units)} | dict(found)


def fingerprint(source: str) -> str:
    """A hash of a file of scenarios that ignores its comments, docstrings and some marks.

    ``thorough`` and ``always`` are computed from the table, so a change of them must not make the table out
    of date. They, the arguments of ``by_default`` and its import are ignored, and so is ``parametrize``:
    parameters are part of the scenarios' names. Other marks count: they choose machine types, for example.
    """
    tree = ast.parse(source)
    tree.body = [node for node in tree.body if not _imports_by_default(node)]
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            node.decorator_list = [one for one in node.decorator_list if not _is_ignored(one)]
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "by_default":
            node.args = []
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:12]


def _imports_by_default(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and [alias.name for alias in node.names] == ["by_default"]


def _is_ignored(decorator: ast.expr) -> bool:
    """Whether the hash of a file of scenarios ignores a decorator: ``pytest.mark.NAME``, or a call of it."""
    mark = decorator.func if isinstance(decorator, ast.Call) else decorator
    return isinstance(mark, ast.Attribute) and mark.attr in _IGNORED_MARKS


def fingerprints(files: Iterable[Path]) -> dict[str, str]:
    """The hash of each file of scenarios, by its name, as the table has it."""
    return {path.name: fingerprint(path.read_text()) for path in files}
