"""The known-bug ledger: bugs of QEMU that scenarios find, as data in ``images/known-bugs.toml``.

An entry names the scenarios, the versions and machine types, and a pattern. A failure is that of the known
bug only if all of them match. A listed bug that does not appear is also a failure, because it may be fixed.

Stable branches get fixes that newer releases lack, so an entry has two lists of ranges: versions that are
affected, and versions that are not. For any other version the bug's status is unknown, and a run records
whether the bug appeared.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum
from functools import cache
from pathlib import Path, PurePath

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import Version
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from harness.errors import UsageError
from harness.guarantees import GUARANTEES
from harness.provision.recipes import read, recipes_folder
from harness.qemu.machine_types import known_machine_types

_NAME = "known-bugs.toml"
#: In the context of pydantic's validation: a bug may break a guarantee that is none of the project's.
_ANY_GUARANTEE = "any_guarantee"
_TEST = re.compile(r"[^:]+\.py(::\w+)+(\[.+\])?")


class Status(StrEnum):
    """The status of a bug in a version. The words are those of CVE records."""

    AFFECTED = "affected"
    UNAFFECTED = "unaffected"
    UNKNOWN = "unknown"


#: How ``no_program`` begins for a bug of QEMUs that are not provisioned.
NOT_PROVISIONED = "No QEMU that has it is provisioned."


class Bug(BaseModel):
    """One known bug of QEMU.

    :ivar id: a short name, such as ``R1``.
    :ivar guarantee: the guarantee that it breaks.
    :ivar affected: ranges of versions that have it, known from runs or from QEMU's source: PEP 440
        specifiers, such as ``>=6.1,<10.0.13``. A version is affected when it is in one of them.
    :ivar unaffected: ranges of versions that do not have it: it is fixed, or not introduced yet.
    :ivar seen_broken: versions on which a run showed it.
    :ivar seen_fixed: versions on which a run showed that it is absent.
    :ivar references: public references to it or its fix: commits of QEMU with their subjects, URLs, CVEs.
    :ivar scenarios: ``file.py::test``, or ``file.py::test[parameter]`` for one parameter of the test. Folders
        before the file, and classes before the test, are compared if they are there, so pytest's node id of
        a test is right as well.
    :ivar machines: the machine types that show it; all, if none is named.
    :ivar failure: a regular expression that the failure's first line matches.
    :ivar guest_kernel: a regular expression for what the guest's kernel then prints, if it does. It has to
        match each complaint but the call traces (see :mod:`~harness.checkers.guest_kernel_quiet`).
    :ivar evidence: one paragraph: what happens, and how it was observed.
    :ivar no_program: why ``images/programs/`` has no program that shows it; ``None`` when there is one.
    :ivar in_program: a regular expression (``.`` matches newlines too) for the JSON of a program whose
        failure the bug can explain. For bugs that fail as others do, such as by a signal alone.
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
    no_program: str | None = Field(default=None, min_length=1)
    in_program: str | None = Field(default=None, min_length=1)

    @field_validator("affected", "unaffected")
    @classmethod
    def _are_ranges(cls, ranges: list[str]) -> list[str]:
        try:
            versions = _boundaries(ranges)
            empty = [text for text in ranges if not text or not any(_is_in(text, v) for v in versions)]
        except InvalidSpecifier as exc:
            raise ValueError(str(exc)) from None
        if empty:
            raise ValueError(f"the range '{empty[0]}' contains no version")
        return ranges

    @field_validator("guarantee")
    @classmethod
    def _is_guarantee(cls, text: str, info: ValidationInfo) -> str:
        # Other repositories have guarantees of their own.
        if text not in GUARANTEES and not (info.context or {}).get(_ANY_GUARANTEE):
            raise ValueError(f"no such guarantee; there are: {'; '.join(GUARANTEES)}")
        return text

    @field_validator("scenarios")
    @classmethod
    def _are_tests(cls, scenarios: list[str]) -> list[str]:
        bad = [text for text in scenarios if not _TEST.fullmatch(text)]
        if bad:
            raise ValueError(f"write FILE.py::TEST or FILE.py::TEST[PARAMETER], not {bad[0]!r}")
        return scenarios

    @field_validator("failure", "guest_kernel", "in_program")
    @classmethod
    def _is_pattern(cls, text: str | None) -> str | None:
        try:
            matches_nothing = text is not None and re.search(text, "") is not None
        except re.error as exc:
            raise ValueError(f"not a regular expression: {exc}") from None
        if matches_nothing:
            raise ValueError(f"{text!r} matches every text, also an empty one: it would hide other failures")
        return text

    _are_machines = field_validator("machines")(known_machine_types)

    @model_validator(mode="after")
    def _is_consistent(self) -> Bug:
        # Of two ranges that overlap, one begins in the other: at a version in its specifier, or just above.
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
        return any(_is_in(text, version) for text in ranges)

    def status(self, version: str) -> Status:
        """Whether QEMU ``version`` has this bug, by the ledger."""
        if self._in(self.affected, version):
            return Status.AFFECTED
        return Status.UNAFFECTED if self._in(self.unaffected, version) else Status.UNKNOWN

    def concerns(self, scenario: str, parameters: Iterable[str], machine: str) -> bool:
        """Whether a scenario shows this bug on an affected QEMU (for the arguments see :func:`is_named`)."""
        parameters = tuple(parameters)
        named = any(is_named(text, scenario, parameters) for text in self.scenarios)
        return named and (not self.machines or machine in self.machines)

    def explains(self, failure: str) -> bool:
        """Whether ``failure`` (a message) is the failure of this bug of the ledger."""
        return re.search(self.failure, failure.partition("\n")[0]) is not None

    def explains_in_program(self, failure: str, program: str) -> bool:
        """Whether ``failure`` of a program (its JSON) is the failure of this bug.

        A bug that no program can show explains none, unless only a QEMU that has it is missing.
        """
        if self.no_program is not None and not self.no_program.startswith(NOT_PROVISIONED):
            return False
        can = self.in_program is None or re.search(self.in_program, program, re.DOTALL) is not None
        return can and self.explains(failure)

    def explains_guest_kernel(self, complaint: str) -> bool:
        """Whether ``complaint``, a message of the guest's kernel, is a consequence of this bug."""
        return self.guest_kernel is not None and re.search(self.guest_kernel, complaint) is not None


