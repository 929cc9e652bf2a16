"""``virtio-net-pci``: a network card whose only peer is a socket of the harness."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from harness.errors import GuestError, UsageError
from harness.guest.commands import Commands
from harness.guest.device import sysfs_folder
from harness.guest.guest import Guest
from harness.holds.hold import requests_in_use
from harness.qemu.binary import require_netdev
from harness.qemu.machine import Machine
from harness.qemu.machine_types.machine_type import MachineType
from harness.qemu.spec import Value
from harness.testbed import Testbed

#: The addresses of the harness and of the guest, on a network that has no other hosts.
_OUR_MAC, _OUR_ADDRESS = bytes.fromhex("5254009b0002"), "10.9.0.1"
_MAC, _ADDRESS = bytes.fromhex("5254009b0003"), "10.9.0.2"
_BROADCAST = b"\xff" * 6
# RFC 826; the first four fields say Ethernet and IPv4.
_ARP = struct.Struct("!6s6sHHHBBH6s4s6s4s")
_ARP_HEADER = (0x0806, 1, 0x0800, 6, 4)
_REQUEST, _REPLY = 1, 2
#: Seconds, before scaling.
_ANSWER_TIMEOUT_S = 10.0
#: The index of the transmit virtqueue, for a card with one pair of queues; the receive queue is 0.
_TRANSMIT = 1
#: The number of packets that wait behind the one that is in flight.
_BEHIND = 3


class NetDevice:
    """A network card on a ``dgram`` netdev (QEMU 7.2) between two unix sockets; made by :meth:`create`.

    The destination of a migration binds the path of QEMU's socket again (QEMU: ``net/dgram.c``).
    """

    #: Nothing to load: the guest's own network card uses the same driver.
    modules: tuple[str, ...] = ()

    def __init__(self, id: str, slot: int, folder: Path) -> None:
        self.id, self.slot = id, slot
        self._local, self._remote = folder / f"{id}.sock", folder / f"{id}-peer.sock"
        self._peer = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._peer.setblocking(False)
        self._peer.bind(str(self._remote))

    @classmethod
    def create(cls, testbed: Testbed, *, slot: int = 0) -> NetDevice:
        """Make a network card with new sockets in the testbed's folder.

        :raises Unsupported: when this QEMU has no such netdev.
        """
        require_netdev(testbed.cell.qemu, "dgram")
        made = cls(f"card{slot}", slot, testbed.folder)
        testbed.attach(made)
        return made

    def close(self) -> None:
        """Close the harness's socket of the network card."""
        self._peer.close()

    def check(self) -> None:
        """Check that the harness's socket of the network card exists."""
        if not self._remote.exists():
            raise UsageError(f"network card {self.id}: {self._remote}: no such socket")

    def declared(self) -> Iterator[tuple[str, Mapping[str, Value]]]:
        """The network card's backend (``-netdev dgram``)."""
        local = {"local.type": "unix", "local.path": str(self._local)}
        remote = {"remote.type": "unix", "remote.path": str(self._remote)}
        yield "-netdev", {"": "dgram", "id": f"netdev-{self.id}", **local, **remote}

    def device(self, machine_type: MachineType) -> Mapping[str, Value]:
        """The properties of the card's ``virtio-net-pci``: see :class:`~harness.qemu.spec.Device`."""
        return {
            "driver": machine_type.driver("virtio-net-pci"),
            "id": self.id,
            "netdev": f"netdev-{self.id}",
            "mac": _MAC.hex(":"),
            # A card of another bus has no ROM.
            **({"romfile": ""} if machine_type.transport == "pci" else {}),
            **machine_type.place(self.slot),
        }

    def listed(self, guest: Commands) -> bool:
        """Whether the guest has a network interface for the card."""
        return guest.run(f"ls {self._interfaces(guest)}/* >/dev/null 2>&1").returncode == 0

    def _interfaces(self, guest: Commands) -> str:
        return f"{sysfs_folder(guest.machine, self)}/virtio*/net"

    def configure(self, guest: Commands) -> None:
        """Bring the guest's interface up and give it an address, unless that was done before."""
        guest.succeed(
            f"name=$(ls {self._interfaces(guest)}) && ip link set $name up && "
            f"{{ ip addr show $name | grep -q {_ADDRESS}/ || ip addr add {_ADDRESS}/24 dev $name; }}"
        )

    def use(self, guest: Commands) -> None:
        """Send an ARP request, which the guest's kernel answers: one packet in each direction.

        :raises WaitTimeout: when no correct answer comes.
        """
        self.configure(guest)
        self.drain()
        machine = guest.machine
        self.ask()
        machine.wait_until(self._answered, what=f"an ARP reply of {self.id}", timeout_s=_ANSWER_TIMEOUT_S)

    def ask(self) -> None:
        """Send an ARP request for the guest's address."""
        ours, theirs = (socket.inet_aton(address) for address in (_OUR_ADDRESS, _ADDRESS))
        frame = _ARP.pack(_BROADCAST, _OUR_MAC, *_ARP_HEADER, _REQUEST, _OUR_MAC, ours, bytes(6), theirs)
        with contextlib.suppress(BlockingIOError):  # QEMU has not read the previous ones yet.
            self._peer.sendto(frame, str(self._local))

    def _answered(self) -> bool:
        """Whether one of the packets that have arrived from the card is the guest's ARP reply."""
        ours, theirs = (socket.inet_aton(address) for address in (_OUR_ADDRESS, _ADDRESS))
        reply = _ARP.pack(_OUR_MAC, _MAC, *_ARP_HEADER, _REPLY, _MAC, theirs, _OUR_MAC, ours)
        return any(frame.startswith(reply) for frame in self._arrived())

    def _arrived(self) -> Iterator[bytes]:
        with contextlib.suppress(BlockingIOError):
            while True:
                yield self._peer.recv(1 << 16)

    def drain(self) -> int:
        """Read all packets that have arrived at the harness's socket; return their number."""
        return sum(1 for _ in self._arrived())

    @contextmanager
    def request_in_flight(self, guest: Guest) -> Iterator[UnreadPacket]:
        """Keep a packet of the guest in flight, with more packets behind it: the harness stops reading.

        The guest answers more requests than a socket queues. QEMU keeps the first packet that does not fit,
        and stops the card's transmit queue, until the harness reads (QEMU: ``net/dgram.c``,
        ``net_dgram_receive``; ``hw/net/virtio-net.c``, ``virtio_net_flush_tx``). Further packets wait in the
        virtqueue. QEMU takes the next one when the first has been sent or dropped.
        """
        self.configure(guest)
        unread = UnreadPacket(self, guest.machine)
        try:
            guest.machine.wait_until(
                unread.stuck, what=f"a packet of {self.id} in flight", timeout_s=_ANSWER_TIMEOUT_S
            )
            self._wait_for_more(guest)
            yield unread
        finally:
            unread.release()

    def _wait_for_more(self, guest: Guest) -> None:
        """Wait until the guest has received more requests; it transmits an answer to each at once."""
        received = f"cat {self._interfaces(guest)}/*/statistics/rx_packets"
        wanted = int(guest.succeed(received)) + _BEHIND

        def arrived() -> bool:
            self.ask()
            return int(guest.succeed(received)) >= wanted

        guest.machine.wait_until(
            arrived, what=f"packets behind that of {self.id}", timeout_s=_ANSWER_TIMEOUT_S
        )


class UnreadPacket:
    """A packet in flight that the harness does not read."""

    def __init__(self, device: NetDevice, machine: Machine) -> None:
        self._device, self._machine, self._released = device, machine, False

    def stuck(self) -> bool:
        """Send one more ARP request, and return whether the transmit queue has a packet in flight."""
        self._device.ask()
        return bool(requests_in_use(self._machine, self._device, queue=_TRANSMIT))

    def waiting(self) -> None:
        """The witness that the card has a packet in flight: the harness has read nothing so far."""
        if self._released:
            raise GuestError(f"the packet of {self._device.id} may have been read")

    def release(self) -> None:
        """Read the packets that the card has in flight, so that its requests are answered."""
        self._released = True
        self._device.drain()
