"""``stop``, ``cont`` and ``system_reset``: each done, and seen to have happened."""

from __future__ import annotations

from harness.errors import GuestError
from harness.guest.guest import Guest

#: Seconds, before scaling.
EVENT_TIMEOUT_S = 10.0


class RunState:
    """Changes the run state of one guest's machine."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest

    def stop(self) -> None:
        """``stop``, and wait for the STOP event."""
        self._command("stop", "STOP")

    def cont(self) -> None:
        """``cont``, and wait for the RESUME event."""
        self._command("cont", "RESUME")

    def system_reset(self) -> None:
        """``system_reset``, the RESET event, and a guest that has booted again (its ``boot_id`` differs).

        :raises GuestError: when the guest that answers is still the old one.
        """
        before = self.guest.boot_id
        self._command("system_reset", "RESET")
        self.guest.disconnect()
        self.guest.wait_booted()
        if self.guest.boot_id == before:
            raise GuestError(f"{self.guest.actor} answered after a RESET event, and had not rebooted")

    def _command(self, command: str, event: str) -> None:
        machine = self.guest.machine
        with machine.qmp.listen(event) as events:
            machine.qmp.execute(command, watch=machine.watch)
            events.wait(
                what=f"{event} after {command}",
                timeout_s=machine.pace.seconds(EVENT_TIMEOUT_S),
                watch=machine.watch,
            )
