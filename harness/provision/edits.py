"""Edits of QEMU's source, and builds of the edited source.

An edit changes one file. It is a rule of Coccinelle's semantic patch language (``man 1 spatch``), which fits
several releases, or a unified diff (``man 1 patch``). It is applied to the release's own source. An edit that
changes nothing is an error.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Self

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from harness.errors import SetupError
from harness.provision.builds import Build

#: A file beside the faults: macros that hide a declaration from Coccinelle's parser.
MACROS = "macros.h"
_SPATCH = (
    "cat source/scripts/cocci-macro-file.h extra-macros.h > macros.h && "
    "spatch --very-quiet --macro-file macros.h --sp-file fault.cocci --in-place source/{}"
)
#: Writes no backup files, which an undo would leave, and asks no questions at the terminal.
_PATCH = "patch --batch --forward --no-backup-if-mismatch source/{} fault.diff"


def specifier(text: str) -> str:
    """Check that ``text``, the versions that an edit is for, is a PEP 440 specifier; returns it.

    :raises ValueError: when it is none.
    """
    try:
        SpecifierSet(text)
    except InvalidSpecifier as exc:
        raise ValueError(str(exc)) from None
    return text


class Edit(BaseModel):
    """An edit of one file of QEMU, by ``patch`` or by ``diff``.

    :ivar file: the file's path in QEMU's source.
    :ivar patch: one rule of a semantic patch. :ivar diff: a unified diff; its file names are ignored.
    :ivar qemu: the versions that the edit is for (PEP 440 specifiers); all versions when empty.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    file: str = Field(min_length=1)
    patch: str = ""
    diff: str = ""
    qemu: str = ""

    _is_specifier = field_validator("qemu")(specifier)

    @model_validator(mode="after")
    def _is_one_of_both(self) -> Self:
        if bool(self.patch) == bool(self.diff):
            raise ValueError("an edit has either a patch (semantic) or a diff (unified)")
        return self

    def applies_to(self, version: str) -> bool:
        """Whether the edit is for QEMU ``version``."""
        return SpecifierSet(self.qemu).contains(version)


class Edited(BaseModel):
    """A set of edits, and the QEMU versions that they are for.

    :ivar qemu: the versions (PEP 440 specifiers); all versions when empty.
    :ivar edit: the edits, in the order in which they are applied.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    qemu: str = ""
    edit: list[Edit] = Field(min_length=1)

    _is_specifier = field_validator("qemu")(specifier)

    def applies_to(self, version: str) -> bool:
        """Whether the edits of a fault can be applied to QEMU ``version``."""
        return SpecifierSet(self.qemu).contains(version)

    @property
    def key(self) -> str:
        """A hash of the edits of QEMU's source."""
        content = "\0".join(f"{edit.file}\0{edit.patch or edit.diff + edit.qemu}" for edit in self.edit)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def build(tree: Build, name: str, fault: Edited, macros: str, into: Path) -> None:
    """Build QEMU with ``fault`` into the folder ``into``, then restore the tree's source.

    :param name: the fault's name, for messages.
    :param macros: the content of :data:`MACROS`.
    :raises SetupError: when an edit does not apply, or the edited source does not compile.
    """
    with tree.tree() as source:
        apply(tree, name, fault, macros, source)
        tree.compile(into)


def apply(tree: Build, name: str, fault: Edited, macros: str, source: Path) -> None:
    """Edit the source of a tree, inside :meth:`harness.provision.builds.Build.tree`, which restores it.

    Edits for other versions than the tree's are left out.

    :param name: the fault's name, for messages. :param macros: the content of :data:`MACROS`.
    :raises SetupError: when an edit does not apply, or there is none for this version.
    """
    version = (source / "VERSION").read_text().strip()
    edits = [edit for edit in fault.edit if edit.applies_to(version)]
    if not edits:
        raise SetupError(f"fault {name}: none of its edits is for QEMU {version}")
    for path in dict.fromkeys(source / edit.file for edit in edits):
        if not path.is_file():
            raise SetupError(f"fault {name}: QEMU {tree.name} has no {path.relative_to(source)}")
        tree.keep_original(str(path.relative_to(source)))
    (source.parent / "extra-macros.h").write_text(macros)
    for edit in edits:
        _apply(tree, name, edit, source)


def _apply(tree: Build, name: str, edit: Edit, source: Path) -> None:
    before = (source / edit.file).read_bytes()
    tool, file, command = (
        ("spatch", "fault.cocci", _SPATCH) if edit.patch else ("patch", "fault.diff", _PATCH)
    )
    (source.parent / file).write_text(edit.patch or edit.diff)
    try:
        output = tree.run(command.format(edit.file), what=tool)
    except SetupError as exc:
        raise SetupError(
            f"fault {name}: its edit of {edit.file} does not apply to QEMU {tree.name}: {exc.message}"
        ) from exc
    if (source / edit.file).read_bytes() == before:
        raise SetupError(
            f"fault {name}: its edit of {edit.file} changes nothing in QEMU {tree.name}",
            details=f"{edit.patch or edit.diff}\n{output}",
        )
