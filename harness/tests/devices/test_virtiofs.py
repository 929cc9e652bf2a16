"""virtiofs with a stand-in for its daemon: the daemon's life, QEMU's connection, and checks that can fail."""

from __future__ import annotations

import hashlib
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from harness.artifacts import Artifacts
from harness.deadline import wait_until
from harness.devices import VirtiofsDevice, virtiofs
from harness.errors import GuestError, SetupError, Unsupported, UsageError, Violation, WaitTimeout
from harness.qemu.argv import render
from harness.qemu.binary import Capabilities
from harness.qemu.machine import Machine, Prepared
from harness.qemu.machine_types import MACHINE_TYPES
from harness.qemu.spec import MachineSpec
from harness.reaper import RunFolder
from harness.testbed import LaunchTool, Testbed
from harness.tests.fakes import World
from harness.tests.qemu.specs import INSTALL, PATHS, spec

#: Serves one connection, as virtiofsd does, and ends with it; when given a word, not even that.
SERVES = """
import socket, sys
listening = socket.socket(fileno=int(sys.argv[sys.argv.index("--fd") + 1]))
print("Waiting for vhost-user socket connection...", flush=True)
connection, _ = listening.accept()
connection.recv(1)
"""
STAYS = f"{SERVES}import signal; signal.pause()"
FAILS = "import sys; sys.exit('no seccomp')"


@pytest.fixture
def testbed(tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Testbed]:
    """A stand-in with what the device needs of a testbed. Its QEMU has the device, and is not asked."""
    monkeypatch.setattr(virtiofs, "require_device", lambda *_: None)
    tools: list[LaunchTool] = []
    run = RunFolder(tmp_path)
    scale = world.machine.timeout_scale
    cell = SimpleNamespace(
        qemu=INSTALL, accel=SimpleNamespace(timeout_scale=scale), machine_type=MACHINE_TYPES["pc"]
    )
    made = SimpleNamespace(
        folder=run.path,
        run=run,
        attach=tools.append,
        cell=cell,
        history=world.machine.history,
        artifacts=Artifacts.create_at(tmp_path / "artifacts"),
    )
    yield cast(Testbed, made)
    for tool in tools:
        tool.release()
        tool.close()
    assert run.processes() == []
    run.close()


def made(testbed: Testbed, code: str = SERVES) -> VirtiofsDevice:
    return VirtiofsDevice.create(testbed, [sys.executable, "-S", "-c", code])


def connected(device: VirtiofsDevice, name: str, *plugged: str) -> socket.socket:
    """Start a machine with the device, which connects to its daemon."""
    device.wrap(spec(name=name, plugged=frozenset(plugged)), Path("/"))
    return again(device)


def again(device: VirtiofsDevice) -> socket.socket:
    ((_, properties),) = device.declared()
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(properties["path"]))
    return connection


# QEMU's arguments


def test_its_machines_have_memory_that_the_daemon_can_map(testbed: Testbed) -> None:
    device = made(testbed)
    words = render(machine := spec(devices=(device,)), PATHS)
    assert "memory-backend-memfd,id=pc.ram,size=256M,share=on" in words
    assert words[words.index("-machine") + 1].endswith(",memory-backend=pc.ram")
    assert f"socket,id=char-virtiofs0,path={testbed.folder}/virtiofs0.sock" in words
    memory = render(machine.restored(Path("/t/copy")), PATHS)
    assert "memory-backend-file,id=pc.ram,size=256M,mem-path=/t/copy,share=on" in memory
    assert not any("memfd" in word for word in memory)
    assert not any("memory-backend" in word for word in render(spec(), PATHS))


def test_its_properties(testbed: Testbed) -> None:
    device = made(testbed)
    assert device.device(MACHINE_TYPES["q35"]) == {
        "driver": "vhost-user-fs-pci",
        "id": "virtiofs0",
        "chardev": "char-virtiofs0",
        "tag": "tag-virtiofs0",
        "bus": "rp0",
        "addr": "0x0",
    }
    assert device.device(MACHINE_TYPES["s390-ccw"])["driver"] == "vhost-user-fs-ccw"


