"""The directions of imports, and two things that have one home: the sleep and the import of pytest.

A floor may import the floors below it. Modules of one room may import each other, in no circle.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1]
KERNEL = ("errors", "deadline", "background", "history", "artifacts", "reaper", "guarantees", "layout")
#: From the lowest up. Rooms on one floor do not import each other.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("channel",),
    ("qemu",),
    ("guest",),
    ("provision",),
    ("restore",),
    ("testbed",),
    ("ninep",),
    ("holds", "actions"),
    ("devices",),
    ("leaks",),
    ("matrix",),
    ("report",),
    ("explore",),
    ("mutation",),
    ("bench",),  # It times whole runs of pytest.
    ("cli", "plugin"),
    ("__main__",),
)
#: Rooms that judge a record on disk, and need no other: they import the kernel alone.
ON_THEIR_OWN = ("checkers",)
#: Rooms that import no checker: what they do is judged later.
UNJUDGED = ("channel", "qemu", "guest", "provision", "restore", "testbed", "ninep", "holds", "devices")
#: Packages that one part alone imports.
HOMES = {"pytest": "plugin", "_pytest": "plugin", "click": "cli", "paramiko": "channel", "pexpect": "channel"}
#: The benchmark's bare script does without the channels: it is what they are compared to.
GUESTS = {"paramiko": "bench"}


def allowed() -> dict[str, set[str]]:
    """What each room may import of the harness, besides itself."""
    rooms = {room: set(KERNEL) for room in (*KERNEL, *ON_THEIR_OWN)}
    below = set(KERNEL)
    for floor in FLOORS:
        rooms |= {room: below if room in UNJUDGED else below | set(ON_THEIR_OWN) for room in floor}
        below = below | set(floor)
    return rooms


ALLOWED = allowed()


def modules() -> Iterator[Path]:
    return (p for p in PACKAGE.rglob("*.py") if "tests" not in p.relative_to(PACKAGE).parts)


def problems(part: str, source: str) -> list[str]:
    """What a module of ``part`` does that it must not."""
    found = []
    for node in _imports_and_sleeps(source):
        wrong = [name for name in _imported(node) if not _may_import(part, name)]
        found += [f"line {node.lineno}: {part} imports {name}" for name in wrong]
        if isinstance(node, ast.Attribute) and part != "deadline":
            found.append(f"line {node.lineno}: {part} sleeps")
    return found


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module is not None:
        names = [node.module]
        if node.module.partition(".")[0] in ("harness", "time", "asyncio"):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        return names if node.module != "harness" else names[1:]
    return []


def _may_import(part: str, name: str) -> bool:
    if name in ("time.sleep", "asyncio.sleep"):
        return part == "deadline"
    top, _, rest = name.partition(".")
    if top == "harness":
        target = rest.partition(".")[0]
        return target == part or target in ALLOWED.get(part, ())
    return part in (HOMES.get(top, part), GUESTS.get(top))


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def circle(sources: Mapping[str, str]) -> list[str]:
    """Modules that import each other in a circle, wherever the import stands; none when there is none.

    :param sources: each module's text, by its dotted name. A package's ``__init__`` is the package.
    """
    graph = {name: set(_modules(source, sources)) - {name} for name, source in sources.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as exc:
        return list(exc.args[1])
    return []


def _modules(source: str, known: Iterable[str]) -> Iterator[str]:
    """The most exact of the known modules that each import names."""
    for node in _imports_and_sleeps(source):
        names = _imported(node)
        found = [name for name in names if name in known]
        if isinstance(node, ast.ImportFrom) and len(found) > 1:
            found.remove(names[0])  # "from harness.qemu import spec" is of spec, not of its package.
        yield from found


@cache
def _imports_and_sleeps(source: str) -> tuple[ast.Import | ast.ImportFrom | ast.Attribute, ...]:
    return tuple(
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        or (isinstance(node, ast.Attribute) and node.attr == "sleep")
    )


def sources() -> dict[str, str]:
    return {
        ".".join(("harness", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
            ".__init__"
        ): path.read_text()
        for path in modules()
    }


def test_each_module_keeps_to_its_floor() -> None:
    found = {path: problems(part_of(path), path.read_text()) for path in modules()}
    assert {str(path.relative_to(PACKAGE)): wrong for path, wrong in found.items() if wrong} == {}


def test_every_part_has_a_place() -> None:
    assert {part_of(path) for path in modules()} - {"__init__"} == set(ALLOWED)


def test_no_modules_import_each_other() -> None:
    assert circle(sources()) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("harness.guest.job", "def f():\n    from harness.guest.mount import Mount"),
        ("harness.channel.guestfwd", "from harness.channel import ssh"),
        ("harness.errors", "import harness.deadline"),
    ],
)
def test_a_circle_is_found(module: str, line: str) -> None:
    planted = sources()
    planted[module] += f"\n{line}\n"
    assert module in circle(planted)


@pytest.mark.parametrize(
    ("part", "line"),
    [
        ("channel", "from harness.qemu.spec import Share"),
        ("checkers", "import harness.channel.qmp"),
        ("errors", "from harness import matrix"),
        ("guest", "def f():\n    from harness.actions.hotplug import Hotplug"),
        ("guest", "from harness.restore.session import SessionReplay"),
        ("holds", "from harness.actions.migration import Migration"),
        ("provision", "from harness.mutation.catalogue import Fault"),
        ("testbed", "from harness import checkers"),
        ("actions", "import pytest"),
        ("plugin", "import click"),
        ("guest", "import paramiko.transport"),
        ("guest", "import time\ntime.sleep(1)"),
        ("channel", "from asyncio import sleep"),
    ],
)
def test_a_module_that_does_not_is_found(part: str, line: str) -> None:
    assert problems(part, line) != []
