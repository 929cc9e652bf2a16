"""Faults, each put into a QEMU that is built from source: what the scenarios must find.

A fault is data (``images/faults/NAME.toml``): what it breaks, which scenarios find it, and the edits. An
edit is for one file. It is a rule of Coccinelle's semantic patch language (``man 1 spatch``), which fits
several releases, or a unified diff (``man 1 patch``). An edit is applied to the release's own source; one
that changes nothing is an error, so a fault cannot silently be none.
"""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from harness.errors import SetupError
from harness.guarantees import GUARANTEES
from harness.provision import recipes
from harness.provision.builds import Build
from harness.qemu.spec import MACHINE_TYPES

#: For Coccinelle's parser: macros that hide a declaration.
_MACROS = "macros.h"
_SPATCH = (
    "cat source/scripts/cocci-macro-file.h extra-macros.h > macros.h && "
    "spatch --very-quiet --macro-file macros.h --sp-file fault.cocci --in-place source/{}"
)


#: No backup files, which an undo would leave; and no question to the terminal.
_PATCH = "patch --batch --forward --no-backup-if-mismatch source/{} fault.diff"


def _specifier(text: str) -> str:
    """:raises ValueError: for what is no PEP 440 specifier."""
    try:
        SpecifierSet(text)
    except InvalidSpecifier as exc:
        raise ValueError(str(exc)) from None
    return text


class Edit(BaseModel):
    """What is done to one file of QEMU.

    :ivar file: its path in QEMU's source.
    :ivar patch: one rule of a semantic patch. :ivar diff: or a unified diff; its file names are not read.
    :ivar qemu: the versions that the edit is for (PEP 440 specifiers); all, when empty.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    file: str = Field(min_length=1)
    patch: str = ""
    diff: str = ""
    qemu: str = ""

    _is_specifier = field_validator("qemu")(_specifier)

    @model_validator(mode="after")
    def _is_one_of_both(self) -> Self:
        if bool(self.patch) == bool(self.diff):
            raise ValueError("an edit has a patch (semantic) or a diff (unified)")
        return self

    def applies_to(self, version: str) -> bool:
        """Whether the edit is for QEMU ``version``."""
        return SpecifierSet(self.qemu).contains(version)


class Fault(BaseModel):
    """One fault.

    :ivar guarantee: the guarantee that it breaks.
    :ivar title: what is wrong, in one line.
    :ivar sample: it is the one of its guarantee to try when there is no time for all.
    :ivar stands_for: the commit or CVE of the real world that it is like.
    :ivar takes_back: the fixes of QEMU's history that the edits undo (commit and subject, CVE, issue). A
        fault that has some is a real one.
    :ivar qemu: the versions that it can be put into (PEP 440 specifiers); all, when empty.
    :ivar machines: the machine types to look on.
    :ivar caught_by: the scenarios that have to find it, as ``file.py::test`` or ``file.py::test[parameter]``.
    :ivar edit: what is done to the source, in this order.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    guarantee: str
    title: str = Field(min_length=1)
    sample: bool = False
    stands_for: str = ""
    takes_back: list[str] = []
    qemu: str = ""
    machines: list[str] = Field(default=["pc"], min_length=1)
    caught_by: list[str] = Field(min_length=1)
    edit: list[Edit] = Field(min_length=1)

    @field_validator("guarantee")
    @classmethod
    def _is_guarantee(cls, text: str) -> str:
        if text not in GUARANTEES:
            raise ValueError(f"no such guarantee; there are: {'; '.join(GUARANTEES)}")
        return text

    _is_specifier = field_validator("qemu")(_specifier)

    @field_validator("machines")
    @classmethod
    def _are_machines(cls, machines: list[str]) -> list[str]:
        unknown = sorted(set(machines) - set(MACHINE_TYPES))
        if unknown:
            raise ValueError(f"unknown machine types: {', '.join(unknown)}")
        return machines

    def applies_to(self, version: str) -> bool:
        """Whether the fault can be put into QEMU ``version``."""
        return SpecifierSet(self.qemu).contains(version)

    @property
    def key(self) -> str:
        """A hash of what is done to the source."""
        content = "\0".join(f"{edit.file}\0{edit.patch or edit.diff + edit.qemu}" for edit in self.edit)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


class Catalogue:
    """The faults in a folder, by name."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or recipes.recipes_folder() / "faults"

    def names(self) -> list[str]:
        """Their names, in order."""
        return recipes.names(self._folder)

    def load(self, name: str) -> Fault:
        """:raises UsageError: with file and line, when it is unknown or says what no fault says."""
        return recipes.load(self._folder, name, Fault)

    def macros(self) -> str:
        """What Coccinelle's parser has to know beside QEMU's own macro file."""
        return (self._folder / _MACROS).read_text()


def build(tree: Build, name: str, fault: Fault, macros: str, into: Path) -> None:
    """Build QEMU with ``fault`` into the folder ``into``, and leave the tree as it was.

    Edits that are for other versions than the tree's are left out.

    :raises SetupError: when an edit does not apply, or what it makes does not compile.
    """
    with tree.tree() as source, ExitStack() as undo:
        version = (source / "VERSION").read_text().strip()
        edits = [edit for edit in fault.edit if edit.applies_to(version)]
        if not edits:
            raise SetupError(f"fault {name}: none of its edits is for QEMU {version}")
        for path in dict.fromkeys(source / edit.file for edit in edits):
            if not path.is_file():
                raise SetupError(f"fault {name}: QEMU {tree.name} has no {path.relative_to(source)}")
            undo.callback(path.write_bytes, path.read_bytes())
        (source.parent / "extra-macros.h").write_text(macros)
        for edit in edits:
            _apply(tree, name, edit, source)
        tree.compile(into)


def _apply(tree: Build, name: str, edit: Edit, source: Path) -> None:
    before = (source / edit.file).read_bytes()
    tool, file, command = (
        ("spatch", "fault.cocci", _SPATCH) if edit.patch else ("patch", "fault.diff", _PATCH)
    )
    (source.parent / file).write_text(edit.patch or edit.diff)
    try:
        said = tree.run(command.format(edit.file), what=tool)
    except SetupError as exc:
        raise SetupError(
            f"fault {name}: its edit of {edit.file} does not apply to QEMU {tree.name}: {exc.message}"
        ) from exc
    if (source / edit.file).read_bytes() == before:
        raise SetupError(
            f"fault {name}: its edit of {edit.file} no longer applies to QEMU {tree.name}",
            details=f"{edit.patch or edit.diff}\n{said}",
        )