def is_named(text: str, scenario: str, parameters: Iterable[str]) -> bool:
    """Whether ``text``, one of an entry's ``scenarios``, names a test.

    :param scenario: ``file.py::test``, with all its folders and classes.
    :param parameters: what may be in the brackets after it.
    """
    file, test, parameter = _parts(text)
    its_file, its_test, _ = _parts(scenario)
    same = its_file[-len(file) :] == file and its_test[-len(test) :] == test
    return same and (not parameter or parameter in parameters)


@cache
def _parts(text: str) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """The path, the classes and the test, and the parameter, of a test that the ledger names."""
    path, _, rest = text.partition("::")
    test, _, parameter = rest.partition("[")
    # The id of a test outside of pytest's root folder begins with "..".
    parts = tuple(part for part in PurePath(path).parts if part != "..")
    return parts, tuple(test.split("::")), parameter.removesuffix("]")


def _boundaries(ranges: Iterable[str]) -> list[str]:
    """The versions at which the ledger's ranges begin or end, one just above each, and one below all."""
    named = {part.version for text in ranges for part in _specifiers(text)}
    versions = [version.removesuffix(".*") for version in sorted(named)]
    return ["0", *versions, *(f"{version}.0.0.1" for version in versions)]


# The entries name few ranges and versions, and each process that has guests compares them thousands of times.
_specifiers = cache(SpecifierSet)
_version = cache(Version)


def _is_in(text: str, version: str) -> bool:
    return _specifiers(text).contains(_version(version))


class Ledger(BaseModel):
    """Every known bug."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    bug: list[Bug] = []

    @field_validator("bug")
    @classmethod
    def _have_different_ids(cls, bugs: list[Bug]) -> list[Bug]:
        ids = [bug.id for bug in bugs]
        twice = sorted({id_ for id_ in ids if ids.count(id_) > 1})
        if twice:
            raise ValueError(f"there are two entries with the id {twice[0]}")
        return bugs

    def expected(self, scenario: str, parameters: Iterable[str], version: str, machine: str) -> list[Bug]:
        """The bugs that a scenario shows, or may show, on a QEMU version and machine type.

        For the first arguments see :func:`is_named`. Bugs of unknown status come last. On an old QEMU one
        scenario can show several bugs.
        """
        parameters = tuple(parameters)
        found = [bug for bug in self.bug if bug.concerns(scenario, parameters, machine)]
        possible = [bug for bug in found if bug.status(version) is not Status.UNAFFECTED]
        return sorted(possible, key=lambda bug: bug.status(version) is Status.UNKNOWN)


@cache
def load(path: Path | None = None) -> Ledger:
    """Read the ledger in ``path``, by default the project's.

    :raises UsageError: with file and line, when it cannot be read.
    """
    return read(path or recipes_folder() / _NAME, Ledger)


def load_all(more: Iterable[Path]) -> Ledger:
    """The project's own ledger with the entries of ``more``, which may have guarantees of their own.

    :raises UsageError: with the file, when one cannot be read, or has an id that another has.
    """
    bugs = list(load().bug)
    for path in more:
        known = {bug.id for bug in bugs}
        added = read(path, Ledger, context={_ANY_GUARANTEE: True}).bug
        twice = sorted(known & {bug.id for bug in added})
        if twice:
            raise UsageError(f"{path}: the id {twice[0]} is another known bug's")
        bugs += added
    return Ledger.model_construct(bug=bugs)
