"""``device_add`` and ``device_del`` of a device.

``device_del`` is a request: the answer ``{}`` means that QEMU has asked the guest to release the device. An
:class:`Unplug` follows the request through its states. Each transition is recorded in the history with its
witness.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from enum import Enum

from harness.deadline import check_during
from harness.errors import GuestError, QemuError, Violation, WaitTimeout
from harness.guest.device import (
    GuestDevice,
    arrival,
    begun_witness,
    in_words,
    removal_begun,
    sysfs_folder,
)
from harness.guest.guest import Guest
from harness.qemu.deletion import Deletion
from harness.qemu.machine import Machine
from harness.qemu.machine_types.machine_type import UnplugKind
from harness.qemu.spec import Device, Share

#: Seconds, before scaling. Native PCIe hotplug waits 5 s for a second press of the attention button
#: before it acts (kernel: ``drivers/pci/hotplug/pciehp_ctrl.c``, ``pciehp_handle_button_press``).
PLUG_TIMEOUT_S = 15.0
UNPLUG_TIMEOUT_S = 20.0
#: How long a device that must stay is watched; seconds, before scaling. The guest's driver checks every
#: 250 ms whether its device is still in use (kernel: ``net/9p/trans_virtio.c``, ``p9_virtio_remove``).
WINDOW_S = 0.4


class UnplugState(str, Enum):
    """The state of an unplug request."""

    REQUESTED = "requested"
    SEEN_BY_GUEST = "seen by guest"
    WITHHELD = "withheld"
    COMPLETED = "completed"
    LOST = "lost"
    REFUSED = "refused"


class Unplug:
    """One ``device_del``, from its answer to the device's end; made by :meth:`Hotplug.request_unplug`.

    The listener for DEVICE_DELETED is armed before the command is sent.
    """

    def __init__(self, guest: Guest, share: Share | GuestDevice) -> None:
        self.guest, self.share = guest, share
        self.machine = guest.machine
        self.state = UnplugState.REQUESTED
        self.refusal: QemuError | None = None
        self._deletion = Deletion(self.machine, share.id)

    def _request(self) -> None:
        try:
            self.machine.qmp.execute("device_del", {"id": self.share.id}, watch=self.machine.watch)
        except QemuError as exc:
            self.refusal = exc
            self._enter(UnplugState.REFUSED, exc.desc)
            self._deletion.close()
            return
        self._enter(UnplugState.REQUESTED, "device_del was answered")

    def _enter(self, state: UnplugState, witness: object) -> None:
        self.state = state
        value = {"id": self.share.id, "state": state.value, "witness": witness}
        self.machine.history.note(self.machine.name, "unplug", value)

    def wait_seen_by_guest(self) -> None:
        """Wait until the guest has begun the removal of a device that is in use. A share has to be mounted.

        For the witness see :func:`harness.guest.device.removal_begun`.

        :raises GuestError: when the guest does not begin (the request was lost), or the share is not mounted.
        :raises Unsupported: when ``device_del`` asks no guest on this machine type.
        """
        self.machine.spec.machine_type.require_unplug(UnplugKind.ASKS)
        self._require(UnplugState.REQUESTED)
        # Each probe is a command in the guest, and some drivers wait before they let the device go.
        interval_s = max(0.05, self.machine.spec.machine_type.removal_delay_s / 10)
        try:
            self.machine.wait_until(
                lambda: removal_begun(self.guest, self.share),
                what=f"the guest's removal of {self.share.id} to begin",
                timeout_s=UNPLUG_TIMEOUT_S,
                interval_s=interval_s,
            )
        except WaitTimeout as exc:
            self._enter(UnplugState.LOST, exc.message)
            raise GuestError(
                f"device_del of {self.share.id} was lost: the guest never began the removal",
                details=exc.message,
            ) from exc
        self._enter(UnplugState.SEEN_BY_GUEST, begun_witness(self.share))

    def expect_withheld(self, *, while_: Callable[[], object], window_s: float = WINDOW_S) -> None:
        """Assert that the device to unplug stays, over a window after the guest has begun its removal.

        :param while_: the witness that the share is still in use. It is called at both ends of the window and
            has to raise when the share is not in use.
        :param window_s: seconds, before scaling.
        :raises Violation: when the device or its backend is deleted.
        """
        self._require(UnplugState.SEEN_BY_GUEST, UnplugState.WITHHELD)
        while_()
        watched_s = check_during(self.machine.timeout_scale.seconds(window_s), self._expect_present)
        while_()
        self._enter(
            UnplugState.WITHHELD, f"no DEVICE_DELETED in {watched_s:.1f} s; still in use at both ends"
        )

    def expect_pending(self, *, while_: Callable[[], object], window_s: float = WINDOW_S) -> None:
        """Assert that the device to unplug stays while the guest cannot act on the request.

        Parameters and errors as for :meth:`expect_withheld`; ``while_`` is the witness that the guest cannot
        act.
        """
        self._require(UnplugState.REQUESTED)
        while_()
        check_during(self.machine.timeout_scale.seconds(window_s), self._expect_present)
        while_()

    def expect_granted_or_under_way(self, *refusals: str) -> None:
        """Assert that QEMU accepted ``device_del``, or refused it because an earlier one is under way.

        :param refusals: further texts that are accepted.
        :raises QemuError: when QEMU refused it with another text.
        """
        if self.refusal is not None and self.refusal.desc not in (*_under_way(self.share), *refusals):
            raise self.refusal

    def _expect_present(self) -> None:
        self.machine.watch()
        seen = self._deletion.seen
        if seen or not self._deletion.present():
            raise Violation(
                f"device_del of {self.share.id} completed too early: the device has to stay",
                details=f"reported deleted: {seen}",
            )

    def wait_completed(self) -> None:
        """Wait for both DEVICE_DELETED events, and until neither QEMU nor the guest has the device.

        The guest has to answer commands. Where it is asked, its kernel removes the device first (kernel:
        ``drivers/pci/hotplug/acpiphp_glue.c``, ``disable_slot``; ``pciehp_pci.c``).

        :raises Violation: when one of the two events is missing, or QEMU or the guest still has the device.
        :raises GuestError: when the unplug does not complete. :raises QemuError: when it was refused.
        """
        if self.refusal is not None:
            raise self.refusal
        try:
            self._deletion.wait_reported(timeout_s=UNPLUG_TIMEOUT_S)
        except WaitTimeout as exc:
            # Asked before the events are looked at again: QEMU has sent those of a device that is gone.
            present = self._deletion.present()
            if not self._deletion.reported:
                raise self._incomplete(exc, present=present) from exc
        finally:
            self._deletion.close()
        self._deletion.confirm()
        expect_gone_in_guest(self.guest, self.share)
        self._enter(UnplugState.COMPLETED, "both DEVICE_DELETED events, no QOM object, nothing in the guest")

    def _incomplete(self, timeout: WaitTimeout, *, present: bool) -> Violation | GuestError:
        seen = self._deletion.seen
        if seen or not present:
            message = (
                f"{self.share.id} left the machine, but only {seen} were reported deleted: a leaked reference"
            )
            return Violation(message, details=timeout.message)
        self._enter(UnplugState.LOST, timeout.message)
        return GuestError(f"device_del of {self.share.id} never completed", details=timeout.message)

    def _require(self, *states: UnplugState) -> None:
        if self.refusal is not None:
            raise self.refusal
        assert self.state in states, f"unplug of {self.share.id} is {self.state.value}"


def _under_way(share: Device) -> tuple[str, ...]:
    """The refusals of a second ``device_del`` with native PCIe hotplug: within five seconds, and later (QEMU:
    ``system/qdev-monitor.c``, and ``hw/pci/pcie.c``, ``pcie_cap_slot_unplug_request_cb``)."""
    return (
        f"Device {share.id} is already in the process of unplug",
        "Hot-unplug failed: guest is busy (power indicator blinking)",
    )


def plug_refusals(wrong: str, share: Share) -> tuple[str, ...]:
    """The texts with which QEMU's versions refuse ``device_add`` of ``share``, the newest first.

    :param wrong: what is wrong with the device: ``fsdev``, ``no_tag``, ``long_tag``, ``path`` or ``busy_id``.
    """
    fsdev = share.device_options.get("fsdev", share.fsdev)
    tag = str(share.device_options.get("mount_tag", share.mount_tag))
    reason = f"'{share.path}': No such file or directory"
    return {
        # hw/9pfs/9p.c, v9fs_device_realize_common; before 2.6 hw/9pfs/virtio-9p-device.c
        "fsdev": (
            f"9pfs device couldn't find fsdev with the id = {fsdev}",
            f"Virtio-9p device couldn't find fsdev with the id = {fsdev}",
        ),
        "no_tag": (f"fsdev with id {fsdev} needs mount_tag arguments",),
        "long_tag": (f"mount tag '{tag}' ({len(tag)} bytes) is longer than maximum (31 bytes)",),
        # The same, and hw/9pfs/9p-local.c, local_init; up to 2.11 or so without the reason
        "path": (
            f"cannot initialize fsdev '{fsdev}': Could not open {reason}",
            f"cannot initialize fsdev '{fsdev}': failed to open {reason}",
            f"9pfs Failed to initialize fs-driver with id:{fsdev} and export path:{share.path}",
            f"Virtio-9p Failed to initialize fs-driver with id:{fsdev} and export path:{share.path}",
            f"share path {share.path} does not exist",
        ),
        # The first since 6.2 (system/qdev-monitor.c), the second before (util/qemu-option.c).
        "busy_id": (f"Duplicate device ID '{share.id}'", f"Duplicate ID '{share.id}' for device"),
    }[wrong]


class Hotplug:
    """Plugs and unplugs the devices of one guest: shares, and others (:class:`.GuestDevice`)."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest

    def plug(self, share: Share | GuestDevice) -> None:
        """``device_add``, and wait until the guest lists the device (a share: its mount tag).

        :raises QemuError: when QEMU refuses the device.
        :raises WaitTimeout: when the guest does not list the device.
        """
        wait_listed = self.plug_waiter(share)
        self.guest.machine.device_add(share)
        wait_listed()

    def plug_waiter(self, share: Share | GuestDevice) -> Callable[[], None]:
        """What :meth:`plug` does before and after ``device_add``, for a guest that is stopped meanwhile.

        :returns: a function that waits until the guest, wherever it runs then, lists the device.
        """
        arrived = arrival(self.guest, share)

        def wait_listed() -> None:
            machine = self.guest.machine
            machine.wait_until(
                arrived,
                what=f"the guest to list {in_words(share)}",
                timeout_s=PLUG_TIMEOUT_S,
                interval_s=0.05,
            )
            machine.history.note(machine.name, "device:plugged", {"id": share.id})

        return wait_listed

    def request_unplug(self, share: Share | GuestDevice) -> Unplug:
        """``device_del``; returns as soon as QEMU answers, with ``{}`` or with a refusal."""
        unplug = Unplug(self.guest, share)
        unplug._request()
        return unplug

    def unplug(self, share: Share | GuestDevice) -> None:
        """``device_del``, and wait until the device is gone from QEMU and from the guest.

        :raises QemuError: when it is refused.
        """
        self.request_unplug(share).wait_completed()


