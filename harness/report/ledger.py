"""The known-bug ledger: faults of QEMU that a scenario finds, as data in ``images/known-bugs.toml``.

An entry excuses nothing but itself: it names the scenario, the versions and machine types, and a pattern
that the failure has to match. A listed bug that does not show up is a failure as well: it may be fixed.

Stable branches get fixes that newer releases lack, so an entry has lists of ranges: versions that are
affected, and versions that are not. About any other version the ledger knows nothing, and a run records what
it saw.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum
from functools import cache
from pathlib import Path

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from harness.guarantees import GUARANTEES
from harness.provision.recipes import read, recipes_folder
from harness.qemu.machine_types import MACHINE_TYPES

_NAME = "known-bugs.toml"


class Status(StrEnum):
    """What the ledger knows of a bug in a version; the words are those of CVE records."""

    AFFECTED = "affected"
    UNAFFECTED = "unaffected"
    UNKNOWN = "unknown"


class Bug(BaseModel):
    """One known fault of QEMU.

    :ivar id: a short name, such as ``R1``.
    :ivar guarantee: the guarantee that it breaks.
    :ivar affected: ranges of versions that have it, by what was seen or by QEMU's source: PEP 440 specifiers,
        such as ``>=6.1,<10.0.13``. A version is affected when it is in one of them.
    :ivar unaffected: ranges of versions that do not have it: fixed there, or not there yet.
    :ivar seen_broken: versions on which it was seen.
    :ivar seen_fixed: versions on which it was seen to be absent.
    :ivar references: where it, or its fix, is public: commits of QEMU with their subjects, addresses, CVEs.
    :ivar scenarios: ``file.py::test``, or ``file.py::test[parameter]`` for one of a test's own parameters.
    :ivar machines: the machine types that show it; all, if none is named.
    :ivar failure: a regular expression that the failure's first line matches.
    :ivar guest_kernel: one for what the guest's kernel then complains of, where it does.
    :ivar evidence: one paragraph: what happens, and how it was seen.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    id: str = Field(min_length=1)
    guarantee: str = Field(min_length=1)
    title: str = Field(min_length=1)
    affected: list[str] = Field(min_length=1)
    unaffected: list[str] = []
    seen_broken: list[str] = Field(min_length=1)
    seen_fixed: list[str] = []
    references: list[str] = []
    scenarios: list[str] = Field(min_length=1)
    machines: list[str] = []
    failure: str = Field(min_length=1)
    guest_kernel: str | None = Field(default=None, min_length=1)
    evidence: str = Field(min_length=1)

    @field_validator("affected", "unaffected")
    @classmethod
    def _are_ranges(cls, ranges: list[str]) -> list[str]:
        try:
            versions = _boundaries(ranges)
            empty = [
                text for text in ranges if not text or not any(v in SpecifierSet(text) for v in versions)
            ]
        except InvalidSpecifier as exc:
            raise ValueError(str(exc)) from None
        if empty:
            raise ValueError(f"the range '{empty[0]}' holds no version")
        return ranges

    @field_validator("guarantee")
    @classmethod
    def _is_guarantee(cls, text: str) -> str:
        if text not in GUARANTEES:
            raise ValueError(f"no such guarantee; there are: {'; '.join(GUARANTEES)}")
        return text

    @field_validator("failure", "guest_kernel")
    @classmethod
    def _is_pattern(cls, text: str | None) -> str | None:
        try:
            re.compile(text or "")
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

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Bug:
        # Of two ranges that overlap, one begins in the other: at a version that it names, or just above.
        boundaries = _boundaries([*self.affected, *self.unaffected])
        both = [v for v in boundaries if self._in(self.affected, v) and self._in(self.unaffected, v)]
        if both:
            raise ValueError(f"{self.id}: 'affected' and 'unaffected' overlap at {both[0]}")
        for name, versions, status in (
            ("seen_broken", self.seen_broken, Status.AFFECTED),
            ("seen_fixed", self.seen_fixed, Status.UNAFFECTED),
        ):
            for version in versions:
                if self.status(version) is not status:
                    raise ValueError(f"{self.id}: {name} has {version}, which '{status}' does not contain")
        return self

    @staticmethod
    def _in(ranges: list[str], version: str) -> bool:
        return any(version in SpecifierSet(text) for text in ranges)

    def status(self, version: str) -> Status:
        """Whether QEMU ``version`` has this bug."""
        if self._in(self.affected, version):
            return Status.AFFECTED
        return Status.UNAFFECTED if self._in(self.unaffected, version) else Status.UNKNOWN

    def concerns(self, scenario: str, parameters: Iterable[str], machine: str) -> bool:
        """Whether a scenario (``file.py::test``) with those parameters meets this bug where QEMU has it."""
        named = {scenario, *(f"{scenario}[{parameter}]" for parameter in parameters)}
        return not named.isdisjoint(self.scenarios) and (not self.machines or machine in self.machines)

    def explains(self, failure: str) -> bool:
        """Whether ``failure`` (a message) is this bug's."""
        return re.search(self.failure, failure.partition("\n")[0]) is not None

    def explains_guest_kernel(self, complaint: str) -> bool:
        """Whether what the guest's kernel complains of is this bug's consequence."""
        return self.guest_kernel is not None and re.search(self.guest_kernel, complaint) is not None


def _boundaries(ranges: Iterable[str]) -> list[str]:
    """Versions at which these ranges may begin or end, and just above; and one below all."""
    named = {part.version for text in ranges for part in SpecifierSet(text)}
    versions = [version.removesuffix(".*") for version in sorted(named)]
    return ["0", *versions, *(f"{version}.0.0.1" for version in versions)]


class Ledger(BaseModel):
    """Every known bug."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    bug: list[Bug] = []

    @field_validator("bug")
    @classmethod
    def _have_ids_of_their_own(cls, bugs: list[Bug]) -> list[Bug]:
        ids = [bug.id for bug in bugs]
        twice = sorted({id_ for id_ in ids if ids.count(id_) > 1})
        if twice:
            raise ValueError(f"there are two entries with the id {twice[0]}")
        return bugs

    def expected(self, scenario: str, parameters: Iterable[str], version: str, machine: str) -> list[Bug]:
        """The bugs that this scenario meets there, or may meet: those of unknown status are the last.

        An old QEMU can have several that one scenario meets.
        """
        parameters = tuple(parameters)
        found = [bug for bug in self.bug if bug.concerns(scenario, parameters, machine)]
        met = [bug for bug in found if bug.status(version) is not Status.UNAFFECTED]
        return sorted(met, key=lambda bug: bug.status(version) is Status.UNKNOWN)


@cache
def load(path: Path | None = None) -> Ledger:
    """The ledger in ``path``, or the project's own.

    :raises UsageError: with file and line, when it cannot be read.
    """
    return read(path or recipes_folder() / _NAME, Ledger)
