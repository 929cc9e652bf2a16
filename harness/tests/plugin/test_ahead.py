"""Which tests' guests are begun ahead, and what becomes of those that nobody takes."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from harness.background import owner_of
from harness.errors import GuestError, HarnessError
from harness.plugin import ahead
from harness.plugin.ahead import Ahead, Nursery, has_a_core_to_spare
from harness.testbed import Lab
from harness.tests.plugin.conftest import Pytest


@dataclass
class _Guest:
    log: list[str]

    def warm_up(self) -> None:
        self.log.append("warm")


@dataclass
class _Lab:
    """A lab whose guest is born when it may be."""

    may_go_on: threading.Event = field(default_factory=threading.Event)
    fails: bool = False
    machine: str = "pc"
    log: list[str] = field(default_factory=list)
    history: object = "a history"

    def spec(self) -> str:
        return self.machine

    def boot(self, spec: str, *, cold: bool) -> _Guest:
        assert self.may_go_on.wait(60)
        self.log.append(f"born of {spec}, cold: {cold}")
        if self.fails:
            raise GuestError("it never booted")
        return _Guest(self.log)

    def close(self) -> None:
        self.log.append("closed")

    @property
    def artifacts(self) -> _Lab:
        return self

    def discard(self) -> None:
        self.log.append("artefacts discarded")


def _begin(lab: _Lab, *, cold: bool = False) -> Ahead:
    return Ahead(cast(Lab, lab), cold=cold)


def test_the_thread_in_which_a_guest_is_begun_works_for_its_lab() -> None:
    """So the lab of the test before does not take it for a thread that its own test left behind."""
    lab, before = _Lab(), set(threading.enumerate())
    ahead = _begin(lab)
    (thread,) = set(threading.enumerate()) - before
    assert owner_of(thread) is lab.history
    lab.may_go_on.set()
    ahead.settle()


def test_the_test_gets_the_guest_that_was_begun() -> None:
    lab, nursery = _Lab(), Nursery()
    nursery.begin("a", lambda: _begin(lab, cold=True))
    taken = nursery.take("a")
    assert taken is not None
    lab.may_go_on.set()
    assert cast(Any, taken.guest()) == _Guest(lab.log)
    assert nursery.take("a") is None
    nursery.discard()
    assert lab.log == ["born of pc, cold: True", "warm"]


def test_what_went_wrong_is_told_when_the_guest_is_asked_for() -> None:
    lab = _Lab(fails=True)
    lab.may_go_on.set()
    begun = _begin(lab)
    begun.settle()
    with pytest.raises(GuestError, match="never booted"):
        begun.guest()


def test_a_lab_that_has_become_another() -> None:
    lab = _Lab()
    lab.may_go_on.set()
    begun = _begin(lab)
    lab.machine = "q35"
    with pytest.raises(HarnessError, match="was changed after its guest had been begun"):
        begun.guest()


@pytest.mark.parametrize(
    "otherwise",
    [
        lambda nursery: nursery.take("b"),
        lambda nursery: nursery.begin("b", lambda: _begin(_Lab())),
        lambda nursery: nursery.discard(),
    ],
)
def test_nobody_takes_it(otherwise: Callable[[Nursery], object]) -> None:
    """It is ended only when it is born: a machine that starts meanwhile would be nobody's."""
    lab, nursery = _Lab(), Nursery()
    nursery.begin("a", lambda: _begin(lab))
    threading.Timer(0.2, lab.may_go_on.set).start()
    otherwise(nursery)
    assert lab.log == ["born of pc, cold: False", "warm", "closed", "artefacts discarded"]


@pytest.mark.parametrize(
    ("cores", "workers", "spare"), [(2, None, True), (1, None, False), (4, "4", False), (8, "4", True)]
)
def test_only_where_a_core_is_idle(
    monkeypatch: pytest.MonkeyPatch, cores: int, workers: str | None, *, spare: bool
) -> None:
    monkeypatch.setattr("harness.plugin.cgroup.cores", lambda: cores)
    monkeypatch.delenv("PYTEST_XDIST_WORKER_COUNT", raising=False)
    if workers is not None:
        monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", workers)
    assert has_a_core_to_spare() is spare


