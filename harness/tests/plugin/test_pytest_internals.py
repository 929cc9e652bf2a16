"""What the plugin uses of pytest beyond its documented API: a failure names what a version has changed."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from harness import plugin
from harness.plugin import options
from harness.plugin.pytest_internals import set_files_to_run


def test_config_has_the_namespace_that_conftests_are_found_by(pytestconfig: pytest.Config) -> None:
    assert hasattr(pytestconfig, "known_args_namespace")
    assert isinstance(pytestconfig.known_args_namespace.file_or_dir, list)


def test_without_it_nothing_fails() -> None:
    set_files_to_run(object(), None, [])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("args", "kept"),
    [
        (["tests", "--qemu", "7.2", "-x"], ["tests", "-x"]),
        (["--qemu=7.2", "tests"], ["--qemu=7.2", "tests"]),
        (["--qemu"], []),
        (["--", "--qemu", "7.2"], ["--", "--qemu", "7.2"]),
    ],
)
def test_the_values_of_options_are_no_files(args: list[str], kept: list[str]) -> None:
    assert options.without(args, {"--qemu"}) == kept


@pytest.mark.parametrize("path", sorted(Path(plugin.__path__[0]).glob("*.py")), ids=lambda path: path.name)
def test_the_plugin_uses_no_private_name_of_pytest(path: Path) -> None:
    """And unregisters no plugin of the user's."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            named = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            assert not [name for name in named if name.partition(".")[0] == "_pytest"]
        if isinstance(node, ast.Attribute) and not node.attr.startswith("__"):
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            assert own or not node.attr.startswith("_"), f"line {node.lineno}: {node.attr}"
            assert node.attr != "unregister", f"line {node.lineno}"
