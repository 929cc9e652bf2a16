"""A QEMU that counts which of its lines run: how it is compiled, and where its processes write the counters.

GCC's ``--coverage`` (gcov) is given only for the files that the report is about (``images/coverage.toml``),
and these alone are compiled without optimisation, which would merge lines. The code that TCG runs is not
among them, so guests are about as fast as without counters.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator

from harness.layout import recipes_folder
from harness.provision import recipes

#: What follows ``+`` in the name of such a QEMU; no fault has this name.
FLAVOUR = "coverage"
#: The compiler, in the folder of the tree: a script, because meson has no options for single files.
COMPILER = "cc-coverage"
CONFIGURE = (f"--cc=/work/{COMPILER}", "--extra-ldflags=--coverage")
#: Counters are atomic because functions of 9pfs run in worker threads as well.
_SCRIPT = """#!/bin/sh
case " $*" in
{patterns}) exec gcc "$@" -O0 --coverage -fprofile-update=atomic ;;
esac
exec gcc "$@"
"""
#: The folder below which a process writes its counters, under the path of the object file; and the file for
#: the complaints of the library that writes them (GCC: ``libgcc/libgcov-driver-system.c``).
PREFIX, COMPLAINTS = "GCOV_PREFIX", "GCOV_ERROR_FILE"


class Part(BaseModel):
    """A part of QEMU's source that is reported.

    :ivar file: a file, or a folder with "/" at its end. :ivar functions: a regular expression that the whole
        name of a function has to match, in which white space does not count; all functions when empty.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    file: str = Field(pattern=r"^[\w-]+(/[\w.-]+)*/?$")
    functions: str = ""

    @field_validator("functions")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern, re.VERBOSE)
        except re.error as exc:
            raise ValueError(f"not a regular expression: {exc}") from None
        return pattern

    def has(self, file: str, function: str | None) -> bool:
        """Whether a line of ``file`` in this function (``None``: in no function) is in the counted part."""
        if not (file.startswith(self.file) if self.file.endswith("/") else file == self.file):
            return False
        return not self.functions or bool(function and re.fullmatch(self.functions, function, re.VERBOSE))


class Reason(BaseModel):
    """Why some lines are not reached.

    :ivar file: a file's path. :ivar function: a function's name; all functions when empty.
    :ivar lines: the beginnings of the lines' texts, without white space at the left; all lines when empty.
    :ivar after: the beginning of a line that is one of the four before each of them, for lines such as
        ``goto out;``.
    :ivar why: the reason.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    file: str = Field(min_length=1)
    function: str = ""
    lines: list[str] = []
    after: str = ""
    why: str = Field(min_length=1)


class Coverage(BaseModel):
    """What is reported, and the reasons for what is not reached, which are about one release."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    part: list[Part] = Field(min_length=1)
    reason: list[Reason] = []


def load(folder: Path | None = None) -> Coverage:
    """Read ``coverage.toml`` in the folder of recipes: what counts its lines.

    :raises UsageError: when it is not valid.
    """
    return recipes.read((folder or recipes_folder()) / "coverage.toml", Coverage)


def compiler(parts: Iterable[Part]) -> str:
    """The content of :data:`COMPILER`, which counts lines.

    The build folder of a tree is beside its source.
    """
    return _SCRIPT.format(patterns="|".join(f"*' ../source/{part.file}'*" for part in parts))


def environment(folder: Path) -> Mapping[str, str]:
    """The variables for a QEMU that counts lines.

    Those of this process, otherwise ``folder`` for the counters.

    Without them they would be written to ``/work/build``, which is the build folder's path in the build root.
    """
    defaults = {PREFIX: str(folder), COMPLAINTS: os.devnull}
    return {name: os.environ.get(name, default) for name, default in defaults.items()}
