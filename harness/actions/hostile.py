"""A guest that means harm: it takes a device away from itself by force, whatever is in flight.

Nothing here asks the guest's kernel politely: ports and config space are written as its root can.
"""

from __future__ import annotations

from collections.abc import Callable

from harness.actions.drain import WINDOW_S, happens_while
from harness.background import Background
from harness.errors import GuestError, Violation, WaitTimeout
from harness.guest.commands import quote
from harness.guest.device import pci_function
from harness.guest.guest import Guest
from harness.guest.portio import install
from harness.qemu.acpi import eject_writes
from harness.qemu.deletion import Deletion
from harness.qemu.spec import Device, Share

# PCI Express: the capability's id, Slot Control's offset in it; power off and indicator off
# (kernel: include/uapi/linux/pci_regs.h, PCI_EXP_SLTCTL_PWR_OFF, PCI_EXP_SLTCTL_PWR_IND_OFF).
_CAPABILITY_LIST, _PCI_EXPRESS = 0x34, 0x10
_SLOT_CONTROL = 0x18
_POWER_OFF = 0x0700
_SYS = "/sys/bus/pci/devices"
#: What the guest's kernel log says right before the deed: nothing later is sure to come out in time.
_ANNOUNCED = "hostile: eject"

#: Seconds, before scaling.
EJECT_TIMEOUT_S = 10.0
PANIC_TIMEOUT_S = 10.0


class Ejection:
    """A forced eject, from the guest's write to the device's end; made by :meth:`HostileGuest.request_eject`.

    The write may not return before QEMU has drained what is in flight, and until then neither the guest nor
    QMP answers (QEMU ≥ 8.1 or so: ``virtio_9p_device_unrealize`` drains under the big lock). So it runs in a
    thread of its own, and the device's end is observed through events alone.
    """

    def __init__(self, guest: Guest, share: Device, command: str) -> None:
        self.guest, self.share, self._machine = guest, share, guest.machine
        self._deletion = Deletion(self._machine, share.id)
        self._seen_before = self._machine.kernel_log.text().count(_ANNOUNCED)
        self._write = Background(
            lambda: guest.succeed(f"echo '{_ANNOUNCED} {share.id}' > /dev/kmsg; {command}")
        )

    @property
    def deleted(self) -> list[str]:
        """The QOM paths of the device and its backend that were deleted so far, in that order."""
        return self._deletion.seen

    def wait_begun(self) -> None:
        """Wait until the guest is about to write.

        :raises WaitTimeout: when it never was.
        """
        self._machine.wait_until(
            lambda: self._machine.kernel_log.text().count(_ANNOUNCED) > self._seen_before,
            what=f"the guest to eject {self.share.id}",
            timeout_s=EJECT_TIMEOUT_S,
        )

    def observe(self, *, while_: Callable[[], object], window_s: float = WINDOW_S) -> list[str]:
        """What was deleted while ``while_`` held: it is called at both ends of the window, and must raise
        when the request is no longer in flight.

        Returns at the first deletion. An empty list means that the device waited for its request: the write
        has returned, or QEMU drains (see :func:`harness.actions.drain.happens_while`).

        :param window_s: seconds, before scaling.
        :raises WaitTimeout: when the guest's write never reached QEMU.
        """
        self.wait_begun()
        happens_while(
            self._machine,
            lambda: bool(self.deleted),
            while_=while_,
            returned=lambda: self._write.done,
            what=f"the eject of {self.share.id}",
            window_s=window_s,
        )
        seen = self.deleted
        self._machine.history.note(self._machine.name, "hostile:observed", {"deleted": seen})
        return seen

    def wait_completed(self) -> None:
        """Wait for the guest's write to return, and for the device's end: both events, and no QOM object.

        :raises Violation: when the device, or one of the two events, stays away.
        """
        try:
            self._machine.wait_until(
                lambda: self._write.done,
                what=f"the guest's eject of {self.share.id} to return",
                timeout_s=EJECT_TIMEOUT_S,
            )
            self._write.wait()
            self._deletion.wait(timeout_s=EJECT_TIMEOUT_S)
        except WaitTimeout as exc:
            raise Violation(
                f"{self.share.id} was ejected, and only {self.deleted} were reported deleted",
                details=exc.message,
            ) from exc
        finally:
            self._deletion.close()


