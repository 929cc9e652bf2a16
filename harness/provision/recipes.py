"""Recipes: TOML files in ``images/`` that describe what to provide. Unknown keys are errors."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar, get_args

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
from harness.layout import recipes_folder as recipes_folder  # Where everybody looks for it.
from harness.qemu.architectures import ARCHITECTURES, X86_64, Architecture


class Recipe(BaseModel):
    """The keys that every recipe has.

    ``release`` is the Debian release of the packages. ``packages`` are provided with all their dependencies.
    ``default`` marks the recipe that is used when none is named.

    With ``suite``, such as ``bookworm-backports``, packages that this suite has come from it, and all others
    from the release (apt's target release, ``man 8 apt-get``, ``-t``).
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
            raise ValueError(f"{name} is a suite of {release}; set release = {release!r}, suite = {name!r}")
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
        """The suites of a recipe: the release, and the suite that is preferred to it, if any."""
        return [self.release, self.suite] if self.suite else [self.release]

    def wanted(self) -> dict[str, list[str]]:
        """The packages that a recipe wants resolved, in groups; each is unpacked into its own root."""
        return {"packages": self.packages}


class QemuRecipe(Recipe):
    """A QEMU release: unpacked from Debian's ``packages``, or built from the release's source package.

    With ``configure`` it is built with these options, by the release's :class:`BuildRecipe`. With
    ``stripped`` it is the build of that name without its symbols.
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

    :ivar glibc: the release's version of glibc; the library does not load with an older one.
    """

    glibc: str = Field(pattern=r"^\d+\.\d+$")

    @property
    def glibc_version(self) -> tuple[int, ...]:
        """``glibc`` as numbers, for comparison."""
        return tuple(int(part) for part in self.glibc.split("."))


class BuildRecipe(Recipe):
    """Tools and source to build a release's QEMU.

    ``packages`` are compiler, libraries and firmware; ``source`` is the source package.
    """

    source: str = Field(min_length=1)


class GuestRecipe(Recipe):
    """A guest image: a Debian kernel and an initramfs.

    ``programs`` are paths in the packages; they are copied with their libraries, beside busybox and dropbear.
    ``modules`` are loaded at boot, dependencies first. ``modules_on_demand`` are in the image and are loaded
    when a scenario needs them. ``root`` is a folder of files beside the recipe; those of
    ``more_root`` replace them.
    ``uncompressed`` unpacks the kernel: QEMU 4.0 and later boot it directly (PVH), one or two seconds faster.
    """

    kernel: str = Field(min_length=1)
    programs: list[str] = []
    modules: list[str]
    modules_on_demand: list[str] = []
    root: str
    more_root: str | None = None
    cmdline: str
    uncompressed: bool = False

    def wanted(self) -> dict[str, list[str]]:
        """The packages that a guest's recipe wants resolved: see :meth:`Recipe.wanted`."""
        return {"packages": self.packages, "kernel": [self.kernel]}


R = TypeVar("R", bound=Recipe)
M = TypeVar("M", bound=BaseModel)


def kind_of(kind: str, architecture: Architecture) -> str:
    """The folder of recipes of a kind for an architecture: ``guests``, and ``guests/s390x`` for others."""
    return kind if architecture is X86_64 else f"{kind}/{architecture.name}"


#: What a folder of recipes has below it that others may add to.
_MAY_BE_ADDED: dict[str, type[Recipe]] = {"guests": GuestRecipe, "qemu": QemuRecipe, "builds": BuildRecipe}
_MAY_BE_ADDED |= {
    kind_of(kind, architecture): _MAY_BE_ADDED[kind]
    for kind in ("guests", "qemu")
    for architecture in ARCHITECTURES.values()
}


class Folders:
    """The project's recipes, and those of folders that were added, laid out alike (``guests/NAME.toml``).

    :param own: the project's folder. :param more: added ones; a name in them is new.
    """

    def __init__(self, own: Path, more: Sequence[Path] = ()) -> None:
        self._own, self._more = own, tuple(more)

    def names(self, kind: str) -> list[str]:
        """The names of the recipes of a kind, such as ``guests``."""
        return sorted((name for folder in self._of(kind) for name in names(folder)), key=_version)

    def default(self, kind: str, model: type[R]) -> str:
        """The name of the project's recipe that says ``default = true``."""
        return default_name(self._own / kind, model)

    def folder(self, kind: str, name: str) -> Path:
        """The folder that has a recipe; the project's own where none has it."""
        return next((folder for folder in self._of(kind) if name in names(folder)), self._own / kind)

    def load(self, kind: str, name: str, model: type[M]) -> M:
        """Read one recipe.

        :raises UsageError: see :func:`load`.
        """
        if name not in self.names(kind):
            raise UsageError(
                f"no recipe {self._own / kind / name}.toml; known: {', '.join(self.names(kind))}"
            )
        return load(self.folder(kind, name), name, model)

    def check_added(self) -> None:
        """Read every recipe that was added.

        :raises UsageError: when a folder has no recipes, one is bad, or has the name of another.
        """
        known = {kind: set(names(self._own / kind)) for kind in _MAY_BE_ADDED}
        for folder in self._more:
            found = [(kind, name) for kind in _MAY_BE_ADDED for name in names(folder / kind)]
            if not found:
                wanted = " or ".join(f"{kind}/NAME.toml" for kind in _MAY_BE_ADDED)
                raise UsageError(f"--recipes {folder}: has no {wanted}")
            for kind, name in found:
                if name in known[kind]:
                    raise UsageError(f"{folder / kind / name}.toml: there is another recipe {kind}/{name}")
                known[kind].add(name)
                recipe = load(folder / kind, name, _MAY_BE_ADDED[kind])
                if isinstance(recipe, GuestRecipe):
                    roots_of(folder / kind, name, recipe)

    def _of(self, kind: str) -> list[Path]:
        return [folder / kind for folder in (self._own, *self._more)]


def names(folder: Path) -> list[str]:
    """The names of the recipes in ``folder``, ordered by version; names without a version (sid) are last."""
    return sorted((path.stem for path in folder.glob("*.toml")), key=_version)


def _version(name: str) -> tuple[bool, list[tuple[int, str]]]:
    parts = [(int(part) if part.isdigit() else -1, part) for part in name.split(".")]
    return not name[0].isdigit(), parts


def default_name(folder: Path, kind: type[R]) -> str:
    """The name of the recipe with ``default = true``.

    :raises UsageError: unless exactly one recipe has it.
    """
    marked = [name for name in names(folder) if load(folder, name, kind).default]
    if len(marked) != 1:
        raise UsageError(f"{folder}: exactly one recipe must have 'default = true', not {marked or 'none'}")
    return marked[0]


def load(folder: Path, name: str, kind: type[M]) -> M:
    """Read one recipe.

    :raises UsageError: with file and line, when it is unknown, unreadable, or not valid for ``kind``.
    """
    path = folder / f"{name}.toml"
    # Not by names(): a catalogue has hundreds, and each of them is loaded.
    if path.parent != folder or not path.is_file():
        raise UsageError(f"no recipe {path}; known: {', '.join(names(folder))}")
    return read(path, kind)


def read(path: Path, kind: type[M], *, context: Mapping[str, bool] | None = None) -> M:
    """Read a TOML file of recipes as a ``kind``.

    :param context: for the validators of ``kind`` (pydantic's validation context).
    :raises UsageError: with file and line, when it is unreadable, or not valid for ``kind``.
    """
    try:
        text = path.read_text(encoding="utf-8")
        return kind.model_validate(tomllib.loads(text), context=context)
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"{path}: cannot be read: {exc}") from exc
    except tomllib.TOMLDecodeError as exc:
        line = re.search(r"at line (\d+)", str(exc))
        raise UsageError(f"{path}:{line[1] if line else 1}: not TOML: {exc}") from exc
    except ValidationError as exc:
        raise UsageError(_complaint(exc, path, text, kind)) from exc


