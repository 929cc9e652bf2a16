"""The catalogue of faults, each put into a QEMU that is built from source: what the scenarios must find.

A fault is data (``images/faults/NAME.toml``): what it breaks, which scenarios find it, and the edits
(:mod:`harness.provision.edits`).
"""

from __future__ import annotations

from pathlib import Path

from pydantic import ConfigDict, Field, field_validator

from harness.guarantees import GUARANTEES
from harness.provision import recipes
from harness.provision.edits import Edited
from harness.qemu.machine_types import MACHINE_TYPES


class Fault(Edited):
    """One fault.

    :ivar guarantee: the guarantee that it breaks.
    :ivar title: what is wrong, in one line.
    :ivar sample: it is the one of its guarantee to try when there is no time for all.
    :ivar stands_for: the commit or CVE of the real world that it is like.
    :ivar takes_back: the fixes of QEMU's history that the edits undo (commit and subject, CVE, issue). A
        fault that has some is a real one.
    :ivar machines: the machine types to look on.
    :ivar caught_by: the scenarios that have to find it, as ``file.py::test`` or ``file.py::test[parameter]``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    guarantee: str
    title: str = Field(min_length=1)
    sample: bool = False
    stands_for: str = ""
    takes_back: list[str] = Field(default=[])
    machines: list[str] = Field(default=["pc"], min_length=1)
    caught_by: list[str] = Field(min_length=1)

    @field_validator("guarantee")
    @classmethod
    def _is_guarantee(cls, text: str) -> str:
        if text not in GUARANTEES:
            raise ValueError(f"no such guarantee; there are: {'; '.join(GUARANTEES)}")
        return text

    @field_validator("machines")
    @classmethod
    def _are_machines(cls, machines: list[str]) -> list[str]:
        unknown = sorted(set(machines) - set(MACHINE_TYPES))
        if unknown:
            raise ValueError(f"unknown machine types: {', '.join(unknown)}")
        return machines


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
