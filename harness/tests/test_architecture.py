"""ARCHITECTURE.md is true: the rooms, files, classes and functions that it names exist.

Files that are named with their folder are checked in ``report/test_readme.py``, as in the other documents.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

from harness.tests.test_imports import FLOORS, KERNEL, ON_THEIR_OWN, PACKAGE, modules

ROOT = PACKAGE.parent
TEXT = (PACKAGE / "ARCHITECTURE.md").read_text()
#: Names of measurements, which look like a module and a name in it.
MEASUREMENTS = {"qmp.median", "qmp.max"}
#: Names of QEMU's that are nowhere in the code.
OF_QEMU = {"fsdev_add", "drain_call_rcu"}
#: What a module may end with; ``history.ndjson`` is no name in ``history.py``.
SUFFIXES = ("py", "pl", "css", "html", "js", "toml", "json", "ndjson", "log", "txt", "sh", "supp")


@cache
def defined(path: Path) -> dict[str, set[str]]:
    """The names at the top level of a module, and for each class those of its members."""
    return {name: set(_members(node)) for node in _body(path) for name in _named(node)}


def _body(path: Path) -> list[ast.stmt]:
    return ast.parse(path.read_text()).body


def _named(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    yield from (target.id for target in targets if isinstance(target, ast.Name))


def _members(node: ast.stmt) -> Iterator[str]:
    for member in node.body if isinstance(node, ast.ClassDef) else ():
        yield from _named(member)


@cache
def _by_stem() -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = defaultdict(list)
    for path in modules():
        found[path.parent.name if path.name == "__init__.py" else path.stem].append(path)
    return found


@cache
def _classes() -> dict[str, set[str]]:
    """The members of each class; of all classes of that name, where there are several."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in modules():
        for name, members in defined(path).items():
            if re.fullmatch(r"[A-Z]+[a-z]\w*", name):
                found[name] |= members
    return found


@cache
def _words() -> frozenset[str]:
    """The words of all files of the package except its documents and own tests."""
    files = (path for path in PACKAGE.rglob("*.*") if path.suffix in (".py", ".pl", ".supp"))
    texts = (path.read_text() for path in files if "tests" not in path.relative_to(PACKAGE).parts)
    return frozenset(word for text in texts for word in re.findall(r"\w+", text))


