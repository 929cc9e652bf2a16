"""Devices other than the 9p share, with a scripted guest: each of their checks can fail."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.actions.hotplug import Hotplug
from harness.devices import BlockDevice, Neighbour, NetDevice, RngDevice
from harness.errors import CommandFailed, GuestError, Unsupported, UsageError, Violation, WaitTimeout
from harness.qemu.argv import render
from harness.qemu.machine_types import MACHINE_TYPES
from harness.testbed import LaunchTool, Testbed
from harness.tests.fakes import World
from harness.tests.qemu.specs import INSTALL, PATHS, spec

ZEROS = hashlib.sha256(bytes(1 << 20)).hexdigest()
OTHER = hashlib.sha256(b"other").hexdigest()
KINDS: dict[str, Callable[[Testbed], Neighbour]] = {
    "blk": BlockDevice.create,
    "net": NetDevice.create,
    "rng": RngDevice.create,
}
QUEUE = "x-query-virtio-queue-status"


@pytest.fixture
def testbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Testbed]:
    """A stand-in with what a device needs of a testbed."""
    monkeypatch.setattr(
        "harness.qemu.binary._ask", lambda *_: "Available netdev backend types:\nuser\ndgram\n"
    )
    tools: list[LaunchTool] = []
    yield cast(
        Testbed, SimpleNamespace(folder=tmp_path, attach=tools.append, cell=SimpleNamespace(qemu=INSTALL))
    )
    for tool in tools:
        tool.close()


@pytest.fixture(params=list(KINDS))
def device(request: pytest.FixtureRequest, testbed: Testbed) -> Neighbour:
    made: Neighbour = KINDS[request.param](testbed)
    return made


# Their arguments for QEMU


BACKENDS = {
    "blk0": ["-blockdev", "raw,node-name=node-blk0,file.driver=file,file.filename={}/blk0.img"],
    "card0": [
        "-netdev",
        "dgram,id=netdev-card0,local.type=unix,local.path={0}/card0.sock,"
        "remote.type=unix,remote.path={0}/card0-peer.sock",
    ],
    "rng0": ["-object", "rng-random,id=backend-rng0,filename={}/rng0.fifo"],
}


def test_each_machine_declares_the_backend_and_only_one_that_has_it_the_device(
    device: Neighbour, tmp_path: Path
) -> None:
    made = spec(devices=(device,))
    option, text = BACKENDS[device.id]
    backend = [option, text.format(tmp_path)]
    source = render(made, PATHS)
    at = source.index(backend[1])
    assert source[at - 1 : at + 1] == backend
    assert not any(f"id={device.id}," in word for word in source), "not plugged in"
    destination = render(made.destination("destination-1", plugged=frozenset([device.id])), PATHS)
    after = destination[destination.index(backend[1]) + 1 :]
    assert after[0] == "-device"
    assert after[1].startswith(f"{device.device(made.machine_type)['driver']},id={device.id},")
    assert after[1].endswith("bus=pci.0,addr=0x10")


def test_a_place_of_its_machine_type(device: Neighbour) -> None:
    assert device.device(MACHINE_TYPES["q35"])["bus"] == "rp0"


@pytest.mark.parametrize("kind", ["blk", "net", "rng"])
def test_what_the_host_lacks_is_named_before_a_launch(kind: str, testbed: Testbed, tmp_path: Path) -> None:
    device: Neighbour = KINDS[kind](testbed)
    device.check()
    for path in tmp_path.iterdir():
        if not path.is_dir():
            path.unlink()
    with pytest.raises(UsageError, match=device.id):
        device.check()


def test_a_card_needs_a_netdev_that_older_versions_lack(
    testbed: Testbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.qemu.binary._ask", lambda *_: "Available netdev backend types:\nuser\n")
    with pytest.raises(Unsupported, match="this QEMU has no netdev dgram"):
        NetDevice.create(testbed)


# How the guest sees them


def test_plug_loads_the_driver_and_waits_for_the_guest_to_list_the_device(
    world: World, testbed: Testbed
) -> None:
    disk = BlockDevice.create(testbed)
    world.qmp.on("device_add", {})
    world.ssh.on("virtio_blk.order$", "")
    world.ssh.on(r"\[ -b ", (1, "", ""), (1, "", ""), "")
    Hotplug(world.guest).plug(disk)
    assert [("order" in command, "[ -b" in command) for command in world.ssh.commands] == [
        (True, False),
        *[(False, True)] * 3,
    ]
    assert world.machine.plugged == {"blk0"}


def test_a_driver_that_the_image_lacks_is_named(world: World, testbed: Testbed) -> None:
    world.ssh.on("insmod .*virtio_blk.order$", (1, "", "can't open /lib/modules/virtio_blk.order"))
    world.ssh.on(r"^\[ -e /lib/modules/virtio_blk.order \]$", (1, "", ""))
    with pytest.raises(
        UsageError, match=r"^module virtio_blk is not in modules_on_demand of the guest's recipe"
    ):
        Hotplug(world.guest).plug(BlockDevice.create(testbed))


def test_a_driver_that_is_not_loaded(world: World, testbed: Testbed) -> None:
    world.ssh.on("insmod .*virtio_blk.order$", (1, "", "insmod: unknown symbol"))
    world.ssh.on(r"^\[ -e /lib/modules/virtio_blk.order \]$", "")
    with pytest.raises(CommandFailed, match="unknown symbol"):
        Hotplug(world.guest).plug(BlockDevice.create(testbed))


def test_plug_of_a_device_that_the_guest_never_lists(world: World, testbed: Testbed) -> None:
    world.qmp.on("device_add", {})
    world.ssh.on("virtio_rng.order$", "")
    world.ssh.on(r"rng_current", (1, "", ""))
    world.impatient()
    with pytest.raises(WaitTimeout, match="for the guest to list rng0"):
        Hotplug(world.guest).plug(RngDevice.create(testbed))


def test_an_unplug_is_seen_when_the_guest_lists_the_device_no_more(world: World, testbed: Testbed) -> None:
    disk = BlockDevice.create(testbed)
    world.qmp.on("device_del", {})
    world.qmp.on("qom-list", [{"name": "blk0", "type": "child<virtio-blk-pci>"}])
    world.ssh.on(r"\[ -b ", "", (1, "", ""))
    unplug = Hotplug(world.guest).request_unplug(disk)
    unplug.wait_seen_by_guest()
    world.qmp.emit("DEVICE_DELETED", path="/machine/peripheral/blk0/virtio-backend")
    with pytest.raises(Violation, match="device_del of blk0 completed too early"):
        unplug.expect_withheld(while_=lambda: None)


# Their use


def test_a_disk_that_keeps_what_was_written(world: World, testbed: Testbed) -> None:
    world.ssh.on("sha256sum", f"{ZEROS}  -\n{ZEROS}  -\n")
    BlockDevice.create(testbed).use(world.guest)


@pytest.mark.parametrize(
    ("written", "read", "side"), [(ZEROS, OTHER, "guest"), (OTHER, OTHER, "host"), (OTHER, ZEROS, "host")]
)
def test_a_disk_that_does_not(world: World, testbed: Testbed, written: str, read: str, side: str) -> None:
    world.ssh.on("sha256sum", f"{written}  -\n{read}  -\n")
    with pytest.raises(Violation, match=f"the {side} reads other bytes on disk blk0"):
        BlockDevice.create(testbed).use(world.guest)


def _given(device: RngDevice) -> bytes:
    device.feed()
    with device.path.open("rb", buffering=0) as fifo:
        return fifo.read(24)


def test_entropy_that_is_what_was_fed(world: World, testbed: Testbed) -> None:
    device = RngDevice.create(testbed)
    world.ssh.on("/dev/hwrng", _given(device)[5:21].hex())
    device.use(world.guest)


@pytest.mark.parametrize("read", ["", bytes(16).hex(), "ab"])
def test_entropy_that_is_not(world: World, testbed: Testbed, read: str) -> None:
    world.ssh.on("/dev/hwrng", read)
    with pytest.raises(Violation, match="the guest reads other bytes from rng0"):
        RngDevice.create(testbed).use(world.guest)


@pytest.fixture
def cable(testbed: Testbed, tmp_path: Path) -> Iterator[tuple[NetDevice, socket.socket]]:
    """A card, and a socket in the place of QEMU's."""
    device = NetDevice.create(testbed)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as qemu:
        qemu.bind(str(tmp_path / "card0.sock"))
        qemu.settimeout(60)
        yield device, qemu


