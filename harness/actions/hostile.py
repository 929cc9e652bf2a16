"""A hostile guest: its root forces a device out of the machine, whatever requests are in flight.

The guest's kernel and its drivers are not asked. The guest's root writes to I/O ports and to PCI
configuration space directly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import assert_never

from harness.actions.drain import WINDOW_S, happens_while
from harness.background import Background
from harness.errors import GuestError, Unsupported, Violation, WaitTimeout
from harness.guest.device import sysfs_folder
from harness.guest.guest import Guest
from harness.qemu.acpi import eject_writes
from harness.qemu.deletion import Deletion
from harness.qemu.machine_types.machine_type import AcpiEject, NoEject, SlotPowerOff
from harness.qemu.spec import Device

# PCI Express: the capability's id, Slot Control's offset in it; power off and indicator off
# (kernel: include/uapi/linux/pci_regs.h, PCI_EXP_SLTCTL_PWR_OFF, PCI_EXP_SLTCTL_PWR_IND_OFF).
_CAPABILITY_LIST, _PCI_EXPRESS = 0x34, 0x10
_SLOT_CONTROL = 0x18
_POWER_OFF = 0x0700
#: Toggles the electromechanical interlock (QEMU: ``pcie_cap_slot_write_config``; PCI_EXP_SLTCTL_EIC).
_TOGGLE_LOCK = 0x0800
_SYS = "/sys/bus/pci/devices"
#: Written to the guest's kernel log right before the eject. Anything printed later may not appear in time.
_ANNOUNCED = "hostile: eject"

#: Seconds, before scaling.
EJECT_TIMEOUT_S = 10.0
PANIC_TIMEOUT_S = 10.0


class Ejection:
    """A forced eject, from the guest's write to the device's end; made by :meth:`HostileGuest.request_eject`.

    The write may not return before QEMU has drained the requests in flight. Until then neither the guest nor
    QMP answers (QEMU ≥ 8.1 or so: ``virtio_9p_device_unrealize`` drains under the big lock). The write
    therefore runs in a thread, and only events are used to observe the device's end.
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
        """The QOM paths of the device and its backend that DEVICE_DELETED has reported, in that order."""
        return self._deletion.seen

    def wait_begun(self) -> None:
        """Wait until the hostile guest is about to write the register that ejects.

        :raises WaitTimeout: when the guest never reaches this point.
        """
        self._machine.wait_until(
            lambda: self._machine.kernel_log.text().count(_ANNOUNCED) > self._seen_before,
            what=f"the guest to eject {self.share.id}",
            timeout_s=EJECT_TIMEOUT_S,
        )

    def observe(self, *, while_: Callable[[], object], window_s: float = WINDOW_S) -> list[str]:
        """The QOM paths that a forced eject deleted while a request was in flight; returns at the first one.

        An empty list means that the device waited for its request: the write has returned, or QEMU drains
        (see :func:`harness.actions.drain.happens_while`).

        :param while_: the witness that the request is in flight. It is called at both ends of the window and
            has to raise when no request is in flight.
        :param window_s: seconds, before scaling.
        :raises WaitTimeout: when the guest's write does not reach QEMU.
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
        """Wait until the hostile guest's write has returned, both events have come and the object is gone.

        :raises Violation: when one of the two events does not come, or the device remains.
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
                f"{self.share.id} was ejected, but only {self.deleted} were reported deleted",
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

        The machine type says how (``MachineType.eject``): a write to the ACPI eject register, or power and
        indicator off in the root port's Slot Control.

        :raises Unsupported: when a guest cannot eject a device.
        """
        way = self.guest.machine.spec.machine_type.eject
        match way:
            case SlotPowerOff():
                command = self._power_off(share)
            case AcpiEject():
                command = self._acpi_eject(share, way)
            case NoEject():
                raise Unsupported(f"{self.guest.machine.spec.machine_type.name}: {way.why}")
            case _:
                assert_never(way)
        return Ejection(self.guest, share, command)

    def eject(self, share: Device) -> None:
        """As :meth:`request_eject`, then wait for the device's end.

        Not for a device that QEMU drains while a request is held: the end would come only after its release.
        Use :meth:`request_eject` and :meth:`Ejection.observe` then.
        """
        self.request_eject(share).wait_completed()

    def _acpi_eject(self, share: Device, way: AcpiEject) -> str:
        """The command with which a hostile guest ejects the share's slot by the ACPI registers.

        The registers take accesses of four bytes (QEMU: ``hw/acpi/pcihp.c``, ``acpi_pcihp_io_ops``), and the
        kernel's ``/dev/port`` writes single bytes only. ``outl`` is of Debian's package ioport, ``devmem`` of
        busybox.
        """
        writes = eject_writes(self.guest.machine, share)
        if way.in_memory:
            return " && ".join(f"devmem {address:#x} 32 {value:#x}" for address, value in writes)
        return " && ".join(f"outl {port:#x} {value:#x}" for port, value in writes)

    def _power_off(self, share: Device) -> str:
        """The command with which a hostile guest switches the power of the share's slot off."""
        return _slot_control(self.guest, self._root_port(share), _POWER_OFF)

    def slot_lock(self, share: Device) -> SlotLock:
        """The interlock of the slot in which the share's device is plugged; the slot may be emptied later.

        The machine has to be of a type with native PCI Express hotplug.
        """
        return SlotLock(self.guest, self._root_port(share))

    def panic(self) -> None:
        """Make the guest's kernel panic, with SysRq's ``c``; the guest then answers nothing until a reset.

        :raises WaitTimeout: when the kernel does not panic.
        """
        guest, machine = self.guest, self.guest.machine
        for pattern in ("sysrq triggered crash", "Call [Tt]race:"):
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

    def _root_port(self, share: Device) -> str:
        """The PCI address, in the guest, of the root port of the share's device."""
        # …/0000:00:10.0 (the port)/0000:01:00.0 (the function)
        return self.guest.succeed(f"ls -d {sysfs_folder(self.guest.machine, share)}").split("/")[-2]


