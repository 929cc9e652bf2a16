"""A device is taken out of a running machine, and the guest's driver is not asked before.

On some buses a plain ``device_del`` does that (:attr:`.UnplugKind.TAKES`). On the others the guest's root
forces the eject. What QEMU has to guarantee is the same: it drains the device, and keeps nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from harness.actions.drain import WINDOW_S, happens_while
from harness.actions.hostile import HostileGuest
from harness.guest.guest import Guest
from harness.qemu.deletion import Deletion
from harness.qemu.machine_types.machine_type import UnplugKind
from harness.qemu.spec import Device

#: Seconds, before scaling, from the end of the last request in flight.
REMOVAL_TIMEOUT_S = 10.0


class Removal(Protocol):
    """A removal, from the trigger to the device's end."""

    def observe(self, *, while_: Callable[[], object], window_s: float = WINDOW_S) -> list[str]:
        """The QOM paths that the removal deleted with a request in flight; see :meth:`.Ejection.observe`."""

    def wait_completed(self) -> None:
        """Wait until both events of the surprise removal have come and the QOM object is gone.

        :raises Violation: when one of the two events does not come, or the device remains.
        """


class TakenAway:
    """A ``device_del`` that takes the device.

    QEMU may drain the device before it answers, and until then neither QMP nor the guest answers. So the
    command is sent without waiting for its answer, and only events are used to observe the device's end.
    """

    def __init__(self, guest: Guest, device: Device) -> None:
        self._machine, self.device = guest.machine, device
        self._deletion = Deletion(self._machine, device.id)
        self._command = self._machine.qmp.request("device_del", {"id": device.id})

    def observe(self, *, while_: Callable[[], object], window_s: float = WINDOW_S) -> list[str]:
        """What a ``device_del`` that takes deleted with a request in flight; see :meth:`Removal.observe`."""
        happens_while(
            self._machine,
            lambda: bool(self._deletion.seen),
            while_=while_,
            returned=lambda: self._command.done,
            what=f"the device_del of {self.device.id}",
            window_s=window_s,
        )
        seen = self._deletion.seen
        self._machine.history.note(self._machine.name, "removal:observed", {"deleted": seen})
        return seen

    def wait_completed(self) -> None:
        """Wait for the end of a ``device_del`` that takes the device: see :meth:`Removal.wait_completed`.

        :raises QemuError: when QEMU refused the command.
        :raises QmpSilent: when QEMU does not answer, although no request is held any more.
        """
        timeout_s = self._machine.timeout_scale.seconds(REMOVAL_TIMEOUT_S)
        with self._deletion:
            self._command.wait(timeout_s=timeout_s, watch=self._machine.watch)
            self._deletion.wait(timeout_s=REMOVAL_TIMEOUT_S)


def surprise_removal(guest: Guest, device: Device) -> Removal:
    """Take ``device`` out of the guest's machine, in the way that this machine type has.

    :raises Unsupported: when it has none.
    """
    if guest.machine.spec.machine_type.unplug is UnplugKind.TAKES:
        return TakenAway(guest, device)
    return HostileGuest(guest).request_eject(device)
