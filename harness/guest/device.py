"""A device as the guest sees it: whether it has arrived, whether its removal has begun, how it is used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from harness.errors import GuestError, UsageError
from harness.guest.commands import Commands
from harness.guest.guest import Guest
from harness.guest.mount import TagState, tag_state
from harness.qemu.machine import Machine
from harness.qemu.spec import Device, Share

#: Loads a module of the image's recipe (``modules_on_demand``) after those that it depends on.
_ORDER = "/lib/modules/{}.order"
_LOAD = (
    "while read -r file; do [ -d /sys/module/${{file%.ko}} ] || insmod /lib/modules/$file || exit 1; "
    f"done < {_ORDER}"
)


class GuestDevice(Device, Protocol):
    """A device that the guest can use. A :class:`.Share` is used through a mount instead."""

    @property
    def modules(self) -> tuple[str, ...]:
        """The guest's drivers, each of the image's ``modules_on_demand``; they are loaded before the plug."""

    def listed(self, guest: Commands) -> bool:
        """Whether the guest's driver offers the device to its users now.

        It has to become false when the driver begins to remove the device, before it waits for its users.
        """

    def use(self, guest: Commands) -> None:
        """Use the device once in the guest, and check the result there and on the host.

        :raises HarnessError: when the device does not work.
        """


def arrival(guest: Guest, device: Share | GuestDevice) -> Callable[[], bool]:
    """Load the guest's drivers for ``device``; return a function that checks whether the guest has it.

    It has to be called before the plug. A share is recognised by its mount tag; several devices may have the
    same tag.

    :raises UsageError: when the guest's image lacks a driver. :raises CommandFailed: when one is not loaded.
    """
    if isinstance(device, Share):
        tag, before = device.mount_tag, guest.mount_tags()
        return lambda: guest.mount_tags(more_than=len(before)).count(tag) > before.count(tag)
    for module in device.modules:
        _load(guest, module)
    return lambda: device.listed(guest)


def _load(guest: Guest, module: str) -> None:
    done = guest.run(_LOAD.format(module))
    if done.returncode != 0 and guest.run(f"[ -e {_ORDER.format(module)} ]").returncode != 0:
        raise UsageError(
            f"module {module} is not in modules_on_demand of the guest's recipe, {guest.image.name}"
        )
    guest.check(done)


def in_words(device: Share | GuestDevice) -> str:
    """The name, in messages, of what the guest has to list of a device: a share's mount tag, or its id."""
    return device.mount_tag if isinstance(device, Share) else device.id


def removal_begun(guest: Commands, device: Share | GuestDevice) -> bool:
    """Whether the guest's driver has begun to remove a device that is in use.

    A share that is mounted: ``p9_virtio_remove`` delists the channel before it waits for the last user, so
    a second mount of the tag fails with ENOENT instead of EBUSY (kernel: ``net/9p/trans_virtio.c``).

    :raises GuestError: for a share that is not mounted.
    """
    if not isinstance(device, Share):
        return not device.listed(guest)
    state = tag_state(guest, device.mount_tag)
    if state is TagState.FREE:
        raise GuestError(f"{guest.actor}: {device.mount_tag} is not mounted; this witness needs it mounted")
    return state is TagState.DELISTED


def begun_witness(device: Share | GuestDevice) -> str:
    """The witness of :func:`removal_begun`, as text for the history."""
    if isinstance(device, Share):
        return f"a mount of {device.mount_tag} fails with ENOENT"
    return f"the guest's driver no longer offers {device.id}"


def sysfs_folder(machine: Machine, device: Device) -> str:
    """The folder of the device in the guest's sysfs, such as its PCI function: a pattern for its shell."""
    return machine.spec.machine_type.sysfs(device.slot)