class SlotLock:
    """The electromechanical interlock of a slot: QEMU refuses hotplug while it is engaged.

    Made by :meth:`HostileGuest.slot_lock`.
    """

    def __init__(self, guest: Guest, root_port: str) -> None:
        self._guest, self._root_port = guest, root_port

    def toggle(self) -> None:
        """Engage or release it, as the guest's root can: with a write to the root port's Slot Control."""
        self._guest.succeed(_slot_control(self._guest, self._root_port, _TOGGLE_LOCK))


def _slot_control(guest: Guest, root_port: str, bits: int) -> str:
    """The command that sets ``bits`` in a root port's Slot Control, and leaves the others as they are now."""
    config = f"{_SYS}/{root_port}/config"
    content = bytes.fromhex(guest.succeed(f"hexdump -v -e '1/1 \"%02x\"' {config}"))
    offset = _capability(content, _PCI_EXPRESS) + _SLOT_CONTROL
    value = int.from_bytes(content[offset : offset + 2], "little") | bits
    octal = "".join(f"\\{byte:03o}" for byte in value.to_bytes(2, "little"))
    # One write of two bytes, at an even offset: one access to the register.
    return f"printf '{octal}' | dd of={config} bs=2 seek={offset // 2} conv=notrunc 2>/dev/null"


def _capability(config: bytes, wanted: int) -> int:
    """The offset of a PCI capability of a root port.

    Source: kernel, ``drivers/pci/pci.c``, ``pci_find_capability``.
    """
    offset = config[_CAPABILITY_LIST]
    while offset:
        if config[offset] == wanted:
            return offset
        offset = config[offset + 1]
    raise GuestError(f"the configuration space has no capability {wanted:#x}")
