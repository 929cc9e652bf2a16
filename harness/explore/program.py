"""A program: steps as data, with the cell on which they run.

A scenario's failure, an explored failure, an entry of the ledger and a fault of the catalogue can all be
given as one. A program is a JSON file that people read and edit::

    {"version": 1, "alphabet": "raw",
     "cell": {"qemu": "7.2", "machine": "pc", "kernel": "6.1"},
     "shares": [{"security_model": "none"}],
     "steps": [{"do": "plug", "share": 0},
               {"do": "attach", "share": 0},
               {"do": "eject", "share": 0}]}
"""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from harness.errors import UsageError

#: The version of the file format.
VERSION = 1
#: How many devices a machine can plug (:data:`harness.qemu.machine_types.machine_type.SLOTS`).
_MOST_SHARES = 4


class AlphabetName(StrEnum):
    """Which guest performs the steps: the raw 9p client over qtest, or a Linux."""

    RAW = "raw"
    GUEST = "guest"


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Step(_Data):
    """One step.

    :ivar do: the name of the step, such as ``plug``.
    :ivar share: the index of the share that it is about; ``None`` for a step about the machine.
    :ivar value: which of its variants, for a step that has several (the call to hold, the file to open).
    """

    do: str = Field(min_length=1)
    share: int | None = Field(default=None, ge=0, lt=_MOST_SHARES)
    value: str | int | None = None

    def __str__(self) -> str:
        about = [str(part) for part in (self.share, self.value) if part is not None]
        return f"{self.do}({', '.join(about)})" if about else self.do


class ShareKind(_Data):
    """How a share is declared. The default is the plainest kind.

    :ivar fsdev_of: the index of the share whose fsdev (and folder) it uses; ``None`` for its own.
    :ivar throttled: the fsdev is throttled (QEMU: ``fsdev/qemu-fsdev-throttle.c``).
    """

    security_model: Literal["none", "passthrough", "mapped-xattr", "mapped-file"] = "none"
    fsdev_of: int | None = Field(default=None, ge=0, lt=_MOST_SHARES)
    throttled: bool = False


class ProgramCell(_Data):
    """What a program runs on, as names for ``--qemu``, ``--machine`` and ``--kernel``."""

    qemu: str = "default"
    machine: str = "pc"
    kernel: str = "default"


class Program(_Data):
    """A sequence of steps for one machine with up to four shares.

    :ivar title: what it shows, for people; it has no effect.
    """

    version: Literal[1] = 1
    title: str = ""
    alphabet: AlphabetName
    cell: ProgramCell = ProgramCell()
    shares: tuple[ShareKind, ...] = Field(default=(ShareKind(),), min_length=1, max_length=_MOST_SHARES)
    steps: tuple[Step, ...]

    @model_validator(mode="after")
    def _names_its_shares(self) -> Program:
        for number, step in enumerate(self.steps):
            if step.share is not None and step.share >= len(self.shares):
                raise ValueError(f"step {number}, {step}: there are only {len(self.shares)} shares")
        for number, kind in enumerate(self.shares):
            if kind.fsdev_of is not None and kind.fsdev_of >= number:
                raise ValueError(f"share {number}: fsdev_of has to name an earlier share")
        return self

    def with_steps(self, steps: tuple[Step, ...]) -> Program:
        """The same program with other steps."""
        return self.model_copy(update={"steps": steps})

    def __str__(self) -> str:
        return "; ".join(map(str, self.steps)) or "(no steps)"


def text(program: Program) -> str:
    """The program as JSON: one line a step, defaults left out."""
    content: dict[str, Any] = program.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    content = {"version": VERSION, **content, "cell": program.cell.model_dump(mode="json")}
    order = ("version", "title", "alphabet", "cell", "shares", "steps")
    lines = []
    for key in order:
        if key not in content:
            continue
        value = content[key]
        if key == "steps":
            inner = ",\n".join(f"  {json.dumps(step, ensure_ascii=False)}" for step in value)
            lines.append(f' "steps": [\n{inner}\n ]' if value else ' "steps": []')
        else:
            lines.append(f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def read(path: Path) -> Program:
    """Read a program from its JSON.

    :raises UsageError: when the file cannot be read or is no program of this version; one line.
    """
    try:
        content = json.loads(path.read_text())
    except OSError as exc:
        raise UsageError(f"{path}: {exc.strerror}") from None
    except ValueError as exc:
        raise UsageError(f"{path}: not JSON: {exc}") from None
    if not isinstance(content, dict) or "steps" not in content:
        raise UsageError(f"{path}: not a program: it has no 'steps'")
    if content.get("version") != VERSION:
        raise UsageError(
            f"{path}: a program of version {content.get('version')}; this harness reads version {VERSION}"
        )
    try:
        return Program.model_validate(content)
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UsageError(f"{path}: {where + ': ' if where else ''}{first['msg']}") from None