_SCENARIOS = """
import pytest

def test_ordinary(guest): ...
def test_with_hotplug(hotplug, share, migration): ...
def test_without_a_guest(lab): ...
def test_held(guest, hold): ...
def test_of_a_kind(guest, variant): ...
@pytest.mark.skip
def test_skipped(guest): ...
@pytest.mark.cold
def test_cold(guest): ...

class TestOwnShares:
    @pytest.fixture
    def shares(self, lab):
        return lab.declare()

    def test_declares(self, guest, shares): ...
"""
_CONFTEST = """
import json
from pathlib import Path
from harness.plugin.ahead import wants_an_ordinary_guest
pytest_plugins = ["harness.plugin"]

def pytest_collection_finish(session):
    found = {item.originalname: wants_an_ordinary_guest(item) for item in session.items}
    Path("wanted.json").write_text(json.dumps(found))
"""


def test_whose_guest_is_an_ordinary_one(tmp_path: Path, run_pytest: Pytest) -> None:
    (tmp_path / "conftest.py").write_text(_CONFTEST)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_it.py").write_text(_SCENARIOS)
    run_pytest(tmp_path, "--collect-only", "--machine", "pc")
    wanted = json.loads((tmp_path / "wanted.json").read_text())
    assert {name for name, ordinary in wanted.items() if ordinary} == {
        "test_ordinary",
        "test_with_hotplug",
        "test_cold",
    }
    assert len(wanted) == 8


def test_what_makes_a_difference_are_fixtures() -> None:
    """Each is a fixture of the plugin: a name that is none would let such a test through."""
    from harness.plugin import fixtures

    assert all(hasattr(fixtures, name) for name in ahead._MAKES_A_DIFFERENCE)


_RUN = """
import json, os
from pathlib import Path
from types import SimpleNamespace

import pytest
from harness.matrix import Matrix
from harness.plugin import cgroup, fixtures, judging

pytest_plugins = ["harness.plugin"]
Matrix.prepare = lambda self: []
Matrix.cell = lambda self, *names: names
Matrix.qemu = lambda self, name: (None, SimpleNamespace(version_text="7.2.22"))
Matrix.image = lambda self, name: SimpleNamespace(kernel_version="6.1.0", key="k")
cgroup.cores = lambda: 2
judging.judge = lambda folder: []
made = []

class Lab:
    shares, closed = (), False
    history = SimpleNamespace(note=lambda *args: None, check=lambda: None)

    def __init__(self, cell, run, artifacts):
        self.run, self.artifacts = run, artifacts
        made.append(self)

    def begin_test(self):
        pass

    def spec(self):
        return "as ever"

    def boot(self, spec=None, *, cold=False):
        return SimpleNamespace(lab=self, warm_up=lambda: None)

    def close(self):
        self.closed = True

fixtures.Lab = Lab

@pytest.fixture
def labs():
    return made

@pytest.hookimpl(trylast=True)
def pytest_sessionfinish():
    told = [[lab.artifacts.folder.name, lab.closed, lab.artifacts.folder.exists()] for lab in made]
    Path("labs.json").write_text(json.dumps(told))
"""
_THREE = """
def test_a(guest, labs):
    assert [guest.lab] == labs[:1] and len(labs) == 2

def test_b(guest, labs):
    assert [guest.lab] == labs[1:2] and len(labs) == 3

def test_c(guest, labs):
    assert [guest.lab] == labs[2:]
"""


def _run(folder: Path, run_pytest: Pytest, scenarios: str, *options: str) -> tuple[str, list[list[Any]]]:
    (folder / "conftest.py").write_text(_RUN)
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "test_it.py").write_text(scenarios)
    done = run_pytest(folder, "--machine", "pc", "--artifacts", "out", "--keep-artifacts", *options)
    return done.stdout + done.stderr, json.loads((folder / "labs.json").read_text())


def test_each_test_gets_the_lab_that_was_begun_during_the_one_before(
    tmp_path: Path, run_pytest: Pytest
) -> None:
    said, labs = _run(tmp_path, run_pytest, _THREE)
    assert "3 passed" in said
    assert [[name[:15], *rest] for name, *rest in labs] == [
        [f"test_it.test_{test}-", True, True] for test in "abc"
    ]


def test_a_test_that_does_not_come_leaves_nothing(tmp_path: Path, run_pytest: Pytest) -> None:
    said, labs = _run(tmp_path, run_pytest, _THREE.replace("len(labs) == 2", "False"), "-x")
    assert "1 failed" in said
    assert [rest for _, *rest in labs] == [[True, True], [True, False]]
