from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness import layout
from harness.errors import UsageError


def test_in_a_checkout_they_are_beside_the_package() -> None:
    root = layout.checkout()
    assert root == Path(layout.__file__).parents[1]
    assert layout.recipes_folder() == root / "images"
    assert layout.scenarios_folder() == root / "scenarios"
    assert layout.pytest_folder(root / "scenarios") == root
    assert "-c" not in layout.pytest_command()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """As it is installed from a wheel, beside another project's folder of images."""
    for folder in ("harness/_images", "harness_scenarios", "images", "scenarios"):
        (tmp_path / folder).mkdir(parents=True)
    return tmp_path / "harness"


def test_from_a_wheel_they_are_installed_with_it(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(package.parent / "images")
    assert layout.checkout(package) is None
    assert layout.recipes_folder(package) == package / "_images"
    assert layout.scenarios_folder(package) == package.parent / "harness_scenarios"
    assert layout.pytest_folder(package, package) == Path.cwd()
    command = layout.pytest_command(package)
    assert command[1:] == ["-P", "-m", "pytest", "-c", os.devnull, "--rootdir", str(Path.cwd())]


def test_without_them_the_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no recipes: neither .*/images nor .*/_images exists"):
        layout.recipes_folder(tmp_path / "harness")
    with pytest.raises(UsageError, match=r"no scenarios: .*/harness_scenarios does not exist"):
        layout.scenarios_folder(tmp_path / "harness")
