"""How long the end of a stream is waited for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from harness.deadline import TimeoutScale
from harness.qemu import migration_socket
from harness.qemu.machine import Machine
from harness.tests.fakes import world


def test_a_slow_host_has_longer_to_read_the_end_of_a_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed_s: list[float] = []

    class Working:
        def __init__(self, _: Callable[[], None]) -> None:
            pass

        def wait(self, *, timeout_s: float) -> None:
            allowed_s.append(timeout_s)

    monkeypatch.setattr(migration_socket, "Background", Working)
    machine = world(tmp_path, monkeypatch).machine
    machine.timeout_scale = TimeoutScale(18.0, 3.0)
    with migration_socket.stream_to_file(cast(Machine, machine), tmp_path / "stream"):
        pass
    assert allowed_s == [30.0, 30.0]