def _answers(qemu: socket.socket, peer: Path, change: bytes = b"") -> None:
    """Answer an ARP request as a guest's kernel does; with ``change``, for another address."""
    asked = qemu.recv(1 << 16)
    ours, our_address, address = asked[6:12], asked[28:32], asked[38:42]
    mac = bytes.fromhex("5254009b0003")
    reply = ours + mac + asked[12:20] + b"\0\2" + mac + (change or address) + ours + our_address
    qemu.sendto(b"something else", str(peer))
    qemu.sendto(reply + bytes(18), str(peer))


def test_a_card_that_sends_and_receives(
    world: World, cable: tuple[NetDevice, socket.socket], tmp_path: Path
) -> None:
    device, qemu = cable
    world.ssh.on("ip link", "")
    guest = threading.Thread(target=_answers, args=(qemu, tmp_path / "card0-peer.sock"))
    guest.start()
    device.use(world.guest)
    guest.join()


@pytest.mark.parametrize("change", [b"", b"\x0a\x09\x00\x63"])
def test_a_card_that_does_not(
    world: World, cable: tuple[NetDevice, socket.socket], tmp_path: Path, change: bytes
) -> None:
    """No answer comes, or one for another address."""
    device, qemu = cable

    def up(_: Any) -> str:
        world.impatient()
        return ""

    world.ssh.on("ip link", up)
    if change:
        original = device.ask

        def ask() -> None:
            original()
            _answers(qemu, tmp_path / "card0-peer.sock", change)

        device.ask = ask  # type: ignore[method-assign]
    with pytest.raises(WaitTimeout, match="an ARP reply of card0"):
        device.use(world.guest)


