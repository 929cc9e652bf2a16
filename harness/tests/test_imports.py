"""The directions of imports, and two things that have one home: the sleep and the import of pytest."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1]
KERNEL = ("errors", "deadline", "background", "history", "artifacts", "reaper", "guarantees")
LOWER = ("channel", "qemu", "guest", "provision", "actions", "holds", "checkers", "matrix", "ledger")
#: What each part may import of the harness; its own part is always allowed.
ALLOWED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(KERNEL, KERNEL),
    "channel": KERNEL,
    "qemu": (*KERNEL, "channel"),
    "guest": (*KERNEL, "channel", "qemu"),
    "checkers": KERNEL,
    "provision": (*KERNEL, "channel", "qemu", "guest"),
    "actions": (*KERNEL, "channel", "qemu", "guest", "checkers"),
    "holds": (*KERNEL, "channel", "qemu", "guest"),
    "ledger": (*KERNEL, "qemu", "provision"),
    "matrix": (*KERNEL, "channel", "qemu", "guest", "provision", "ledger"),
    "summary": KERNEL,
    "comparison": (*KERNEL, "summary"),
    "plugin": (*KERNEL, *LOWER, "summary"),
    "bench": (*KERNEL, *LOWER),
    "detection": (*KERNEL, *LOWER, "summary"),
    "cli": (*KERNEL, *LOWER, "bench", "detection", "summary", "comparison"),
}
#: Packages that one part alone imports.
HOMES = {"pytest": "plugin", "_pytest": "plugin", "click": "cli", "paramiko": "channel", "pexpect": "channel"}
#: The benchmark's bare script does without the channels: it is what they are compared to.
GUESTS = {"paramiko": "bench"}


def modules() -> Iterator[Path]:
    return (p for p in PACKAGE.rglob("*.py") if "tests" not in p.relative_to(PACKAGE).parts)


def problems(part: str, source: str) -> list[str]:
    """What a module of ``part`` does that it must not."""
    found = []
    for node in ast.walk(ast.parse(source)):
        line = getattr(node, "lineno", 0)
        wrong = [name for name in _imported(node) if not _may_import(part, name)]
        found += [f"line {line}: {part} imports {name}" for name in wrong]
        if isinstance(node, ast.Attribute) and node.attr == "sleep" and part != "deadline":
            found.append(f"line {line}: {part} sleeps")
    return found


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module is not None:
        if node.module == "harness":
            return [f"harness.{alias.name}" for alias in node.names]
        names = [node.module]
        if node.module in ("time", "asyncio"):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        return names
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


@pytest.mark.parametrize("path", sorted(modules()), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_keeps_to_its_layer(path: Path) -> None:
    assert problems(part_of(path), path.read_text()) == []


def test_every_part_has_a_place() -> None:
    assert {part_of(path) for path in modules()} - {"__init__"} == set(ALLOWED)


@pytest.mark.parametrize(
    ("part", "line"),
    [
        ("channel", "from harness.qemu.spec import Share"),
        ("checkers", "import harness.channel.qmp"),
        ("errors", "from harness import matrix"),
        ("guest", "def f():\n    from harness.actions.hotplug import Hotplug"),
        ("actions", "import pytest"),
        ("plugin", "import click"),
        ("guest", "import paramiko.transport"),
        ("guest", "import time\ntime.sleep(1)"),
        ("channel", "from asyncio import sleep"),
    ],
)
def test_a_module_that_does_not_is_found(part: str, line: str) -> None:
    assert problems(part, line) != []