def wrong_names(text: str) -> list[str]:
    """The files, classes, members and words in backticks that do not exist."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return sorted({name for name in re.findall(r"`([^`\n]+)`", prose) if not _exists(name)})


def _exists(name: str) -> bool:
    if re.fullmatch(r"[\w-]+\.(?:py|pl|css|html|js)", name):
        return any("tests" not in path.relative_to(PACKAGE).parts for path in PACKAGE.rglob(name))
    if name in MEASUREMENTS | OF_QEMU or name.endswith(tuple(f".{suffix}" for suffix in SUFFIXES)):
        return True
    if re.fullmatch(r"[A-Z]+[a-z]+[A-Za-z]*", name):
        return name in _classes()
    if match := re.fullmatch(r"([A-Z]+[a-z]\w*)\.(\w+)", name):
        return match[2] in _classes().get(match[1], set())
    if match := re.fullmatch(r"(?:[a-z_]+\.)*([a-z_]+)\.(\w+)", name):
        return (ROOT / name.replace(".", "/")).exists() or _is_in_a_module(match[1], match[2])
    return not re.fullmatch(r"[A-Za-z]+_\w+", name) or name in _words()


def _is_in_a_module(stem: str, name: str) -> bool:
    """Whether a module of this name has it. A name in a module that is not ours is not checked."""
    paths = _by_stem().get(stem)
    return paths is None or any(name in defined(path) for path in paths)


def chapter(title: str, text: str = TEXT) -> str:
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"ARCHITECTURE.md has no chapter {title!r}"
    return found[1]


def wrong_answers(rows: Iterable[str]) -> list[str]:
    """The answers of the index whose file does not exist, or does not define the names in parentheses."""
    return [f"{path}: {name}" for row in rows for path, name in _answers(row) if not _is_there(path, name)]


def _answers(row: str) -> Iterator[tuple[str, str]]:
    """The files of a row, and the names that follow each in parentheses; ``""`` for a file without names."""
    for path, names in re.findall(r"`([\w./-]*(?:/|\.py))`(?: \(((?:`\w+`(?:, )?)+)\))?", row):
        yield from ((path, name) for name in re.findall(r"\w+", names) or [""])


def _is_there(path: str, name: str) -> bool:
    found = next((base / path for base in (ROOT, PACKAGE) if (base / path).exists()), None)
    if found is None:
        return "/" not in path and any(PACKAGE.rglob(path))
    if not name:
        return True
    return name in defined(found) or any(name in members for members in defined(found).values())


def index() -> list[str]:
    rows = [line for line in chapter("Where is what decided").splitlines() if line.startswith("| ")]
    return [row.split(" | ", 1)[1] for row in rows[1:] if not row.startswith("| **")]


def without_title(sources: Iterable[tuple[str, str]]) -> list[str]:
    """The modules whose first line is not a whole sentence that says what they are."""
    titles = ((name, source.partition("\n")[0]) for name, source in sources)
    return [name for name, title in titles if not re.fullmatch(r'"""\S.{10,}\.(?:""")?', title)]


def wrong_floors(rooms: str) -> set[tuple[int, str]]:
    """The rooms that are on a floor either in the table or in :data:`FLOORS`, and not in both."""
    rows = re.findall(r"^\| (\d+) \| `(\w+)(?:/|\.py)` \|", rooms, re.MULTILINE)
    table = {(int(number), room) for number, room in rows}
    enforced = {(number, room) for number, floor in enumerate(FLOORS, 1) for room in floor}
    return table ^ (enforced - {(len(FLOORS), "__main__")})


def not_reached(rows: Iterable[str]) -> list[str]:
    """The rooms that no answer of these rows is in."""
    rooms = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in modules()}
    reached = {path.partition("/")[0].removesuffix(".py") for row in rows for path, _ in _answers(row)}
    return sorted(rooms - {"__init__", "__main__"} - reached)


def test_the_table_of_rooms_has_the_floors_that_are_enforced() -> None:
    assert wrong_floors(chapter("Rooms")) == set()
    assert f"`{' '.join(KERNEL)}`" in chapter("Rooms")
    assert all(f"| `{room}/` |" in chapter("Rooms") for room in ON_THEIR_OWN)


def test_a_room_on_another_floor_is_found() -> None:
    number = next(number for number, floor in enumerate(FLOORS, 1) if "leaks" in floor)
    moved = chapter("Rooms").replace(f"| {number} | `leaks/` |", "| 1 | `leaks/` |")
    assert wrong_floors(moved) == {(number, "leaks"), (1, "leaks")}


def test_what_architecture_names_exists() -> None:
    assert wrong_names(TEXT) == []


@pytest.mark.parametrize(
    "name",
    [
        "gone.py",
        "gone.css",
        "NoSuchClass",
        "Machine.no_such_method",
        "NoSuchClass.run",
        "reaper.own",
        "report.summary.no_such_name",
        "no_such_function",
        "NO_SUCH_CONSTANT",
    ],
)
def test_a_name_that_does_not_exist_is_found(name: str) -> None:
    assert wrong_names(f"It is `{name}`, and not `machine.py`, `Machine.close` or `harness/gone`.") == [name]


def test_the_index_is_true() -> None:
    assert wrong_answers(index()) == []


@pytest.mark.parametrize(
    ("row", "wrong"),
    [
        ("`qemu/gone.py`; `qemu/accel.py`", ["qemu/gone.py: "]),
        ("`qemu/accel.py` (`TIMEOUT_SCALES`, `gone`)", ["qemu/accel.py: gone"]),
        ("`restore/store.py` (`find`, `restore`)", ["restore/store.py: restore"]),
        ("`gone/`", ["gone/: "]),
    ],
)
def test_a_wrong_answer_of_the_index_is_found(row: str, wrong: list[str]) -> None:
    assert wrong_answers([row]) == wrong


def test_the_index_leads_to_each_room() -> None:
    assert not_reached(index()) == []


def test_a_room_that_the_index_does_not_lead_to_is_found() -> None:
    assert "leaks" in not_reached(row for row in index() if "`leaks/" not in row)


def test_each_module_begins_with_a_line_that_says_what_it_is() -> None:
    assert without_title((str(path.relative_to(PACKAGE)), path.read_text()) for path in modules()) == []


@pytest.mark.parametrize("source", ["", "import os\n", '"""Broken off in the middle of a\nsentence."""\n'])
def test_a_module_without_such_a_line_is_found(source: str) -> None:
    assert without_title([("a.py", source), ("b.py", '"""What it is, in one line."""\n')]) == ["a.py"]
