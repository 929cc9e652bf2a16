"""The next test's guest, born while this test still runs: where the host has a core that no worker needs.

Its lab is the next test's own, with that test's artefacts and history; only its begin is earlier. A test that
has something done to its machines before they start gets its guest when it asks for it, as ever.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator

import pytest

from harness.background import Background, working_for
from harness.errors import HarnessError
from harness.guest.guest import Guest
from harness.plugin import cgroup
from harness.testbed import Lab

#: What a test may ask for that has a say in how its machine is started.
_MAKES_A_DIFFERENCE = frozenset({"hold", "peer", "peers", "variant", "leak_hunt", "raw_guest"})
#: The plugin's own, by which an ordinary guest is made.
_ORDINARY = ("cell", "lab", "shares", "guest")
_BIRTH_TIMEOUT_S = 600.0
#: A guest's memory, and what QEMU needs itself.
_MACHINE_BYTES = 450 << 20
_NEXT = pytest.StashKey[pytest.Item | None]()


class Ahead:
    """A test's lab, whose guest is being born."""

    def __init__(self, lab: Lab, *, cold: bool) -> None:
        self.lab = lab
        self._spec = lab.spec()
        with working_for(lab.history):
            self._birth = Background(lambda: self._bear(cold=cold))

    def _bear(self, *, cold: bool) -> Guest:
        guest = self.lab.boot(self._spec, cold=cold)
        guest.warm_up()
        return guest

    def settle(self) -> None:
        """Wait until it is born, or not going to be."""
        with contextlib.suppress(Exception):
            self._birth.wait(timeout_s=_BIRTH_TIMEOUT_S)

    def guest(self) -> Guest:
        """The guest, as :meth:`Lab.boot` returns it; what that raised is raised.

        :raises HarnessError: when the lab has become another since.
        """
        guest = self._birth.wait(timeout_s=_BIRTH_TIMEOUT_S)
        if self.lab.spec() != self._spec:
            raise HarnessError("the lab was changed after its guest had been begun; do that in 'shares'")
        return guest

    def discard(self) -> None:
        """The test will not come."""
        try:
            self.settle()
        finally:
            self.lab.close()
            self.lab.artifacts.discard()


class Nursery:
    """The one lab that is prepared, and for which test."""

    def __init__(self) -> None:
        self._prepared: tuple[str, Ahead] | None = None

    def begin(self, test: str, make: Callable[[], Ahead]) -> None:
        """Prepare a lab for ``test``, and for no other."""
        self.discard()
        self._prepared = test, make()

    def take(self, test: str) -> Ahead | None:
        """What was prepared for ``test``; if that is for another test, it is forgotten."""
        if self._prepared is None or self._prepared[0] != test:
            self.discard()
            return None
        (_, ahead), self._prepared = self._prepared, None
        return ahead

    def discard(self) -> None:
        """Forget what is prepared; idempotent."""
        prepared, self._prepared = self._prepared, None
        if prepared is not None:
            prepared[1].discard()


NURSERY = pytest.StashKey[Nursery]()


def pytest_configure(config: pytest.Config) -> None:
    """Nothing is prepared yet."""
    config.stash[NURSERY] = Nursery()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Generator[None, object, object]:
    """Remember which test comes next."""
    item.stash[_NEXT] = nextitem
    return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Before the last test's end is the session's: what was prepared for one that did not come goes."""
    if nextitem is None:
        item.config.stash[NURSERY].discard()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """The same when the session was broken off: its fixtures still stand."""
    session.config.stash[NURSERY].discard()


def next_test(item: pytest.Item) -> pytest.Function | None:
    """The test after ``item``, if its guest can be begun now."""
    following = item.stash.get(_NEXT, None)
    if (
        isinstance(following, pytest.Function)
        and has_a_core_to_spare()
        and wants_an_ordinary_guest(following)
    ):
        return following
    return None


def has_a_core_to_spare() -> bool:
    """Whether there are more cores than workers of pytest-xdist, or than the one process without them.

    And memory for a machine more for each: it may be what keeps the workers few.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    room = cgroup.available_bytes() // workers > _MACHINE_BYTES
    return room and workers < cgroup.cores()


def wants_an_ordinary_guest(item: pytest.Function) -> bool:
    """Whether a test's ``guest`` is the plugin's, on a machine that nothing the test asks for changes."""
    names = set(item.fixturenames)
    if "guest" not in names or names & _MAKES_A_DIFFERENCE or item.get_closest_marker("skip"):
        return False
    known = item._fixtureinfo.name2fixturedefs
    return all(_is_ours(known[name][-1]) for name in _ORDINARY if name in known)


def _is_ours(fixture: pytest.FixtureDef[object]) -> bool:
    return fixture.func.__module__ == "harness.plugin.fixtures"
