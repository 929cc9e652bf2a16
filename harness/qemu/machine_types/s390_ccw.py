"""``s390-ccw``: channel devices. ``device_del`` takes a device at once, and asks nobody.

The CCW bus has ``unplug`` and no ``unplug_request`` (QEMU: ``hw/s390x/css-bridge.c``,
``virtual_css_bridge_class_init``): the device is unrealized before ``device_del`` is answered. The guest then
gets a channel report, as when a cable is pulled (kernel: ``drivers/s390/cio/device.c``,
``io_subchannel_sch_event``).
"""

from __future__ import annotations

from harness.qemu.architectures import S390X
from harness.qemu.machine_types.machine_type import SLOTS, Console, MachineType, NoEject, Place, UnplugKind

#: Virtual channel devices are in subchannel set 0 of css 0xfe, which guests see as css 0.
_FIRST_DEVNO = 0x10


def _place(slot: int) -> Place:
    number = _FIRST_DEVNO + slot
    return Place({"devno": f"fe.0.{number:04x}"}, f"/sys/bus/ccw/devices/0.0.{number:04x}")


S390_CCW = MachineType(
    name="s390-ccw",
    qemu="s390-ccw-virtio",
    description="s390x, channel devices",
    versions="s390-ccw-virtio",
    architecture=S390X,
    places=tuple(_place(slot) for slot in range(SLOTS)),
    fixed_place=None,
    eject=NoEject("a guest cannot eject a channel device"),
    unplug=UnplugKind.TAKES,
    transport="ccw",
    # It stays plugged: Linux enables the notification of new devices with its first channel device.
    nic={"driver": "virtio-net-ccw", "devno": "fe.0.0001"},
    bus_path="/machine/virtual-css-bridge/{bus}",
    ram_id="s390.ram",
    # A guest that panics ends in a disabled wait, which QEMU takes for a panic (target/s390x/helper.c,
    # s390_handle_wait): by default it then ends. The other machine types do not see a panic.
    arguments=("-action", "panic=none"),
    forgets_interrupts=True,
    consoles=(
        Console("ttysclp0", ("-device", "sclpconsole,chardev=ttysclp0")),
        # An operator's line-mode console cannot carry a shell.
        Console(
            "hvc0",
            (
                *("-device", "virtio-serial-ccw,id=serial0,devno=fe.0.0002"),
                *("-device", "virtconsole,chardev=hvc0,bus=serial0.0"),
            ),
        ),
    ),
)
