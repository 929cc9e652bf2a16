from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from harness.actions import migration as actions_migration
from harness.actions.migration import Migration, blocked_reason
from harness.actions.stream import STREAMS
from harness.deadline import TimeoutScale
from harness.errors import QemuDied, QemuError, Unsupported, Violation, WaitTimeout
from harness.qemu import blockers
from harness.qemu.machine import Machine
from harness.qemu.schema import knows_file_uris
from harness.testbed import Testbed
from harness.tests import fakes
from harness.tests.fakes import FakeMachine, World

_DEVICES, _ONE_DEVICE = "mount_tag.*config", "tag0 f41a0910\n"
_OTHER = "State blocked by non-migratable device '0000:00:05.0/nvme'"


class _Testbed:
    """Launches the one destination that was prepared for it."""

    def __init__(self, world: World, destination: FakeMachine) -> None:
        self.history = world.machine.history
        self.destination = destination

    def launch_destination(self, source: Any, change: Any) -> FakeMachine:
        assert source.name == "source"
        assert change(self.destination.spec) is self.destination.spec
        return self.destination


@pytest.fixture
def destination(world: World, tmp_path: Path) -> FakeMachine:
    """A destination at which everything arrives."""
    made = fakes.machine(tmp_path, replace(world.machine.spec, name="destination-1"), world.machine.history)
    made.qmp.on("migrate-incoming", {})
    made.qmp.on("query-status", {"status": "inmigrate"}, {"status": "running"})
    return made


@pytest.fixture
def migration(world: World, destination: FakeMachine) -> Migration:
    """A source that migrates when it is asked to."""
    world.qmp.on("migrate-set-parameters", {})
    world.qmp.on("migrate", {})
    world.qmp.on("query-migrate", {}, {"status": "active"}, {"status": "completed"})
    world.ssh.on("^true$", "")
    world.ssh.on(_DEVICES, _ONE_DEVICE)
    return Migration(world.guest, cast(Testbed, _Testbed(world, destination)))


