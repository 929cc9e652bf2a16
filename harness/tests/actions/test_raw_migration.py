from __future__ import annotations

from pathlib import Path

import pytest

from harness.actions.raw_migration import (
    cancel,
    expect_load_fails,
    load_stream,
    load_stream_or_fail,
    migrate_raw,
    migrate_to_the_pause,
    save_stream,
    switch_over,
)
from harness.errors import Violation
from harness.ninep.client import RawDriver, RawGuest
from harness.testbed import Testbed

pytestmark = pytest.mark.qemu


@pytest.fixture
def raw(testbed: Testbed) -> RawGuest:
    return RawGuest(testbed)


@pytest.fixture
def driver(testbed: Testbed, raw: RawGuest) -> RawDriver:
    made = raw.plug(testbed.shares[0])
    made.version()
    return made


def test_a_device_and_its_driver_go_on_where_they_arrive(raw: RawGuest, driver: RawDriver) -> None:
    assert driver.acknowledge()
    before = driver.registers()
    assert before["mount tag"] == driver.share.mount_tag
    assert before["queue's size"] == 128
    arrived, (moved,) = migrate_raw(raw, driver)
    assert not raw.machine.running
    assert arrived.machine.name == "destination-1"
    assert moved.registers() == before
    assert not moved.acknowledge()
    moved.version()
    assert moved.answered() == driver._sent + 1
    moved.reset()
    assert moved.registers() != before


def test_a_broken_device_is_silent_until_it_is_reset(raw: RawGuest, driver: RawDriver) -> None:
    driver.break_device()
    answered = driver.answered()
    with pytest.raises(Violation, match="1 requests were answered, expected 2"):
        driver.expect_answered(answered + 1)
    again = raw.driver(driver.share)
    again.version()
    assert again.answered() == 1


def test_a_whole_stream_is_loaded(raw: RawGuest, driver: RawDriver, tmp_path: Path) -> None:
    path = tmp_path / "stream"
    save_stream(raw, path)
    with pytest.raises(Violation, match="destination-1 is prelaunch, but has to fail to load"):
        expect_load_fails(raw, path)
    path.write_bytes(path.read_bytes()[:1000])
    assert expect_load_fails(raw, path)


def test_a_stream_may_be_loaded_or_refused(raw: RawGuest, driver: RawDriver, tmp_path: Path) -> None:
    path = tmp_path / "stream"
    save_stream(raw, path)
    loaded = load_stream_or_fail(raw, path)
    assert loaded is not None
    loaded.driver(driver.share).version()
    path.write_bytes(path.read_bytes()[:1000])
    assert load_stream_or_fail(raw, path) is None


def test_a_stream_is_loaded_more_than_once(raw: RawGuest, driver: RawDriver, tmp_path: Path) -> None:
    save_stream(raw, tmp_path / "stream")
    for name in ("destination-1", "destination-2"):
        assert load_stream(raw, tmp_path / "stream").machine.name == name


def test_the_pause_before_the_switchover(raw: RawGuest, driver: RawDriver) -> None:
    before = driver.registers()
    arrived = switch_over(raw, migrate_to_the_pause(raw))
    assert driver.moved_to(arrived).registers() == before


def test_the_pause_is_cancelled(raw: RawGuest, driver: RawDriver) -> None:
    destination = migrate_to_the_pause(raw)
    cancel(raw, destination)
    assert destination.machine.returncode == 1
    driver.version()
