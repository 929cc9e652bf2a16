from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from harness.channel.qtest import Qtest
from harness.ninep.client import RawDriver, RawGuest
from harness.tests.channel.fake_qtest import Answer, FakeQtest, echo
from harness.tests.fakes import World
from harness.tests.qemu.specs import share

Drive = Callable[..., RawDriver]


@pytest.fixture
def fakes() -> list[FakeQtest]:
    """The devices that ``drive`` made."""
    return []


@pytest.fixture
def drive(tmp_path: Path, world: World, fakes: list[FakeQtest]) -> Iterator[Drive]:
    """A driver whose device answers as the test says."""
    made: list[Qtest] = []

    def make(answer: Answer = echo, *, queue_size: int = 128, slot: int = 0, addr: str = "") -> RawDriver:
        path = tmp_path / f"qtest{len(made)}"
        fakes.append(FakeQtest(path, answer=answer, queue_size=queue_size))
        qtest = Qtest(path)
        made.append(qtest)
        guest = SimpleNamespace(qtest=qtest, machine=world.machine)
        options = {"addr": addr} if addr else {}
        return RawDriver(cast(RawGuest, guest), replace(share(), slot=slot, device_options=options))

    yield make
    for fake in fakes:
        fake.close()
    for qtest in made:
        qtest.close()
