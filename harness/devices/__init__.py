"""Devices other than the 9p share: a disk, a network card, an entropy device, virtiofs.

The scenarios assert the same guarantees for them. Each is a :class:`~harness.guest.device.GuestDevice` that
can also keep one of its requests in flight.
"""

from harness.devices.block import BlockDevice
from harness.devices.neighbour import Neighbour, RequestInFlight
from harness.devices.net import NetDevice
from harness.devices.rng import RngDevice
from harness.devices.virtiofs import VirtiofsDevice

__all__ = ["BlockDevice", "Neighbour", "NetDevice", "RequestInFlight", "RngDevice", "VirtiofsDevice"]
