"""The known-bug ledger: faults of QEMU that a scenario finds, as data in ``images/known-bugs.toml``.

An entry excuses nothing but itself: it names the scenario, the versions and machine types, and a pattern
that the failure has to match. A listed bug that does not show up is a failure as well: it may be fixed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from pydantic import BaseModel, ConfigDict, Field, field_validator

from harness.errors import UsageError
from harness.guarantees import GUARANTEES
from harness.provision.recipes import read, recipes_folder
from harness.qemu.spec import MACHINE_TYPES

_NAME = "known-bugs.toml"


class Bug(BaseModel):
    """One known fault of QEMU.

    :ivar id: a short name, such as ``R1``.
    :ivar guarantee: the guarantee that it breaks.
    :ivar qemu: the versions that have it, such as ``<10.0`` (PEP 440 specifiers).
    :ivar seen_broken: versions on which it was seen. :ivar seen_fixed: versions on which it was seen gone.
    :ivar scenarios: ``file.py::test``, or ``file.py::test[parameter]`` for one of a test's own parameters.
    :ivar machines: the machine types that show it; all, if none is named.
    :ivar failure: a regular expression that the failure's first line matches.
    :ivar evidence: one paragraph: what happens, and how it was seen.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    id: str = Field(min_length=1)
    guarantee: str = Field(min_length=1)
    title: str = Field(min_length=1)
    qemu: str
    seen_broken: list[str] = Field(min_length=1)
    seen_fixed: list[str] = []
    scenarios: list[str] = Field(min_length=1)
    machines: list[str] = []
    failure: str = Field(min_length=1)
    evidence: str = Field(min_length=1)

    @field_validator("qemu")
    @classmethod
    def _is_specifier(cls, text: str) -> str:
        try:
            SpecifierSet(text)
        except InvalidSpecifier as exc:
            raise ValueError(str(exc)) from None
        return text

    @field_validator("guarantee")
    @classmethod
    def _is_guarantee(cls, text: str) -> str:
        if text not in GUARANTEES:
            raise ValueError(f"no such guarantee; there are: {'; '.join(GUARANTEES)}")
        return text

    @field_validator("failure")
    @classmethod
    def _is_pattern(cls, text: str) -> str:
        try:
            re.compile(text)
        except re.error as exc:
            raise ValueError(f"not a regular expression: {exc}") from None
        return text

    @field_validator("machines")
    @classmethod
    def _are_machines(cls, machines: list[str]) -> list[str]:
        unknown = sorted(set(machines) - set(MACHINE_TYPES))
        if unknown:
            raise ValueError(f"unknown machine types: {', '.join(unknown)}")
        return machines

    def applies(self, scenario: str, parameters: Iterable[str], version: str, machine: str) -> bool:
        """Whether this bug is expected in a scenario (``file.py::test``) with those parameters."""
        named = {scenario, *(f"{scenario}[{parameter}]" for parameter in parameters)}
        return (
            not named.isdisjoint(self.scenarios)
            and version in SpecifierSet(self.qemu)
            and (not self.machines or machine in self.machines)
        )

    def explains(self, failure: str) -> bool:
        """Whether ``failure`` (a message) is this bug's."""
        return re.search(self.failure, failure.partition("\n")[0]) is not None


class Ledger(BaseModel):
    """Every known bug."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    bug: list[Bug] = []

    def expected(self, scenario: str, parameters: Iterable[str], version: str, machine: str) -> Bug | None:
        """The bug that this scenario is expected to find there.

        :raises UsageError: when there are two.
        """
        parameters = tuple(parameters)
        found = [bug for bug in self.bug if bug.applies(scenario, parameters, version, machine)]
        if len(found) > 1:
            ids = ", ".join(bug.id for bug in found)
            raise UsageError(
                f"{_NAME}: {ids} all claim {scenario} on {machine} of QEMU {version}; narrow them"
            )
        return found[0] if found else None


@cache
def load(path: Path | None = None) -> Ledger:
    """The ledger in ``path``, or the project's own.

    :raises UsageError: with file and line, when it cannot be read.
    """
    return read(path or recipes_folder() / _NAME, Ledger)
