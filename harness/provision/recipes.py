"""Recipes: what to provision, as TOML files in ``images/``, read strictly."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from harness.errors import UsageError


class Recipe(BaseModel):
    """What every recipe says.

    ``release`` is the Debian release that the packages come from; ``packages`` are taken together with
    everything they depend on; ``default`` marks the one that is meant when none is named.

    With ``suite``, such as ``bookworm-backports``, a package comes from that suite where it is there, and
    otherwise from the release (apt's target release, ``man 8 apt-get``, ``-t``).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    default: bool = False
    release: str = Field(min_length=1)
    suite: str | None = None
    packages: list[str] = Field(min_length=1)

    @field_validator("release")
    @classmethod
    def _is_a_release(cls, name: str) -> str:
        release, dash, _ = name.partition("-")
        if dash:
            raise ValueError(f"{name} is a suite of {release}; say release = {release!r}, suite = {name!r}")
        return name

    @field_validator("suite")
    @classmethod
    def _is_of_the_release(cls, name: str | None, info: ValidationInfo) -> str | None:
        release = info.data.get("release")
        if name is not None and release and not name.startswith(f"{release}-"):
            raise ValueError(f"{name} is no suite of {release}, such as {release}-backports")
        return name

    @property
    def suites(self) -> list[str]:
        """The release, and the suite that goes before it."""
        return [self.release, self.suite] if self.suite else [self.release]

    def wanted(self) -> dict[str, list[str]]:
        """The packages to resolve, in groups that are unpacked apart from each other."""
        return {"packages": self.packages}


class QemuRecipe(Recipe):
    """A QEMU release: unpacked from Debian's ``packages``, or built from the release's source package.

    With ``configure`` it is built, with these options, as the release's :class:`BuildRecipe` says; with
    ``stripped`` it is the one of that name, which is built, without its symbols.
    """

    packages: list[str] = []
    configure: list[str] = []
    stripped: str = ""

    @model_validator(mode="after")
    def _has_one_origin(self) -> QemuRecipe:
        if [bool(self.packages), bool(self.configure), bool(self.stripped)].count(True) != 1:
            raise ValueError("a QEMU recipe has one of packages, configure and stripped")
        return self


class HeapRecipe(Recipe):
    """A library that profiles the heap of a QEMU that runs with the host's libc.

    :ivar glibc: the release's version of it: the library loads into no older one.
    """

    glibc: str = Field(pattern=r"^\d+\.\d+$")

    @property
    def glibc_version(self) -> tuple[int, ...]:
        """As numbers, to compare."""
        return tuple(int(part) for part in self.glibc.split("."))


class BuildRecipe(Recipe):
    """What a release's QEMU is built with.

    ``packages`` are compiler, libraries and firmware; ``source`` is the source package.
    """

    source: str = Field(min_length=1)


class GuestRecipe(Recipe):
    """A guest image: a Debian kernel and an initramfs.

    ``programs`` are paths in the packages, copied with their libraries, beside busybox and dropbear;
    ``modules`` are loaded at boot, dependencies first; ``modules_on_demand`` are in the image and are loaded
    when a scenario asks for them; ``root`` is a folder of files beside the recipe;
    ``uncompressed`` unpacks the kernel, which QEMU 4.0 and later boot as it is (PVH), a second or two sooner.
    """

    kernel: str = Field(min_length=1)
    programs: list[str] = []
    modules: list[str]
    modules_on_demand: list[str] = []
    root: str
    cmdline: str
    uncompressed: bool = False

    def wanted(self) -> dict[str, list[str]]:
        """See :meth:`Recipe.wanted`."""
        return {"packages": self.packages, "kernel": [self.kernel]}


R = TypeVar("R", bound=Recipe)
M = TypeVar("M", bound=BaseModel)


def recipes_folder() -> Path:
    """``images/``: beside the package in a checkout, inside it when it was installed from a wheel."""
    package = Path(__file__).parents[1]
    for folder in (package.parent / "images", package / "_images"):
        if folder.is_dir():
            return folder
    raise UsageError(f"no recipes: neither {package.parent / 'images'} nor {package / '_images'} exists")


def names(folder: Path) -> list[str]:
    """The names of the recipes in ``folder``: in the order of their versions; one without (sid) is last."""
    return sorted((path.stem for path in folder.glob("*.toml")), key=_version)


def _version(name: str) -> tuple[bool, list[tuple[int, str]]]:
    parts = [(int(part) if part.isdigit() else -1, part) for part in name.split(".")]
    return not name[0].isdigit(), parts


def default_name(folder: Path, kind: type[R]) -> str:
    """The name of the recipe that says ``default = true``.

    :raises UsageError: when not exactly one does.
    """
    marked = [name for name in names(folder) if load(folder, name, kind).default]
    if len(marked) != 1:
        raise UsageError(f"{folder}: exactly one recipe must say 'default = true', not {marked or 'none'}")
    return marked[0]


def load(folder: Path, name: str, kind: type[M]) -> M:
    """Read one recipe.

    :raises UsageError: with file and line, when it is unknown, unreadable, or says what no recipe says.
    """
    path = folder / f"{name}.toml"
    if name not in names(folder):
        raise UsageError(f"no recipe {path}; known: {', '.join(names(folder))}")
    return read(path, kind)


def read(path: Path, kind: type[M]) -> M:
    """Read a TOML file as a ``kind``.

    :raises UsageError: with file and line, when it is unreadable, or says what a ``kind`` does not.
    """
    try:
        text = path.read_text(encoding="utf-8")
        return kind.model_validate(tomllib.loads(text))
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"{path}: cannot be read: {exc}") from exc
    except tomllib.TOMLDecodeError as exc:
        line = re.search(r"at line (\d+)", str(exc))
        raise UsageError(f"{path}:{line[1] if line else 1}: not TOML: {exc}") from exc
    except ValidationError as exc:
        first = exc.errors()[0]
        key = ([str(part) for part in first["loc"] if isinstance(part, str)] or ["packages"])[-1]
        line_number = _line_of(key, text, first["loc"])
        if first["type"] == "extra_forbidden":
            allowed = ", ".join(kind.model_fields)
            raise UsageError(f"{path}:{line_number}: unknown key {key!r}; allowed: {allowed}") from exc
        raise UsageError(f"{path}:{line_number}: {key}: {first['msg']}") from exc


def root_of(folder: Path, name: str, recipe: GuestRecipe) -> Path:
    """The folder of files that a guest recipe names.

    :raises UsageError: with file and line, when there is none.
    """
    root = folder / recipe.root
    if not root.is_dir():
        path = folder / f"{name}.toml"
        line = _line_of("root", path.read_text(encoding="utf-8"))
        raise UsageError(f"{path}:{line}: root: {root} is not a folder")
    return root


def _line_of(key: str, text: str, location: tuple[int | str, ...] = ()) -> int:
    """The line of ``key``. ``location`` is pydantic's path: ``bug, 3, title`` is in the fourth."""
    lines = text.splitlines()
    table = rf"\s*\[\[\s*{re.escape(str(location[0]))}\s*\]\]" if location else "(?!)"
    begins = [number for number, line in enumerate(lines) if re.match(table, line)]
    index = location[1] if len(location) > 1 else None
    start = begins[index] if isinstance(index, int) and index < len(begins) else 0
    for number, line in enumerate(lines[start:], start=start + 1):
        if re.match(rf"\s*[\[\"']*{re.escape(key)}\b", line):
            return number
    return start + 1
