"""When the second part of the plugin is loaded: nothing of it is imported before.

Whether a run is about guests is known at its start when an option of ours is given or the scenarios are
named; otherwise when the first test that asks for a guest is collected. The process that a user starts with
``pytest -n`` collects nothing; it learns from what its workers have collected.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from harness.errors import UsageError
from harness.layout import SCENARIOS_PACKAGE, scenarios_folder
from harness.plugin.marks import asks_for_guest
from harness.plugin.options import any_given

#: In this order: of two hooks that are both first or last, the order of loading decides.
_SECOND_PART = (
    "harness.plugin.provisioning",
    "harness.plugin.strict",
    "harness.plugin.thorough",
    "harness.plugin.schedule",
    "harness.plugin.sharding",
    "harness.plugin.known_bugs",
    "harness.plugin.staying",
    "harness.plugin.ledger_check",
    "harness.plugin.judging",
    "harness.plugin.outcomes",
    "harness.plugin.fallbacks",
    "harness.plugin.reporting",
    "harness.plugin.recording",
    "harness.plugin.confirming",
    "harness.plugin.attachments",
)
#: Part of a test's id: the default QEMU and the default kernel. Another one is there only by an option.
_DEFAULT_CELL = "default-default"
_ACTIVE = pytest.StashKey[bool]()


def is_active(config: pytest.Config) -> bool:
    """Whether the second part of the plugin is loaded."""
    return config.stash.get(_ACTIVE, False)


def activate(config: pytest.Config) -> None:
    """Load the second part of the plugin; once."""
    if not is_active(config):
        config.stash[_ACTIVE] = True
        for name in _SECOND_PART:
            # import_plugin would warn about modules that were imported before: it rewrites asserts, and these
            # modules have none.
            if not config.pluginmanager.has_plugin(name):
                config.pluginmanager.register(importlib.import_module(name), name)


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """``-n auto``: more workers than cores in a run with guests; in others xdist decides.

    pytest-xdist asks before plugins are configured (its ``plugin.py``, ``pytest_cmdline_main``), so before
    the second part is loaded.
    """
    if not _wants_guests_at_start(config):
        return None
    # Not at the top: it imports psutil, which a run without guests does not need.
    from harness.plugin import workers

    return workers.workers()


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Load the plugin's second part at once where it is known already that guests are wanted."""
    if _wants_guests_at_start(config):
        _refuse_missing_paths(config)
        activate(config)


def _wants_guests_at_start(config: pytest.Config) -> bool:
    return (any_given(config) or _names_scenarios(config)) and wants_guests(config)


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Load the plugin's second part for the first test that asks for a guest."""
    if asks_for_guest(metafunc.fixturenames) and wants_guests(metafunc.config):
        activate(metafunc.config)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: Any, ids: list[str]) -> None:
    """Load the second part, and provision, before the workers are given their tests."""
    config: pytest.Config = node.config
    asked = any(_DEFAULT_CELL in test.partition("[")[2] for test in ids)
    if asked and not is_active(config) and wants_guests(config):
        activate(config)
        # Not at the top: it imports the rest of the harness.
        from harness.plugin.provisioning import prepare

        prepare(config)


def wants_guests(config: pytest.Config) -> bool:
    """Whether any path of this run lies outside the harness's own tests, which need no guest."""
    own = Path(__file__).parents[1] / "tests"
    return any(not path.is_relative_to(own) for path in _paths(config))


def _names_scenarios(config: pytest.Config) -> bool:
    """Whether a path lies in the project's scenarios, or ``--pyargs`` names their package."""
    try:
        folder = scenarios_folder()
    except UsageError:
        return False
    packages = [arg.split("::")[0].split(".")[0] for arg in config.args]
    return SCENARIOS_PACKAGE in packages or any(path.is_relative_to(folder) for path in _paths(config))


def _refuse_missing_paths(config: pytest.Config) -> None:
    """Refuse a path that does not exist before a QEMU is provisioned, which may take minutes.

    pytest would refuse it later; pytest-xdist's workers run no tests then and give no reason.
    """
    missing = [str(path) for path in _paths(config) if not path.exists()]
    if missing and not config.option.pyargs:
        raise pytest.UsageError(f"file or directory not found: {', '.join(missing)}")


def _paths(config: pytest.Config) -> list[Path]:
    return [Path(config.invocation_params.dir, arg.split("::")[0]).resolve() for arg in config.args]
