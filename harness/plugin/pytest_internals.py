"""What the plugin uses of pytest beyond its documented API, in one place.

``harness/tests/plugin/test_pytest_internals.py`` fails by name when a version of pytest has changed it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest


def set_files_to_run(config: pytest.Config, parser: pytest.Parser, args: Sequence[str]) -> None:
    """Make pytest look for initial ``conftest.py`` files where ``args`` say, and not where all arguments do.

    ``Config.known_args_namespace`` is what ``Config.pytest_load_initial_conftests`` reads the paths from
    (pytest: ``src/_pytest/config/__init__.py``). Where it is not there, an option's value that is a folder
    may have its ``conftest.py`` loaded; nothing else depends on it.
    """
    known = getattr(config, "known_args_namespace", None)
    if known is not None:
        given = parser.parse_known_args(list(args), namespace=copy.copy(config.option))
        known.file_or_dir = given.file_or_dir
