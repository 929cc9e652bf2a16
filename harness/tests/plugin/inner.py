"""The conftest of the pytest runs that these tests start: the real plugin over recorded machines.

It replaces the plugin's ``testbed`` by one that launches nothing, and writes what became of each test to
``outcomes.json``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.artifacts import Artifacts
from harness.history import History
from harness.matrix import Matrix
from harness.plugin.fixtures import FOLDER, TESTBED, artifacts_of
from harness.qemu.architectures import X86_64
from harness.testbed import Testbed

pytest_plugins = ["harness.plugin"]


def pytest_configure() -> None:
    """Nothing is provisioned and nothing is probed."""
    qemu = (SimpleNamespace(name="7.2", key="k"), SimpleNamespace(version_text="7.2.22"))
    Matrix.prepare = lambda self: []  # type: ignore[method-assign]
    Matrix.qemu = lambda self, name, architecture=X86_64: cast(Any, qemu)  # type: ignore[method-assign]
    image = SimpleNamespace(name="6.1", kernel_version="6.1.0", key="k")
    Matrix.image = lambda self, name, architecture=X86_64: cast(Any, image)  # type: ignore[method-assign]


class RecordedTestbed:
    """A testbed whose one machine was launched, ran, and quit, as far as the record shows.

    :param launched: whether there was a machine at all.
    """

    def __init__(self, artifacts: Artifacts, *, launched: bool = True) -> None:
        self.artifacts, self.history = artifacts, History(artifacts.history)
        self.returncode, self.asked_to_quit, self.looked = 0, True, True
        self.left: list[str] = []
        self.closed = 0
        self.not_closed = ""
        self.launched = launched
        if not launched:
            return
        for name in ("qemu.log", "qmp.ndjson"):
            (artifacts.folder / name).write_text("")
        (artifacts.folder / "guest-kernel.log").write_text("[ 0.0] Linux version 6.1.0\n")
        value = {"pid": 1, "binary": "qemu", "artifacts": ".", "first": True}
        self.history.note("source", "machine:launch", value)
        self.history.invoke("source", "qmp:device_del", {"id": "share0"}).ok({})

    def dies(self) -> None:
        """QEMU is killed by SIGSEGV while nobody asks it to quit."""
        self.returncode, self.asked_to_quit = -11, False

    def close(self) -> None:
        self.closed += 1
        if self.closed > 1:
            return
        if self.launched:
            self._end()
        if self.looked:
            self.history.note("host", "host:leftovers", {"processes": self.left})
        self.history.note("host", "closed")
        self.history.close()
        if self.not_closed:
            raise ValueError(self.not_closed)

    def _end(self) -> None:
        if self.asked_to_quit:
            self.history.note("source", "machine:expect-exit", {"reason": "quit"})
        self.history.event("source", "machine:exit", {"returncode": self.returncode})


@pytest.fixture
def testbed(request: pytest.FixtureRequest, artifacts_root: Path) -> Iterator[RecordedTestbed]:
    yield from _recorded(request, artifacts_root, launched=True)


@pytest.fixture
def empty_testbed(request: pytest.FixtureRequest, artifacts_root: Path) -> Iterator[RecordedTestbed]:
    yield from _recorded(request, artifacts_root, launched=False)


def _recorded(request: pytest.FixtureRequest, root: Path, *, launched: bool) -> Iterator[RecordedTestbed]:
    artifacts = artifacts_of(request.node, root)
    request.node.stash[FOLDER] = artifacts
    made = RecordedTestbed(artifacts, launched=launched)
    request.node.stash[TESTBED] = cast(Testbed, made)
    yield made
    made.close()


_outcomes: dict[str, dict[str, Any]] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    name = report.nodeid.rpartition("::")[2]
    seen = _outcomes.setdefault(name, {"phases": {}, "first": "", "text": "", "sections": {}})
    seen["phases"][report.when] = "xfailed" if hasattr(report, "wasxfail") else report.outcome
    if report.longrepr:
        text = str(report.longrepr)
        first = re.search(r"^E\s+(.*)$", text, re.MULTILINE)
        seen["first"] = seen["first"] or (first[1] if first else text.splitlines()[-1])
        seen["text"] += text
    seen["sections"] |= dict(report.sections)


def pytest_sessionfinish() -> None:
    Path("outcomes.json").write_text(json.dumps(_outcomes))
