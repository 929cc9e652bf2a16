"""The folder of a run's artefacts. All workers of the run share it, and no other run writes to it."""

from __future__ import annotations

import contextlib
import fcntl
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from harness.plugin.activation import is_active
from harness.plugin.options import is_worker, option

ROOT = pytest.StashKey[Path]()
_LOCK = pytest.StashKey[int]()
_WORKER_KEY = "harness_artifacts_root"


def pytest_configure(config: pytest.Config) -> None:
    """Choose the folder of the run's artefacts. It is made when a test needs it."""
    worker = getattr(config, "workerinput", None)
    config.stash[ROOT] = Path(worker[_WORKER_KEY]) if worker else _chosen(config)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Send a worker of pytest-xdist the folder of this run's artefacts."""
    node.workerinput[_WORKER_KEY] = str(node.config.stash[ROOT])


def pytest_sessionstart(session: pytest.Session) -> None:
    """Refuse a ``--artifacts`` folder that another run is writing to."""
    config = session.config
    if is_worker(config) or option(config, "artifacts") is None:
        return
    root = config.stash[ROOT]
    try:
        root.mkdir(parents=True, exist_ok=True)
        config.stash[_LOCK] = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(config.stash[_LOCK], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise pytest.UsageError(
            f"--artifacts {root}: another run is writing there; give another folder"
        ) from None
    except OSError as exc:
        raise pytest.UsageError(f"--artifacts {root}: {exc.strerror}") from None


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the folder of the run's artefacts if it is empty; point ``latest`` at it otherwise."""
    descriptor = config.stash.get(_LOCK, None)
    if descriptor is not None:
        os.close(descriptor)
    if not is_active(config) or is_worker(config) or option(config, "artifacts") is not None:
        return
    root = config.stash[ROOT]
    with contextlib.suppress(OSError):
        root.rmdir()
    with contextlib.suppress(OSError):
        if root.exists():
            partial = root.parent / f".latest-{os.getpid()}"
            partial.symlink_to(root.name)
            partial.replace(root.parent / "latest")
        else:
            root.parent.rmdir()


def _chosen(config: pytest.Config) -> Path:
    given = option(config, "artifacts")
    if given:
        return Path(config.invocation_params.dir, given)
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return config.rootpath / "artifacts" / f"{stamp}-{os.getpid()}"