# Their requests in flight


def test_a_flush_needs_a_hold(world: World, testbed: Testbed) -> None:
    with (
        pytest.raises(UsageError, match="was made without a hold"),
        BlockDevice.create(testbed).request_in_flight(world.guest),
    ):
        pass


def _reader(world: World) -> None:
    world.ssh.on("setsid", "")
    world.ssh.on("test -e /tmp/job", (1, "", ""))


def test_an_entropy_request_is_in_flight_until_bytes_are_fed(world: World, testbed: Testbed) -> None:
    device = RngDevice.create(testbed)
    device.feed()
    _reader(world)
    unanswered = {"shadow-avail-idx": 4, "used-idx": 3}
    world.qmp.on(QUEUE, {"shadow-avail-idx": 3, "used-idx": 3}, unanswered)
    with device.request_in_flight(world.guest) as request:
        request.waiting()
        fifo = os.open(device.path, os.O_RDONLY | os.O_NONBLOCK)
        with pytest.raises(BlockingIOError):  # There are no bytes for the request.
            os.read(fifo, 1)
        os.close(fifo)
    with pytest.raises(GuestError, match="rng0 may have been answered"):
        request.waiting()
    assert _given(device)


def test_an_entropy_request_that_is_answered_all_the_same(world: World, testbed: Testbed) -> None:
    device = RngDevice.create(testbed)
    _reader(world)
    world.qmp.on(QUEUE, {"shadow-avail-idx": 3, "used-idx": 3})
    world.impatient()
    with (
        pytest.raises(WaitTimeout, match="a request of rng0 in flight"),
        device.request_in_flight(world.guest),
    ):
        pass


def test_a_packet_is_in_flight_until_it_is_read(world: World, cable: tuple[NetDevice, socket.socket]) -> None:
    device, _ = cable
    world.ssh.on("ip link", "")
    world.qmp.on(QUEUE, {"inuse": 0}, {"inuse": 1})
    world.ssh.on("rx_packets", "10\n", "12\n", "13\n")
    with device.request_in_flight(world.guest) as request:
        request.waiting()
        assert [arguments["queue"] for command, arguments in world.qmp.sent if command == QUEUE] == [1, 1]
    with pytest.raises(GuestError, match="card0 may have been read"):
        request.waiting()


def test_a_packet_that_goes_through(world: World, cable: tuple[NetDevice, socket.socket]) -> None:
    device, _ = cable
    world.ssh.on("ip link", "")
    world.qmp.on(QUEUE, {"inuse": 0})
    world.impatient()
    with (
        pytest.raises(WaitTimeout, match="a packet of card0 in flight"),
        device.request_in_flight(world.guest),
    ):
        pass
