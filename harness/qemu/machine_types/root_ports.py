"""Places behind root ports: what the machine types with PCI Express have in common."""

from __future__ import annotations

from harness.qemu.machine_types.machine_type import (
    FIRST_ADDR,
    FIXED_ADDR,
    SLOTS,
    FixedPlace,
    Place,
    pci_place,
)


def _place(slot: int) -> Place:
    # A root port has other children as well: its services, 0000:00:10.0:pcie001 and so on.
    return pci_place(f"rp{slot}", "0x0", f"0000:00:{FIRST_ADDR + slot:02x}.0/0000:??:??.?")


def _port(slot: int) -> tuple[str, str]:
    number, addr = slot + 1, FIRST_ADDR + slot
    return "-device", f"pcie-root-port,id=rp{slot},chassis={number},slot={number},bus=pcie.0,addr={addr:#x}"


#: One behind each root port.
PLACES = tuple(_place(slot) for slot in range(SLOTS))
#: The root ports, as QEMU's arguments.
ARGUMENTS = tuple(word for slot in range(SLOTS) for word in _port(slot))
#: Behind a root port that forbids hotplug.
FIXED_PLACE = FixedPlace(
    "fixed",
    "0x0",
    ("-device", f"pcie-root-port,id=fixed,chassis=9,slot=9,hotplug=off,bus=pcie.0,addr={FIXED_ADDR:#x}"),
)
#: The QOM path of the bus behind a root port: port and bus have one name.
BUS_PATH = "/machine/peripheral/{bus}/{bus}"
