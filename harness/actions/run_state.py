"""``stop``, ``cont``, ``system_reset`` and the guest's own reboot; each is waited for."""

from __future__ import annotations

from harness.channel.qmp import Listener
from harness.errors import GuestError, QemuError, Unsupported, Violation
from harness.guest.guest import Guest
from harness.qemu.process import wait_interrupts_taken
from harness.qemu.schema import require_command

#: Seconds, before scaling.
EVENT_TIMEOUT_S = 10.0
_WITHOUT_PIXMAN = "it was built without pixman"
#: Written to the guest's kernel log right before the guest reboots itself.
_REBOOTS = "guest: reboots"
#: The network is switched off first, as an init does. Kernel 6.1's virtio_net loops for ever when a packet (a
#: delayed ACK) is sent after device_shutdown has reset the device (``drivers/net/virtio_net.c``, start_xmit).
_REBOOT = f"echo '{_REBOOTS}' > /dev/kmsg; ip link set eth0 down; reboot -n -f"


class RunState:
    """Changes the run state of one guest's machine."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self._resets_begun = 0

    def stop(self) -> None:
        """``stop``, and wait for the STOP event. A migration may follow, so interrupts are taken before."""
        wait_interrupts_taken(self.guest.machine)
        self._command("stop", "STOP")

    def cont(self) -> None:
        """``cont``, and wait for the RESUME event."""
        self._command("cont", "RESUME")

    def expect_stopped(self) -> None:
        """Assert that the machine is paused.

        :raises Violation: when it has another run state.
        """
        machine = self.guest.machine
        status = machine.qmp.execute("query-status", watch=machine.watch)["status"]
        if status != "paused":
            raise Violation(f"{machine.name} is {status} after stop")

    def require_screendump(self) -> None:
        """Check that this QEMU has ``screendump``. To be called before a device is plugged.

        :raises Unsupported: when it does not.
        """
        require_command(self.guest.machine, "screendump", _WITHOUT_PIXMAN)

    def screendump(self) -> bytes:
        """``screendump``: the content of the machine's display, as PPM.

        :raises QemuError: when the machine has no display.
        :raises Unsupported: when this QEMU has no such command because it was built without pixman.
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
        """Reboot from inside the guest, without sync or umount (``reboot -n -f``).

        Waits and raises as :meth:`system_reset`.
        """
        self.wait_booted_again(self.begin_reboot())

    def begin_reboot(self) -> str:
        """As :meth:`reboot`, but waits for the RESET event alone.

        :returns: for :meth:`wait_booted_again`, which has to be called before the guest is used.
        """
        before = self.guest.boot_id
        machine = self.guest.machine
        with machine.qmp.listen("RESET") as events:
            self.guest.last_command(_REBOOT)
            self._wait(events, "reboot -n -f", "RESET")
        return before

    def system_reset(self, *, boot_id: str | None = None) -> None:
        """``system_reset``; waits for the RESET event and until the guest has booted again.

        :param boot_id: the guest's ``boot_id`` before the reset, when the guest cannot be asked for it.
        :raises GuestError: when the guest that answers has the same ``boot_id`` as before.
        """
        self.wait_booted_again(self.begin_system_reset(boot_id=boot_id))

    def begin_system_reset(self, *, boot_id: str | None = None) -> str:
        """As :meth:`system_reset`, but waits for the RESET event alone.

        :returns: for :meth:`wait_booted_again`, which has to be called before the guest is used.
        """
        before = boot_id or self.guest.boot_id
        self._resets_begun += 1
        self._command("system_reset", "RESET")
        return before

    def wait_reset_begun(self) -> None:
        """Wait until a reset of the machine that another thread does has begun.

        The witness: ``system_reset`` is being sent, or the guest has announced its reboot. Nothing later can
        be relied on, because the kernel's device shutdown may already make QEMU drain.

        :raises WaitTimeout: when no reset begins.
        """
        machine = self.guest.machine
        machine.wait_until(
            lambda: self._resets_begun > 0 or machine.kernel_log.contains(_REBOOTS),
            what="the reset to begin",
            timeout_s=EVENT_TIMEOUT_S,
            watch=machine.watch_process,
        )

    def wait_booted_again(self, before: str) -> None:
        """Wait until the guest has booted again after a reset.

        :param before: the guest's ``boot_id`` before the reset.
        :raises GuestError: when the guest that answers has that one.
        """
        self.guest.disconnect()
        self.guest.wait_booted()
        if self.guest.boot_id == before:
            raise GuestError(f"{self.guest.actor} answered after the RESET event without having rebooted")

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