@pytest.fixture(autouse=True)
def version(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A QEMU whose ``query-migrate`` has ``blocked-reasons``."""
    monkeypatch.setattr(blockers, "_VERSIONS", {})
    world.qmp.on("query-version", {"qemu": {"major": 7, "minor": 2, "micro": 0}})


def _blocked(world: World, *reasons: str) -> None:
    world.qmp.on("query-migrate", {"blocked-reasons": list(reasons)} if reasons else {})


# Migrating


def test_the_guest_goes_on_in_the_destination(
    world: World, migration: Migration, destination: FakeMachine
) -> None:
    world.guest.succeed("true")
    migration.migrate()
    assert world.guest.machine is cast(Any, destination)
    assert world.guest.actor == "guest:destination-1"
    assert world.ssh.closed == 1
    assert world.machine.quitted
    assert not destination.quitted
    incoming, outgoing = (dict(q.sent) for q in (destination.qmp, world.qmp))
    assert incoming["migrate-incoming"]["uri"] == outgoing["migrate"]["uri"]
    assert world.notes("migrate")[-1].kind.value == "ok"


def test_migrate_refused(world: World, migration: Migration) -> None:
    world.qmp.refuse("migrate", blocked_reason(world.share))
    with pytest.raises(QemuError, match=r"^QEMU 'source' refused migrate: Migration is disabled when VirtFS"):
        migration.migrate()
    assert world.guest.machine is cast(Any, world.machine)
    assert not world.machine.quitted
    assert world.notes("migrate")[-1].kind.value == "fail"


@pytest.mark.parametrize("status", ["failed", "cancelled"])
def test_a_migration_that_fails_says_why(world: World, migration: Migration, status: str) -> None:
    why = "Unknown savevm section or instance '0000:00:10.0/virtio-9p' 0"
    world.qmp.on("query-migrate", {"status": "active"}, {"status": status, "error-desc": why})
    with pytest.raises(Violation, match=f"^the migration of source {status}: {why}$"):
        migration.migrate()
    assert world.guest.machine is cast(Any, world.machine)


def test_a_destination_that_dies_is_named_first(
    world: World, migration: Migration, destination: FakeMachine
) -> None:
    def dies(_: Any) -> dict[str, Any]:
        destination.death = QemuDied("QEMU 'destination-1' exited with 1: Unknown savevm section")
        return {"status": "active"}

    world.qmp.on("query-migrate", dies)
    with pytest.raises(QemuDied, match="destination-1"):
        migration.migrate()


def test_a_destination_that_dies_of_the_stream_is_the_cause_of_the_failure(
    world: World, migration: Migration, destination: FakeMachine
) -> None:
    """The source only knows of a broken pipe; the destination's last words are the cause."""

    def dies(_: Any) -> dict[str, Any]:
        destination.death = QemuDied("QEMU 'destination-1' exited with 1: Unknown savevm section")
        return {"status": "failed", "error-desc": "Unable to write to socket: Broken pipe"}

    world.qmp.on("query-migrate", dies)
    with pytest.raises(QemuDied, match="Unknown savevm section"):
        migration.migrate()


def test_a_migration_that_never_ends(world: World, migration: Migration) -> None:
    world.qmp.on("query-migrate", {"status": "active"})
    world.impatient()
    with pytest.raises(WaitTimeout, match=r"for the migration of source to complete"):
        migration.migrate()


def test_a_destination_that_never_runs(world: World, migration: Migration, destination: FakeMachine) -> None:
    destination.qmp.on("query-status", {"status": "paused"})
    destination.timeout_scale = TimeoutScale(0.0)
    with pytest.raises(WaitTimeout, match=r"for destination-1 to be running"):
        migration.migrate()
    assert not world.machine.quitted


def test_completed_and_the_guest_does_not_answer(world: World, migration: Migration) -> None:
    world.ssh.on(_DEVICES, _ONE_DEVICE, (1, "", "no"))
    with pytest.raises(Exception, match="guest:destination-1"):
        migration.migrate()
    assert not world.machine.quitted
    assert world.notes("migrate")[-1].kind.value != "ok"


@pytest.mark.parametrize("found", ["", "tag0 ffffffff\n", "tag0 f41a0910\ntag1 f41a0910\n"])
def test_the_guest_finds_other_devices_where_it_arrives(
    world: World, migration: Migration, found: str
) -> None:
    world.ssh.on(_DEVICES, _ONE_DEVICE, found)
    why = r"^the guest has other 9p devices in destination-1 than in source$"
    with pytest.raises(Violation, match=rf"(?m){why}") as caught:
        migration.migrate()
    assert found in caught.value.details


@pytest.mark.parametrize("completed", [True, False])
def test_what_is_observed_of_a_migration(
    world: World, migration: Migration, completed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    outgoing = migration.request_migrate()
    world.qmp.on("query-migrate", {"status": "completed" if completed else "active"})
    windows: list[float] = []

    def check_during(window_s: float, check: Any, until: Any) -> None:
        check()
        windows.append(window_s)
        assert until() is completed

    monkeypatch.setattr(actions_migration, "check_during", check_during)
    world.machine.timeout_scale = TimeoutScale(6.0)
    asked: list[None] = []
    assert outgoing.observe(while_=lambda: asked.append(None), window_s=0.5) is completed
    assert (len(asked), windows) == (2, [3.0])


# Other ways, and destinations


def test_a_capability_that_qemu_lacks_is_unsupported(world: World, migration: Migration) -> None:
    world.qmp.refuse("migrate-set-capabilities", "Postcopy is not supported")
    why = r"^postcopy: source has no .*: Postcopy is not supported$"
    with pytest.raises(Unsupported, match=why):
        migration.migrate(STREAMS["postcopy"])
    assert "migrate" not in world.qmp.commands


def test_capabilities_are_switched_on_in_both(
    world: World, migration: Migration, destination: FakeMachine
) -> None:
    for qmp in (world.qmp, destination.qmp):
        qmp.on("migrate-set-capabilities", {})
    migration.migrate(STREAMS["multifd"])
    wanted = {"capabilities": [{"capability": "multifd", "state": True}]}
    assert all(dict(q.sent)["migrate-set-capabilities"] == wanted for q in (world.qmp, destination.qmp))


def test_a_port_that_qemu_does_not_report(migration: Migration, destination: FakeMachine) -> None:
    destination.qmp.on("query-migrate", {"status": "setup"})
    with pytest.raises(Unsupported, match="tcp: this QEMU does not report the port"):
        migration.migrate(STREAMS["tcp"])


def test_a_file_is_read_when_it_is_complete(
    world: World, migration: Migration, destination: FakeMachine
) -> None:
    def begins(_: Any) -> dict[str, Any]:
        assert world.qmp.commands.count("query-migrate") == 3
        return {}

    def written(_: Any) -> dict[str, Any]:
        (world.machine.folder / "stream").touch()
        return {}

    world.qmp.on("migrate", written)
    destination.qmp.on("migrate-incoming", begins)
    migration.migrate(STREAMS["exec"])
    assert dict(world.qmp.sent)["migrate"]["uri"].startswith("exec:cat > ")
    assert dict(destination.qmp.sent)["migrate-incoming"]["uri"].startswith("exec:cat /")


@pytest.mark.parametrize(
    ("values", "known"), [(["socket", "exec", "rdma"], False), (["socket", "exec", "rdma", "file"], True)]
)
def test_file_uris_are_asked_of_the_schema(world: World, values: list[str], known: bool) -> None:
    schema = [{"meta-type": "object", "members": []}, {"meta-type": "enum", "values": values}]
    world.qmp.on("query-qmp-schema", schema)
    assert knows_file_uris(cast(Machine, world.machine)) is known


def test_a_qemu_without_a_schema_knows_no_file_uris(world: World) -> None:
    """QEMU 2.4 has no such command."""
    command = "query-qmp-schema"
    error = {"class": "CommandNotFound", "desc": f"The command {command} has not been found"}
    world.qmp.on(command, QemuError("source", {"execute": command}, error, error["desc"]))
    assert knows_file_uris(cast(Machine, world.machine)) is False


def test_a_destination_that_cannot_load(world: World, migration: Migration, destination: FakeMachine) -> None:
    def gives_up(_: Any) -> dict[str, Any]:
        destination.artifacts.qemu.write_text("Unknown savevm section\n")
        destination.quitted = True
        return {}

    world.qmp.on("migrate", gives_up)
    world.qmp.on("query-migrate", {"status": "failed"})
    world.qmp.on("cont", {})
    assert migration.expect_not_loaded(lambda spec: spec) == "Unknown savevm section"
    assert world.guest.machine is cast(Any, world.machine)
    destination.returncode = -6
    with pytest.raises(
        Violation, match=r"^destination-1 failed to load its stream and exited with -6, not 1$"
    ):
        migration.expect_not_loaded(lambda spec: spec)


def test_a_destination_that_should_not_have_loaded(
    world: World, migration: Migration, destination: FakeMachine
) -> None:
    destination.qmp.on("query-status", {"status": "running"})
    with pytest.raises(Violation, match="destination-1 is running, but has to fail to load"):
        migration.expect_not_loaded(lambda spec: spec)


def _gives_up(destination: FakeMachine, returncode: int = 1) -> dict[str, Any]:
    destination.artifacts.qemu.write_text("load of migration failed\n")
    destination.quitted, destination.returncode = True, returncode
    return {}


def test_a_migration_that_is_cancelled(world: World, migration: Migration, destination: FakeMachine) -> None:
    outgoing = migration.request_migrate()
    world.qmp.on("migrate_cancel", lambda _: _gives_up(destination))
    world.qmp.on("query-migrate", {"status": "cancelling"}, {"status": "cancelled"})
    outgoing.cancel()
    assert world.guest.machine is cast(Any, world.machine)


def test_a_destination_that_crashes_of_a_cancel(
    world: World, migration: Migration, destination: FakeMachine
) -> None:
    outgoing = migration.request_migrate()
    world.qmp.on("migrate_cancel", lambda _: _gives_up(destination, -6))
    world.qmp.on("query-migrate", {"status": "cancelled"})
    with pytest.raises(Violation, match="destination-1 failed to load its stream and exited with -6, not 1"):
        outgoing.cancel()


def test_a_destination_that_runs_though_it_was_cancelled(
    world: World, migration: Migration, destination: FakeMachine
) -> None:
    outgoing = migration.request_migrate()
    world.qmp.on("migrate_cancel", {})
    world.qmp.on("query-migrate", {"status": "cancelled"})
    destination.qmp.on("query-status", {"status": "running"})
    with pytest.raises(Violation, match="destination-1 is running, but has to fail to load"):
        outgoing.cancel()


def _switched(world: World) -> list[bool]:
    sent = [sent for command, sent in world.qmp.sent if command == "migrate-set-capabilities"]
    return [arguments["capabilities"][0]["state"] for arguments in sent]


def test_the_pause_before_the_switchover_is_cancelled_at_its_end(
    world: World, migration: Migration, destination: FakeMachine
) -> None:
    world.qmp.on("migrate-set-capabilities", {})
    world.qmp.on("query-migrate", {"status": "active"}, {"status": "pre-switchover"})

    def cancelled(_: Any) -> dict[str, Any]:
        world.qmp.on("query-migrate", {"status": "cancelled"})
        return _gives_up(destination)

    world.qmp.on("migrate_cancel", cancelled)
    with migration.before_switchover():
        assert _switched(world) == [True]
    assert _switched(world) == [True, False]


def test_a_switchover_is_not_cancelled(world: World, migration: Migration) -> None:
    world.qmp.on("migrate-set-capabilities", {})
    world.qmp.on("query-migrate", {"status": "pre-switchover"})
    world.qmp.on("migrate-continue", {})
    with migration.before_switchover() as outgoing:
        outgoing.switch_over()
        world.qmp.on("query-migrate", {"status": "completed"})
        outgoing.wait_completed()
    assert "migrate_cancel" not in world.qmp.commands


def test_a_stopped_guest_arrives_and_is_not_asked(
    world: World, migration: Migration, destination: FakeMachine
) -> None:
    destination.qmp.on("query-status", {"status": "inmigrate"}, {"status": "paused"})
    migration.request_migrate(stopped=True).wait_arrived(status="paused")
    assert world.guest.machine is cast(Any, destination)
    assert world.ssh.commands == []
    assert not world.machine.quitted


def test_a_stopped_guest_that_runs_where_it_arrives(migration: Migration, destination: FakeMachine) -> None:
    destination.qmp.on("query-status", {"status": "inmigrate"}, {"status": "running"})
    with pytest.raises(Violation, match=r"^destination-1 is running, and has to be paused$"):
        migration.request_migrate(stopped=True).wait_arrived(status="paused")


def test_a_migration_under_way_is_cancelled_at_the_end(world: World, migration: Migration) -> None:
    world.qmp.on("query-migrate-parameters", {"max-bandwidth": 77})
    world.qmp.on("migrate_cancel", {})
    world.qmp.on(
        "query-migrate",
        {"status": "setup"},
        {"status": "active"},
        {"status": "active"},
        {"status": "cancelled"},
    )
    with migration.under_way():
        assert "migrate_cancel" not in world.qmp.commands
        theirs = socket.socket(fileno=world.qmp.given["migration"])
        theirs.sendall(b"page" * 1_000_000)  # More than fits in between: it is being read.
    assert world.qmp.sent[-1] == ("migrate-set-parameters", {"max-bandwidth": 77})


def test_a_migration_that_ends_before_its_context(world: World, migration: Migration) -> None:
    world.qmp.on("query-migrate-parameters", {"max-bandwidth": 77})
    world.qmp.on("migrate_cancel", {})
    world.qmp.on("query-migrate", {"status": "active"}, {"status": "completed"})
    world.impatient()
    with pytest.raises(Violation, match="is completed, not active"), migration.under_way():
        pass


# Being refused


def test_the_text_of_the_refusal(world: World) -> None:
    assert blocked_reason(world.share) == (
        f"Migration is disabled when VirtFS export path '{world.share.path}' is mounted in the guest "
        "using mount_tag 'tag0'"
    )


def test_refused_by_the_mounted_share(world: World, migration: Migration) -> None:
    world.qmp.refuse("migrate", blocked_reason(world.share))
    _blocked(world, blocked_reason(world.share))
    migration.expect_refused(world.share)


def test_refused_but_started(world: World, migration: Migration) -> None:
    reason = blocked_reason(world.share)
    world.qmp.refuse("migrate", reason)
    world.qmp.on("query-migrate", {}, {"status": "active", "blocked-reasons": [reason]})
    with pytest.raises(
        Violation, match=r"^migrate was refused, but the migration status went from None to active$"
    ):
        migration.expect_refused(world.share)


def test_accepted_while_mounted(world: World, migration: Migration) -> None:
    _blocked(world, blocked_reason(world.share))
    with pytest.raises(Violation, match=r"^migrate was accepted while 'tag0' was mounted$"):
        migration.expect_refused(world.share)


@pytest.mark.parametrize("change", ["another reason", "another path", "another tag", "more words"])
def test_refused_for_another_reason(world: World, migration: Migration, change: str) -> None:
    reason = blocked_reason(world.share)
    desc = {
        "another reason": _OTHER,
        "another path": blocked_reason(replace(world.share, path=Path("/elsewhere"))),
        "another tag": blocked_reason(replace(world.share, mount_tag="tag00")),
        "more words": f"{reason} and more",
    }[change]
    world.qmp.refuse("migrate", desc)
    _blocked(world, reason)
    with pytest.raises(Violation, match=r"^refused for another reason than the mounted 'tag0': ") as caught:
        migration.expect_refused(world.share)
    assert desc in caught.value.message
    assert reason in caught.value.details


def test_refused_and_the_reason_is_not_listed(world: World, migration: Migration) -> None:
    world.qmp.refuse("migrate", blocked_reason(world.share))
    _blocked(world)
    with pytest.raises(Violation, match="blocked-reasons does not name exactly tag0"):
        migration.expect_refused(world.share)


def test_each_mounted_share_is_one_reason(world: World, migration: Migration) -> None:
    other = replace(world.share, id="share1", mount_tag="tag1")
    mine, others = blocked_reason(world.share), blocked_reason(other)
    _blocked(world, others, mine)
    migration.expect_blocked_by(world.share, other)
    for reasons in ((mine,), (mine, others, _OTHER), (mine, mine), ()):
        _blocked(world, *reasons)
        with pytest.raises(Violation, match="does not name exactly tag0, tag1"):
            migration.expect_blocked_by(world.share, other)


def test_a_reason_that_stays_twice_is_found(world: World, migration: Migration) -> None:
    """A second Tattach must not add a second blocker that the first clunk leaves behind."""
    reason = blocked_reason(world.share)
    _blocked(world, reason, reason)
    with pytest.raises(Violation, match="does not name exactly tag0"):
        migration.expect_blocked_by(world.share)


def test_two_devices_with_one_tag_and_path_are_two_reasons(world: World, migration: Migration) -> None:
    """Duplicate tags on one fsdev are accepted; both mounted, the same text stands there twice."""
    twin = replace(world.share, id="share1")
    reason = blocked_reason(world.share)
    _blocked(world, reason, reason)
    migration.expect_blocked_by(world.share, twin)
    _blocked(world, reason)
    with pytest.raises(Violation):
        migration.expect_blocked_by(world.share, twin)


def test_not_blocked(world: World, migration: Migration) -> None:
    _blocked(world)
    migration.expect_not_blocked()
    _blocked(world, blocked_reason(world.share))
    with pytest.raises(Violation, match="source: blocked with nothing mounted: "):
        migration.expect_not_blocked()


def test_an_old_qemu_names_one_of_several(world: World, migration: Migration) -> None:
    other = replace(world.share, id="other", mount_tag="other")
    world.qmp.on("query-version", {"qemu": {"major": 5, "minor": 2, "micro": 0}})
    world.qmp.refuse("migrate", blocked_reason(other))
    migration.expect_blocked_by(world.share, other)
    with pytest.raises(Violation, match="does not name exactly tag0"):
        migration.expect_blocked_by(world.share)
    with pytest.raises(Violation, match="blocked with nothing mounted"):
        migration.expect_blocked_by()
