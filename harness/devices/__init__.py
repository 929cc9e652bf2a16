"""Devices other than the 9p share, so that the same guarantees can be asked of them: disk, network, entropy.

Each is a :class:`~harness.guest.device.GuestDevice`, and can keep a request of its own in flight.
"""

from harness.devices.block import BlockDevice
from harness.devices.neighbour import Neighbour, RequestInFlight
from harness.devices.net import NetDevice
from harness.devices.rng import RngDevice

__all__ = ["BlockDevice", "Neighbour", "NetDevice", "RequestInFlight", "RngDevice"]
