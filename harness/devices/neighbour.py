"""The protocol of a device other than a share: what the scenarios need of it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from harness.guest.device import GuestDevice
from harness.guest.guest import Guest


class RequestInFlight(Protocol):
    """A request that the guest has sent and that is not answered before :meth:`release`."""

    def waiting(self) -> None:
        """The witness that a neighbour's request is in flight.

        It uses neither QMP nor the guest: both may be blocked.

        :raises GuestError: when the request is not in flight (any more).
        """

    def release(self) -> None:
        """Let the request of a neighbour be answered; idempotent."""


class Neighbour(GuestDevice, Protocol):
    """A device that is plugged, used, and unplugged with a request in flight."""

    def request_in_flight(self, guest: Guest) -> AbstractContextManager[RequestInFlight]:
        """Let the guest send a neighbour a request, wait until it is in flight, and release it at the end.

        :raises WaitTimeout: when no request is in flight in time.
        """
