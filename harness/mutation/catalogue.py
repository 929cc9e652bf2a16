"""The catalogue of faults. Each is put into a QEMU that is built from source, and the scenarios must find it.

A fault is data (``images/faults/NAME.toml``): the guarantee that it breaks, the scenarios that find it, and
the edits of QEMU's source (:mod:`harness.provision.edits`).
"""

from __future__ import annotations

from pathlib import Path

from pydantic import ConfigDict, Field, field_validator

from harness.guarantees import GUARANTEES
from harness.provision import recipes
from harness.provision.edits import Edited
from harness.qemu.machine_types import known_machine_types


class Fault(Edited):
    """One fault.

    :ivar guarantee: the guarantee that it breaks.
    :ivar title: what is wrong, in one line.
    :ivar sample: whether ``--sample`` runs it. Each guarantee has one such fault.
    :ivar stands_for: a real commit or CVE that it resembles.
    :ivar takes_back: the fixes of QEMU's history that the edits undo (commit and subject, CVE, issue). A
        fault that undoes a fix is a real one, any other is planted.
    :ivar machines: the machine types on which the scenarios are run.
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

    _are_machines = field_validator("machines")(known_machine_types)


class Catalogue:
    """The faults in a folder, by name."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or recipes.recipes_folder() / "faults"

    def names(self) -> list[str]:
        """The names of all faults, sorted."""
        return recipes.names(self._folder)

    def load(self, name: str) -> Fault:
        """Read a fault of the catalogue.

        :raises UsageError: with file and line, when there is none of that name, or its file is not valid.
        """
        return recipes.load(self._folder, name, Fault)
