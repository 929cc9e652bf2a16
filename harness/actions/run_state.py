"""``stop``, ``cont`` and ``system_reset``: each done, and seen to have happened."""

from __future__ import annotations

from harness.channel.qmp import Listener
from harness.errors import GuestError, QemuError, Unsupported, Violation
from harness.guest.guest import Guest
from harness.qemu.schema import require_command

#: Seconds, before scaling.
EVENT_TIMEOUT_S = 10.0
_WITHOUT_PIXMAN = "it was built without pixman"
#: What the guest's kernel log says right before it reboots itself.
_REBOOTS = "guest: reboots"
#: The network goes first, as with any init: kernel 6.1's virtio_net spins for ever when a packet (a delayed
#: ACK) is to be sent after device_shutdown has reset its device (``drivers/net/virtio_net.c``, start_xmit).
_REBOOT = f"echo '{_REBOOTS}' > /dev/kmsg; ip link set eth0 down; reboot -n -f"


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

    def expect_stopped(self) -> None:
        """:raises Violation: when the guest runs."""
        machine = self.guest.machine
        status = machine.qmp.execute("query-status", watch=machine.watch)["status"]
        if status != "paused":
            raise Violation(f"{machine.name} is {status} after stop")

    def require_screendump(self) -> None:
        """:raises Unsupported: for a QEMU without ``screendump``. To be asked before anything is plugged."""
        require_command(self.guest.machine, "screendump", _WITHOUT_PIXMAN)

    def screendump(self) -> bytes:
        """``screendump``: what the machine's display shows, as PPM.

        :raises QemuError: when the machine has no display.
        :raises Unsupported: for a QEMU that was built without pixman, which has no such command.
        """
        machine = self.guest.machine
        picture = machine.folder / "screen.ppm"
        try:
            machine.qmp.execute("screendump", {"filename": str(picture)}, watch=machine.watch)
        except QemuError as exc:
            if exc.command_not_found:
                raise Unsupported(f"this QEMU has no screendump ({_WITHOUT_PIXMAN})") from exc
            raise
        return picture.read_bytes()

    def reboot(self) -> None:
        """The guest reboots itself, without a sync or umount (``reboot -n -f``); as :meth:`system_reset`."""
        before = self.guest.boot_id
        machine = self.guest.machine
        with machine.qmp.listen("RESET") as events:
            self.guest.last_command(_REBOOT)
            self._wait(events, "reboot -n -f", "RESET")
        self._wait_booted_again(before)

    def system_reset(self, *, boot_id: str | None = None) -> None:
        """``system_reset``, the RESET event, and a guest that has booted again (its ``boot_id`` differs).

        :param boot_id: the guest's, where it cannot be asked for it any more.
        :raises GuestError: when the guest that answers is still the old one.
        """
        before = boot_id or self.guest.boot_id
        self._command("system_reset", "RESET")
        self._wait_booted_again(before)

    def wait_reset_begun(self) -> None:
        """The witness, while another thread resets: QMP has been asked to, or the guest is about to.

        (Nothing later is sure to be seen: the kernel's device shutdown may already make QEMU drain.)
        """
        machine = self.guest.machine
        machine.wait_until(
            lambda: machine.qmp.last_command == "system_reset" or machine.kernel_log.contains(_REBOOTS),
            what="the reset to begin",
            timeout_s=EVENT_TIMEOUT_S,
            watch=machine.watch_process,
        )

    def _wait_booted_again(self, before: str) -> None:
        self.guest.disconnect()
        self.guest.wait_booted()
        if self.guest.boot_id == before:
            raise GuestError(f"{self.guest.actor} answered after a RESET event, and had not rebooted")

    def _command(self, command: str, event: str) -> None:
        machine = self.guest.machine
        with machine.qmp.listen(event) as events:
            machine.qmp.execute(command, watch=machine.watch)
            self._wait(events, command, event)

    def _wait(self, events: Listener, command: str, event: str) -> None:
        machine = self.guest.machine
        events.wait(
            what=f"{event} after {command}",
            timeout_s=machine.timeout_scale.seconds(EVENT_TIMEOUT_S),
            watch=machine.watch,
        )
