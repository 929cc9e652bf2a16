"""Faults, each put into a QEMU that is built from source: what the scenarios must find.

A fault is data (``images/faults/NAME.toml``): what it breaks, which scenarios find it, and the edits, each
one rule of Coccinelle's semantic patch language (``man 1 spatch``) for one file. An edit is applied to the
release's own source; one that changes nothing is an error, so a fault cannot silently be none.
"""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from pathlib import Path

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from pydantic import BaseModel, ConfigDict, Field, field_validator

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


class Edit(BaseModel):
    """One rule of a semantic patch, for one file of QEMU."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    file: str = Field(min_length=1)
    patch: str = Field(min_length=1)


class Fault(BaseModel):
    """One fault.

    :ivar guarantee: the guarantee that it breaks.
    :ivar title: what is wrong, in one line.
    :ivar sample: it is the one of its guarantee to try when there is no time for all.
    :ivar stands_for: the commit or CVE of the real world that it is like.
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

    @field_validator("qemu")
    @classmethod
    def _is_specifier(cls, text: str) -> str:
        try:
            SpecifierSet(text)
        except InvalidSpecifier as exc:
            raise ValueError(str(exc)) from None
        return text

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
        content = "\0".join(f"{edit.file}\0{edit.patch}" for edit in self.edit)
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

    :raises SetupError: when an edit does not apply, or what it makes does not compile.
    """
    with tree.tree() as source, ExitStack() as undo:
        for path in dict.fromkeys(source / edit.file for edit in fault.edit):
            if not path.is_file():
                raise SetupError(f"fault {name}: QEMU {tree.name} has no {path.relative_to(source)}")
            undo.callback(path.write_bytes, path.read_bytes())
        (source.parent / "extra-macros.h").write_text(macros)
        for edit in fault.edit:
            _apply(tree, name, edit, source)
        tree.compile(into)


def _apply(tree: Build, name: str, edit: Edit, source: Path) -> None:
    before = (source / edit.file).read_bytes()
    (source.parent / "fault.cocci").write_text(edit.patch)
    said = tree.run(_SPATCH.format(edit.file), what="spatch")
    if (source / edit.file).read_bytes() == before:
        raise SetupError(
            f"fault {name}: its edit of {edit.file} no longer applies to QEMU {tree.name}",
            details=f"{edit.patch}\n{said}",
        )
