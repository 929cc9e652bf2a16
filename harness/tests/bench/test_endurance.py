"""Planted leaks of each kind are found (with real guests: ``cli/test_endurance.py``)."""

from __future__ import annotations

import gc
import itertools
import mmap
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.bench.endurance import LEAST, LIMITS, _per_guest, endure
from harness.errors import SetupError


@pytest.fixture
def kept() -> Iterator[list[object]]:
    """Objects that leak until the test is over."""
    things: list[object] = []
    yield things
    for thing in things:
        if isinstance(thing, socket.socket):
            thing.close()
        if isinstance(thing, threading.Event):
            thing.set()


@pytest.fixture(autouse=True)
def _no_objects_of_other_tests() -> Iterator[None]:
    """Each footprint collects garbage first; that need not look at everything that the test run has."""
    gc.freeze()
    yield
    gc.unfreeze()


def a_thread(kept: list[object]) -> None:
    end = threading.Event()
    kept.append(end)
    threading.Thread(target=end.wait, daemon=True).start()


def a_file(kept: list[object], folder: Path) -> None:
    (folder / str(len(kept))).touch()
    kept.append(None)


def a_block(folder: Path) -> None:
    with (folder / "log").open("ab") as log:
        log.write(b"x" * 4096)


def a_memory_mapping(kept: list[object]) -> None:
    """Not a Python object: Python may have free memory for it, and not grow."""
    memory = mmap.mmap(-1, 65536)
    memory.write(b"x" * 65536)
    kept.append(memory)


PLANTED: dict[str, Callable[[list[object], Path], None]] = {
    "fds": lambda kept, _: kept.append(socket.socket()),
    "threads": lambda kept, _: a_thread(kept),
    "files": a_file,
    "disk_kib": lambda _, folder: a_block(folder),
    "private_kib": lambda kept, _: a_memory_mapping(kept),
}


def test_every_limit_has_a_planted_leak() -> None:
    assert set(PLANTED) == set(LIMITS)


@pytest.mark.parametrize("what", PLANTED)
def test_a_planted_leak_is_found(what: str, kept: list[object], tmp_path: Path) -> None:
    found = endure(lambda: PLANTED[what](kept, tmp_path), tmp_path, 2 * LEAST)
    assert what in [growth.count for growth in found if growth.too_much]


@pytest.mark.parametrize("what", ["fds", "threads", "files"])
def test_what_one_guest_of_eight_leaves_behind_is_found(
    what: str, kept: list[object], tmp_path: Path
) -> None:
    turns = itertools.count(1)

    def turn() -> None:
        if next(turns) % 8 == 0:
            PLANTED[what](kept, tmp_path)

    found = endure(turn, tmp_path, 2 * LEAST)
    assert what in [growth.count for growth in found if growth.too_much]


@pytest.mark.parametrize("first", range(16))
@pytest.mark.parametrize("second", range(16))
def test_memory_that_grows_twice_is_not_a_leak(first: int, second: int) -> None:
    """The fewest guests, 16 after the warm-up: 4 KiB a guest, and twice 200 KiB more."""
    values = [4.0 * number + 200.0 * ((number >= first) + (number >= second)) for number in range(16)]
    assert _per_guest("private_kib", values) == 4.0


def test_guests_without_a_leak(tmp_path: Path) -> None:
    def turn() -> None:
        with socket.socket():
            (tmp_path / "guest").write_bytes(b"x" * 4096)
        (tmp_path / "guest").unlink()

    assert not [growth for growth in endure(turn, tmp_path, 2 * LEAST) if growth.too_much]


def test_too_few_guests(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"^3 guests in one process are too few to measure growth"):
        endure(lambda: None, tmp_path, 3)
