from __future__ import annotations

from typing import Any

import pytest

from harness.actions.migration import blocked_reason
from harness.actions.snapshot import Snapshot
from harness.errors import QemuError, Unsupported, Violation, WaitTimeout
from harness.tests.fakes import World

_NO_DEVICE = "No block device can store vmstate for snapshot"


def _job(world: World, *statuses: str, error: str | None = None) -> None:
    """Both jobs are accepted; their status goes through ``statuses``."""
    asked: list[str] = []

    def started(arguments: dict[str, Any]) -> dict[str, Any]:
        asked.append(arguments["job-id"])
        return {}

    def answer(status: str) -> Any:
        failed = {"error": error} if error and status == "concluded" else {}
        other = {"id": "another", "status": "concluded", "error": "not ours"}
        return lambda _: [other, {"id": asked[-1], "status": status, **failed}]

    for command in ("snapshot-save", "snapshot-load"):
        world.qmp.on(command, started)
    world.qmp.on("query-jobs", *(answer(status) for status in statuses))
    world.qmp.on("job-dismiss", {})


@pytest.fixture(autouse=True)
def running(world: World) -> None:
    world.qmp.on("query-status", {"status": "running"})


def _hmp(world: World, printed: str) -> None:
    world.qmp.on("human-monitor-command", printed)


def test_savevm_succeeds_without_a_word(world: World) -> None:
    _hmp(world, "")
    Snapshot(world.guest).savevm("a")
    assert world.qmp.sent == [("human-monitor-command", {"command-line": "savevm a"})]


def test_what_hmp_prints_is_a_refusal(world: World) -> None:
    _hmp(world, f"Error: {_NO_DEVICE}\r\n")
    with pytest.raises(QemuError) as caught:
        Snapshot(world.guest).savevm("a")
    assert caught.value.message == f"QEMU 'source' refused savevm a: {_NO_DEVICE}"
    assert caught.value.desc == _NO_DEVICE


@pytest.mark.parametrize("load", ["loadvm", "snapshot_load"])
def test_after_a_load_the_guest_is_asked_over_a_new_connection(world: World, load: str) -> None:
    """The guest's end of the old connection is in a past that the host's end never saw."""
    _hmp(world, "")
    _job(world, "concluded")
    world.ssh.on("^true$", "")
    world.guest.succeed("true")
    getattr(Snapshot(world.guest), load)("a")
    assert world.ssh.closed == 1
    assert world.ssh.commands == ["true", "true"]


def test_a_job_is_awaited_and_dismissed(world: World) -> None:
    _job(world, "created", "running", "concluded")
    Snapshot(world.guest).snapshot_save("a")
    assert world.qmp.commands == ["snapshot-save", "query-jobs", "query-jobs", "query-jobs", "job-dismiss"]
    arguments = world.qmp.sent[0][1]
    assert (arguments["tag"], arguments["vmstate"], arguments["devices"]) == ("a", "disk0", ["disk0"])
    assert world.qmp.sent[-1][1] == {"id": arguments["job-id"]}


def test_a_job_that_fails_is_a_refusal_and_dismissed_too(world: World) -> None:
    _job(world, "concluded", error="it broke")
    with pytest.raises(QemuError, match=r"^QEMU 'source' refused snapshot-save: it broke"):
        Snapshot(world.guest).snapshot_save("a")
    assert world.qmp.commands[-1] == "job-dismiss"


def test_a_job_that_never_ends(world: World) -> None:
    _job(world, "running")
    world.impatient()
    with pytest.raises(WaitTimeout, match=r"for the job snapshot-save-a to conclude"):
        Snapshot(world.guest).snapshot_save("a")


def test_refused_by_the_mounted_share(world: World) -> None:
    reason = blocked_reason(world.share)
    _hmp(world, f"Error: {reason}\r\n")
    _job(world, "concluded", error=reason)
    Snapshot(world.guest).expect_refused(world.share)
    assert {"human-monitor-command", "snapshot-save"} <= set(world.qmp.commands)


@pytest.mark.parametrize("through", ["savevm", "snapshot_save"])
def test_refused_and_the_guest_stands_still(world: World, through: str) -> None:
    reason = blocked_reason(world.share)
    _hmp(world, f"Error: {reason}\r\n")
    _job(world, "concluded", error=reason)
    world.qmp.on(
        "query-status", *({"status": s} for s in ["running"] * (through == "snapshot_save") + ["paused"])
    )
    with pytest.raises(Violation, match=rf"^{through} was refused, but left the guest paused$"):
        Snapshot(world.guest).expect_refused(world.share)


@pytest.mark.parametrize("accepted", ["savevm", "snapshot_save"])
def test_accepted_while_mounted(world: World, accepted: str) -> None:
    reason = blocked_reason(world.share)
    _hmp(world, "" if accepted == "savevm" else f"Error: {reason}")
    _job(world, "concluded", error=None if accepted == "snapshot_save" else reason)
    with pytest.raises(Violation, match=rf"^{accepted} was accepted while 'tag0' was mounted$"):
        Snapshot(world.guest).expect_refused(world.share)


@pytest.mark.parametrize("other", [_NO_DEVICE, "Device 'drive0' is writable but does not support snapshots"])
@pytest.mark.parametrize("through", ["savevm", "job"])
def test_another_reason_is_not_taken_for_the_blocker(world: World, other: str, through: str) -> None:
    reason = blocked_reason(world.share)
    _hmp(world, f"Error: {other if through == 'savevm' else reason}")
    _job(world, "concluded", error=other if through == "job" else reason)
    with pytest.raises(Violation, match=f"refused for another reason than the mounted 'tag0': {other}"):
        Snapshot(world.guest).expect_refused(world.share)


def test_a_qemu_without_the_jobs(world: World) -> None:
    error = QemuError("source", {}, {"class": "CommandNotFound", "desc": "none"}, "none")
    world.qmp.on("snapshot-save", error)
    world.qmp.on("human-monitor-command", f"Error: {blocked_reason(world.share)}")
    with pytest.raises(Unsupported, match="no snapshot-save job"):
        Snapshot(world.guest).snapshot_save("tag")
    Snapshot(world.guest).expect_refused(world.share)
    assert len(world.notes("snapshot:no-job")) == 1