def _complaint(exc: ValidationError, path: Path, text: str, kind: type[BaseModel]) -> str:
    """The first error of a TOML file, with file and line; of keys that a table lacks all."""
    first = exc.errors()[0]
    where = first["loc"]
    key = ([str(part) for part in where if isinstance(part, str)] or ["packages"])[-1]
    line = _line_of(key, text, where)
    if first["type"] == "extra_forbidden":
        allowed = ", ".join(_table_at(where, kind).model_fields)
        return f"{path}:{line}: unknown key {key!r}; allowed: {allowed}"
    if first["type"] == "missing":
        lacks = [e for e in exc.errors() if e["type"] == "missing" and e["loc"][:-1] == where[:-1]]
        key = ", ".join(str(e["loc"][-1]) for e in lacks)
    return f"{path}:{line}: {key}: {first['msg']}"


def _table_at(location: tuple[int | str, ...], kind: type[BaseModel]) -> type[BaseModel]:
    """The model of the table with the key at pydantic's ``location``: ``bug, 3, title`` is in a ``Bug``."""
    for part in location[:-1]:
        if isinstance(part, str):
            (kind,) = get_args(kind.model_fields[part].annotation)
    return kind


def roots_of(folder: Path, name: str, recipe: GuestRecipe) -> list[Path]:
    """The folders of files that a guest recipe names as ``root`` and ``more_root``.

    :raises UsageError: with file and line, when one is not a folder.
    """
    named = {"root": recipe.root, "more_root": recipe.more_root}
    roots = {key: (folder / root).resolve() for key, root in named.items() if root is not None}
    for key, root in roots.items():
        if not root.is_dir():
            path = folder / f"{name}.toml"
            line = _line_of(key, path.read_text(encoding="utf-8"))
            raise UsageError(f"{path}:{line}: {key}: {root} is not a folder")
    return list(roots.values())


def _line_of(key: str, text: str, location: tuple[int | str, ...] = ()) -> int:
    """The line number of ``key`` in a TOML file.

    :param location: pydantic's path to the key: ``bug, 3, title`` is in the fourth table ``[[bug]]``.
    """
    lines = text.splitlines()
    table = rf"\s*\[\[\s*{re.escape(str(location[0]))}\s*\]\]" if location else "(?!)"
    begins = [number for number, line in enumerate(lines) if re.match(table, line)]
    index = location[1] if len(location) > 1 else None
    start = begins[index] if isinstance(index, int) and index < len(begins) else 0
    for number, line in enumerate(lines[start:], start=start + 1):
        if re.match(rf"\s*[\[\"']*{re.escape(key)}\b", line):
            return number
    return start + 1
