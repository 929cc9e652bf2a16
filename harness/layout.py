"""Where the recipes and the scenarios are: beside the package in a checkout, installed with it from a wheel.

A wheel has the recipes inside the package, as ``harness/_images``, and the scenarios as a package of their
own, so that ``pytest --pyargs harness_scenarios`` runs them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from harness.errors import UsageError

#: The package of the scenarios in a wheel.
SCENARIOS_PACKAGE = "harness_scenarios"
_PACKAGE = Path(__file__).parent


def checkout(package: Path = _PACKAGE) -> Path | None:
    """The checkout that the package is in; ``None`` where it was installed from a wheel."""
    root = package.parent
    return root if not (package / "_images").is_dir() and (root / "images").is_dir() else None


def recipes_folder(package: Path = _PACKAGE) -> Path:
    """The folder of recipes, in a checkout or in a wheel.

    :raises UsageError: when there is none.
    """
    root = checkout(package)
    folder = root / "images" if root else package / "_images"
    if not folder.is_dir():
        raise UsageError(f"no recipes: neither {package.parent / 'images'} nor {folder} exists")
    return folder


def scenarios_folder(package: Path = _PACKAGE) -> Path:
    """The folder of scenarios, in a checkout or in a wheel.

    :raises UsageError: when there is none.
    """
    root = checkout(package)
    folder = root / "scenarios" if root else package.parent / SCENARIOS_PACKAGE
    if not folder.is_dir():
        raise UsageError(f"no scenarios: {folder} does not exist")
    return folder


def pytest_command(package: Path = _PACKAGE) -> list[str]:
    """How a command of the harness starts pytest on the scenarios.

    In a checkout its configuration applies. Elsewhere the current folder is whoever's it is: neither its
    configuration nor a module in it applies (``-P``: a folder called ``harness`` is not imported).
    """
    if checkout(package):
        return [sys.executable, "-m", "pytest"]
    return [sys.executable, "-P", "-m", "pytest", "-c", os.devnull, "--rootdir", str(Path.cwd())]


def pytest_folder(scenarios: Path, package: Path = _PACKAGE) -> Path:
    """The folder in which that command of the harness runs pytest: artefacts are written below it."""
    return scenarios.parent if checkout(package) else Path.cwd()