class HostileGuest:
    """What the root of one guest can do to its own devices."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest

    def request_eject(self, share: Device) -> Ejection:
        """Force the share's device out of the machine, without the guest's driver.

        ACPI: the eject register, by port write. Native PCIe: power and indicator off in the root port's
        Slot Control (QEMU: ``hw/pci/pcie.c``, ``pcie_cap_slot_write_config``).
        """
        native = self.guest.machine.spec.machine_type.native
        return Ejection(self.guest, share, self._power_off(share) if native else self._acpi_eject(share))

    def eject(self, share: Device) -> None:
        """As :meth:`request_eject`, and wait for the device's end."""
        self.request_eject(share).wait_completed()

    def _acpi_eject(self, share: Device) -> str:
        """The command that ejects the share's slot."""
        return install(self.guest, *eject_writes(self.guest.machine, share))

    def _power_off(self, share: Device) -> str:
        """The command that takes the power from the share's slot."""
        config = f"{_SYS}/{self._root_port(share)}/config"
        content = bytes.fromhex(self.guest.succeed(f"hexdump -v -e '1/1 \"%02x\"' {config}"))
        offset = _capability(content, _PCI_EXPRESS) + _SLOT_CONTROL
        value = int.from_bytes(content[offset : offset + 2], "little") | _POWER_OFF
        octal = "".join(f"\\{byte:03o}" for byte in value.to_bytes(2, "little"))
        # One write of two bytes, at an even offset: one access to the register.
        return f"printf '{octal}' | dd of={config} bs=2 seek={offset // 2} conv=notrunc 2>/dev/null"

    def panic(self) -> None:
        """Let the guest's kernel panic, as SysRq's ``c`` does; it then answers nothing until it is reset.

        :raises WaitTimeout: when it did not.
        """
        guest, machine = self.guest, self.guest.machine
        for pattern in ("sysrq triggered crash", "Call Trace:"):
            guest.tolerate(pattern, why="the scenario let the guest panic")
        guest.last_command("echo c > /proc/sysrq-trigger")
        machine.wait_until(
            machine.kernel_log.panic,
            what="the guest's panic",
            timeout_s=PANIC_TIMEOUT_S,
            watch=machine.watch_process,
        )
        machine.kernel_log.forgive_panic()
        guest.disconnect()

    def unbind(self, share: Share) -> str:
        """Take the device from its driver through sysfs; returns its virtio name, for :meth:`bind`."""
        name = self._virtio_name(share)
        self.guest.succeed(f"echo {quote(name)} > /sys/bus/virtio/drivers/9pnet_virtio/unbind")
        return name

    def bind(self, virtio_name: str) -> None:
        """Give the virtio device ``virtio_name`` to its driver (again)."""
        self.guest.succeed(f"echo {quote(virtio_name)} > /sys/bus/virtio/drivers/9pnet_virtio/bind")

    def _virtio_name(self, share: Share) -> str:
        pattern = "/sys/bus/virtio/drivers/9pnet_virtio/virtio*"
        command = f"for d in {pattern}; do echo $(basename $d) $(tr -d '\\0' < $d/mount_tag); done"
        for line in self.guest.succeed(command).splitlines():
            name, _, tag = line.partition(" ")
            if tag == share.mount_tag:
                return name
        raise GuestError(f"{self.guest.actor}: no 9p device with the tag {share.mount_tag}")

    def _root_port(self, share: Device) -> str:
        """The PCI address in the guest of the port that the device sits behind."""
        # …/0000:00:10.0 (the port)/0000:01:00.0 (the function)
        return self.guest.succeed(f"ls -d {pci_function(self.guest.machine, share)}").split("/")[-2]


def _capability(config: bytes, wanted: int) -> int:
    """The offset of a capability (kernel: ``drivers/pci/pci.c``, ``pci_find_capability``)."""
    offset = config[_CAPABILITY_LIST]
    while offset:
        if config[offset] == wanted:
            return offset
        offset = config[offset + 1]
    raise GuestError(f"the config space has no capability {wanted:#x}")
