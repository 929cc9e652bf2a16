"""What the scenarios ask of a device that is no share: everything that QEMU, the guest and a hold need."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from harness.guest.device import GuestDevice
from harness.guest.guest import Guest
from harness.qemu.machine import Wrapping
from harness.qemu.spec import MachineSpec


class RequestInFlight(Protocol):
    """A request that the guest has sent and that gets no answer."""

    def waiting(self) -> None:
        """The witness, without QMP, which may stall, and without the guest, which may be stopped.

        :raises GuestError: when the request is not in flight (any more).
        """

    def release(self) -> None:
        """Let the request be answered; idempotent."""


class Neighbour(GuestDevice, Protocol):
    """A device that is plugged, used, and unplugged with a request in flight."""

    def request_in_flight(self, guest: Guest) -> AbstractContextManager[RequestInFlight]:
        """Let the guest send a request, and wait until it is in flight; it is released when the block ends.

        :raises WaitTimeout: when the guest sends none.
        """


class OpenFile:
    """A :class:`~harness.testbed.LaunchTool` that adds nothing: its file or socket ends with the testbed."""

    def wrap(self, _spec: MachineSpec, _folder: Path) -> Wrapping:
        """Every machine starts as it would."""
        return Wrapping()

    def release(self) -> None:
        """Nothing is in anybody's way."""

    def close(self) -> None:
        """The machines have ended: close the file."""
        raise NotImplementedError