def expect_gone_in_guest(guest: Guest, device: Share | GuestDevice) -> None:
    """Assert that the guest's kernel lists neither ``device`` in its sysfs nor a share's mount tag.

    ``device`` has been unplugged. A guest that was asked has removed it before QEMU did. Otherwise it is
    notified afterwards, and this waits until it has removed the device.

    :raises Violation: when the kernel lists one of the two.
    """
    machine = guest.machine
    if machine.spec.machine_type.unplug is UnplugKind.TAKES:
        with suppress(WaitTimeout):
            machine.wait_until(
                lambda: _left(guest, device) is None,
                what=f"the guest to remove {device.id}",
                timeout_s=UNPLUG_TIMEOUT_S,
                interval_s=0.1,
            )
    left = _left(guest, device)
    if left is not None:
        raise Violation(f"{device.id} is unplugged, but the guest still {left}")


def _left(guest: Guest, device: Share | GuestDevice) -> str | None:
    """What the guest still has of a device that was unplugged, as text; ``None`` for nothing."""
    machine = guest.machine
    if isinstance(device, Share):
        plugged = [other for other in machine.spec.shares if other.id in machine.plugged - {device.id}]
        tag = device.mount_tag
        if tag not in [other.mount_tag for other in plugged] and tag in guest.mount_tags():
            return f"lists {tag}"
    folder = sysfs_folder(machine, device)
    found = guest.succeed(f"ls -d {folder} 2>/dev/null; true").split()
    return f"has {found[0]}" if found else None


def unplug_without_guest(machine: Machine, share: Device) -> None:
    """``device_del`` and its two events when no guest runs: native PCIe hotplug then completes it at once.

    :raises Violation: when one of the two events does not come.
    """
    with Deletion(machine, share.id) as deletion:
        machine.qmp.execute("device_del", {"id": share.id}, watch=machine.watch)
        deletion.wait(timeout_s=UNPLUG_TIMEOUT_S)