def test_a_guest_of_another_byte_order(testbed: Testbed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(testbed.cell, "machine_type", MACHINE_TYPES["s390-ccw"])
    with pytest.raises(Unsupported, match="does not understand a guest of s390x"):
        made(testbed)


def test_a_folder_that_is_gone(testbed: Testbed) -> None:
    device = made(testbed)
    device.check()
    device.path.rmdir()
    with pytest.raises(UsageError, match="file system virtiofs0"):
        device.check()


@pytest.mark.parametrize(
    ("version", "migrates"), [((7, 2, 22), False), ((8, 1, 5), False), ((8, 2, 0), True), ((11, 1, 3), True)]
)
def test_a_qemu_that_migrates_it(testbed: Testbed, version: tuple[int, int, int], migrates: bool) -> None:
    capabilities = cast(Capabilities, SimpleNamespace(version=version, version_text="x"))
    device = made(testbed)
    refused = device.require_unmigratable if migrates else device.require_migratable
    (device.require_migratable if migrates else device.require_unmigratable)(capabilities)
    with pytest.raises(Unsupported):
        refused(capabilities)


# The daemon


def test_a_daemon_serves_one_connection_and_ends_with_it(testbed: Testbed, world: World) -> None:
    device = made(testbed)
    connection = connected(device, "source")
    daemon = device.daemon(cast(Machine, world.machine))
    assert daemon.pid in testbed.run.processes()
    connection.close()
    wait_until(lambda: not daemon.running, what="its end", timeout_s=10)


def test_a_daemon_that_does_not_start(testbed: Testbed) -> None:
    with pytest.raises(SetupError, match="virtiofsd does not start") as raised:
        connected(made(testbed, FAILS), "source")
    assert "no seccomp" in raised.value.details


def test_a_daemon_that_is_not_there(testbed: Testbed) -> None:
    with pytest.raises(SetupError, match="cannot start virtiofsd /nowhere"):
        VirtiofsDevice.create(testbed, ["/nowhere"]).wrap(spec(), Path("/"))


def test_the_first_plug_uses_the_connection_of_the_start_and_the_next_a_new_one(
    testbed: Testbed, world: World
) -> None:
    device = made(testbed)
    machine = cast(Machine, world.machine)
    assert isinstance(device, Prepared)
    connection = connected(device, machine.name)
    device.prepare(machine)
    assert world.qmp.sent == []
    first = device.daemon(machine)

    def removed(_: object) -> dict[str, str]:
        connection.close()
        return {}

    world.qmp.on("chardev-remove", removed)
    world.qmp.on("chardev-add", {})
    device.prepare(machine)
    assert world.qmp.commands == ["chardev-remove", "chardev-add"]
    assert not first.running
    assert device.daemon(machine) is not first
    again(device).close()


def test_a_machine_that_starts_with_the_device_has_used_its_connection(
    testbed: Testbed, world: World
) -> None:
    device = made(testbed)
    machine = cast(Machine, world.machine)
    connected(device, machine.name, device.id).close()
    world.qmp.on("chardev-remove", {})
    world.qmp.on("chardev-add", {})
    device.prepare(machine)
    assert world.qmp.commands == ["chardev-remove", "chardev-add"]


def test_a_daemon_that_stays_without_its_connection(testbed: Testbed, world: World) -> None:
    device = made(testbed, STAYS)
    machine = cast(Machine, world.machine)
    connected(device, machine.name).close()
    device.prepare(machine)
    world.qmp.on("chardev-remove", {})
    world.impatient()
    with pytest.raises(WaitTimeout, match="the end of the daemon without QEMU"):
        device.prepare(machine)


def test_two_machines_have_a_daemon_each(testbed: Testbed, world: World) -> None:
    device = made(testbed)
    with connected(device, "source"), connected(device, "destination-1", device.id):
        assert len(testbed.run.processes()) == 2


def test_device_add_prepares_the_device(testbed: Testbed, monkeypatch: pytest.MonkeyPatch) -> None:
    device = made(testbed)
    prepared: list[Machine] = []
    monkeypatch.setattr(device, "prepare", prepared.append)
    machine = object.__new__(Machine)

    class Stop(Exception):
        pass

    def stop(*_: object, **__: object) -> None:
        raise Stop

    monkeypatch.setattr(Machine, "wait_until", stop)
    with pytest.raises(Stop):
        machine.device_add(device)
    assert prepared == [machine]


# Its use


HELD = b"written"
SUM = hashlib.sha256(HELD).hexdigest()
OTHER = hashlib.sha256(b"other").hexdigest()


def test_a_file_that_both_sides_read_alike(testbed: Testbed, world: World) -> None:
    device = made(testbed)
    (device.path / "exchanged").write_bytes(HELD)
    world.ssh.on("mount -t virtiofs tag-virtiofs0 /mnt/virtiofs0$", "")
    world.ssh.on("sha256sum", f"{SUM}  -\n{SUM}  -\n")
    world.ssh.on("umount /mnt/virtiofs0$", "")
    device.use(world.guest)


@pytest.mark.parametrize(("written", "read", "side"), [(SUM, OTHER, "guest"), (OTHER, OTHER, "host")])
def test_a_file_that_they_do_not(testbed: Testbed, world: World, written: str, read: str, side: str) -> None:
    device = made(testbed)
    (device.path / "exchanged").write_bytes(HELD)
    world.ssh.on("sha256sum", f"{written}  -\n{read}  -\n")
    with pytest.raises(Violation, match=f"the {side} reads other bytes in virtiofs0"):
        device.exchange(world.guest)


def _waiting_in_the_guest(world: World, *answers: object) -> None:
    world.ssh.on("mount -t virtiofs", "")
    world.ssh.on("setsid", "")
    world.ssh.on("test -e /tmp/job", (1, "", ""))
    world.ssh.on("request_wait_answer", *answers)


def test_a_request_is_in_flight_while_the_daemon_is_stopped(testbed: Testbed, world: World) -> None:
    device = made(testbed)
    daemon_of = cast(Machine, world.machine)
    with connected(device, "source"):
        _waiting_in_the_guest(world, (1, "", ""), "")
        with device.request_in_flight(world.guest) as request:
            assert device.daemon(daemon_of).stopped
            request.waiting()
        with pytest.raises(GuestError, match="virtiofsd is not stopped"):
            request.waiting()
        request.release()


def test_a_request_that_is_answered_all_the_same(testbed: Testbed, world: World) -> None:
    device = made(testbed)
    with connected(device, "source"):
        _waiting_in_the_guest(world, (1, "", ""))
        world.impatient()
        with (
            pytest.raises(WaitTimeout, match="a request of virtiofs0 in flight"),
            device.request_in_flight(world.guest),
        ):
            pass
        assert not device.daemon(cast(Machine, world.machine)).stopped


def test_a_killed_daemon_is_no_witness(testbed: Testbed, world: World) -> None:
    device = made(testbed)
    with connected(device, "source"):
        _waiting_in_the_guest(world, "")
        with device.request_in_flight(world.guest) as request:
            device.daemon(cast(Machine, world.machine)).kill()
            with pytest.raises(GuestError, match="virtiofsd is not stopped"):
                request.waiting()


def test_the_spec_of_a_machine_without_it_shares_no_memory(testbed: Testbed) -> None:
    one: MachineSpec = spec()
    assert not one.shares_memory
    assert replace(one, devices=(made(testbed),)).shares_memory


def test_a_qemu_without_the_device(testbed: Testbed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is started for it."""

    def refuse(_: object, device: str) -> None:
        raise Unsupported(f"this QEMU has no device {device}")

    monkeypatch.setattr(virtiofs, "require_device", refuse)
    with pytest.raises(Unsupported, match=r"^this QEMU has no device vhost-user-fs-pci$"):
        VirtiofsDevice.create(testbed, ["/virtiofsd"])
    assert not list(testbed.folder.glob("*-shared"))
