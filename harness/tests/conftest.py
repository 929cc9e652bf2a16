"""What all of the harness's own tests share."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from harness.artifacts import Artifacts
from harness.matrix import DEFAULT, Matrix, Selection
from harness.provision import Cache
from harness.reaper import RunFolder
from harness.testbed import Testbed
from harness.tests import fakes
from harness.tests.fakes import World

# The same examples in every run, so that a red run says something about the change;
# --hypothesis-profile=search looks for new ones. No test fails because the machine is slow: by default
# Hypothesis allows 200 ms for an example, and a second for making ten.
UNHURRIED = hypothesis.settings(deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.register_profile("same", UNHURRIED, derandomize=True)
hypothesis.settings.register_profile("search", UNHURRIED, max_examples=3000)
hypothesis.settings.load_profile("same")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Slow tests run only when they are asked for: ``-m slow``."""
    if "slow" in config.getoption("markexpr"):
        return
    for item in items:
        if item.get_closest_marker("slow") is not None:
            item.add_marker(pytest.mark.skip(reason="takes many minutes; run it with -m slow"))


@pytest.fixture(scope="session", autouse=True)
def _deliverable_signals() -> Iterator[None]:
    """Under ``nohup``, or in a script's background, signals are ignored, and every child inherits that."""
    ignored = [n for n in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(n) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.default_int_handler if number is signal.SIGINT else signal.SIG_DFL)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture(scope="session", autouse=True)
def _without_hypothesis() -> Iterator[None]:
    """A pytest that a test starts has no property tests, and importing Hypothesis takes longer than that."""
    given = os.environ.get("PYTEST_ADDOPTS", "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTEST_ADDOPTS", f"-p no:hypothesispytest {given}")
        yield


@pytest.fixture
def machine_type() -> str:
    """Of :func:`testbed`; a file that wants another one overrides it."""
    return "pc"


@pytest.fixture
def testbed(tmp_path: Path, machine_type: str) -> Iterator[Testbed]:
    """For real guests; everything that it starts is ended afterwards."""
    run = RunFolder()
    matrix = Matrix(Selection(machines=(machine_type,), accel="tcg"))
    made = Testbed(matrix.cell(DEFAULT, DEFAULT, machine_type), run, Artifacts.create(tmp_path, "testbed"))
    yield made
    made.close()
    run.close()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A machine and a guest that are stand-ins."""
    made = fakes.world(tmp_path, monkeypatch)
    yield made
    made.machine.history.close()


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """An empty cache."""
    return Cache(tmp_path / "the cache")
