"""``device_add`` commands that QEMU has to refuse although fsdev, mount tag and path are valid.

Most of them fail late, in the PCI bus or the virtio bus, after the 9p backend was realized. QEMU then has to
unrealize it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from harness.errors import QemuError, Violation
from harness.qemu.binary import QemuInstall, properties
from harness.qemu.deletion import PERIPHERAL, Deletion
from harness.qemu.machine import Machine
from harness.qemu.machine_types.machine_type import MachineType
from harness.qemu.spec import Share, Value

#: The largest ROM BAR is 2 GiB (QEMU: ``hw/pci/pci.c``, ``pci_add_option_rom``).
_LARGEST_ROM = 2 << 30


#: Refusals after the realize of the 9p backend, each with its text: by the PCI bus, and by the virtio bus.
LATE_REFUSALS: dict[str, tuple[Mapping[str, Value], str]] = {
    "rom": ({"romfile": "/nowhere/rom"}, 'failed to find romfile "/nowhere/rom"'),
    "iommu": (
        {"iommu_platform": True, "disable-legacy": "off"},
        "VIRTIO_F_IOMMU_PLATFORM was supported by neither legacy nor transitional device",
    ),
}


@dataclass(frozen=True)
class BadPlug:
    """A ``device_add`` that QEMU has to refuse.

    :ivar share: the device to plug.
    :ivar refusal: a regular expression that matches the whole text of the refusal.
    """

    share: Share
    refusal: str

    def expect_refused(self, machine: Machine) -> None:
        """Assert that ``device_add`` is refused and adds no device.

        :raises Violation: when QEMU accepts it, refuses it with another text, or refuses it and has the
            device (unless the device was plugged before).
        """
        asked = f"device_add with {dict(self.share.device_options)}"
        try:
            machine.device_add(self.share)
        except QemuError as exc:
            if not re.fullmatch(self.refusal, exc.desc):
                raise Violation(f"{asked} was refused with {exc.desc!r}, not {self.refusal!r}") from exc
        else:
            raise Violation(f"{asked} was accepted")
        with Deletion(machine, self.share.id) as deletion:
            if self.share.id not in machine.plugged and deletion.present():
                raise Violation(f"{asked} was refused, but {PERIPHERAL} has the device")


def unrealizable(share: Share) -> dict[str, Share]:
    """``share`` with options with which the realize of the 9p backend fails.

    The keys are those of :func:`harness.actions.hotplug.plug_refusals`, which has QEMU's errors.
    """
    return {
        "fsdev": replace(share, device_options={"fsdev": "nowhere"}),
        "no_tag": replace(share, mount_tag=""),
        "long_tag": replace(share, device_options={"mount_tag": "t" * 32}),
    }


def bad_plugs(
    qemu: QemuInstall, machine_type: MachineType, folder: Path, share: Share, other: Share
) -> dict[str, BadPlug]:
    """Every bad plug of ``share`` whose properties this QEMU has, by name.

    :param folder: where the ROM images are written.
    :param other: another share, which has to be plugged when the bad plugs run; its slot is taken.
    """
    driver = machine_type.driver(share.driver)
    there = dict(machine_type.place(other.slot))
    rom = _roms(folder)
    name = re.escape(driver)
    taken = rf"PCI: slot \d+ function 0 not available for {name}, in use by {name}(,id={other.id})?"
    shown = rf"PCI: slot \d+ function 0 already (occupied|ocuppied) by {name}, new func {name} cannot be .*"
    table: dict[str, tuple[Mapping[str, Value], str]] = {
        "no_such_bus": ({"bus": "nowhere"}, "Bus 'nowhere' not found"),
        "no_such_property": ({"nothing": "1"}, rf"Property '({name})?\.nothing' not found"),
        "addr_beyond_the_bus": ({"addr": "0x20"}, rf"Property '{name}\.addr' doesn't take value '0x20'"),
        "slot_taken": ({**there, "addr": there.get("addr", "")}, taken),
        "function_0_taken": ({**there, "addr": f"{there.get('addr')}.1"}, shown),
        "devno_taken": ({"devno": there.get("devno", "")}, r"Device fe\.0\.\w+ already exists"),
        "neither_legacy_nor_modern": (
            {"disable-legacy": "on", "disable-modern": True},
            "device cannot work as neither modern nor legacy mode is enabled",
        ),
        "iommu_of_a_legacy_device": LATE_REFUSALS["iommu"],
        "failover_of_no_network_device": (
            {"failover_pair_id": "nobody"},
            "failover primary device (must be on PCIExpress bus|is not an Ethernet device)",
        ),
        "rom_missing": LATE_REFUSALS["rom"],
        "rom_empty": ({"romfile": rom["empty"]}, 'romfile ".*" is empty'),
        "rom_too_large": (
            {"romfile": rom["huge"]},
            # Before 6.0 QEMU kept the size in an int, which overflows.
            r'romfile ".*" too large \(size cannot exceed 2 GiB\)|failed to find romfile ".*"',
        ),
        "rom_larger_than_romsize": (
            {"romfile": rom["good"], "romsize": 512},
            r'romfile ".*" \(2048 bytes\) is too large for ROM size 512',
        ),
        "romsize_no_power_of_two": ({"romsize": 1000}, "ROM size 1000 is not a power of two"),
        "rom_without_bar": (
            {"romfile": rom["good"], "rombar": 0},
            "Hot-plugged device without ROM bar can't have an option ROM",
        ),
    }
    known = properties(qemu, driver) | {"bus", "nothing"}
    return {
        what: BadPlug(replace(share, device_options=options), refusal)
        for what, (options, refusal) in table.items()
        if known.issuperset(options)
    }


def _roms(folder: Path) -> dict[str, str]:
    """The bad plugs whose ROM image QEMU has to refuse; no guest runs them."""
    paths = {what: folder / f"{what}.rom" for what in ("good", "empty", "huge")}
    paths["good"].write_bytes(b"\x55\xaa".ljust(2048, b"\0"))
    paths["empty"].write_bytes(b"")
    with paths["huge"].open("wb") as file:
        file.truncate(_LARGEST_ROM + 1)  # A sparse file: it takes no space.
    return {what: str(path) for what, path in paths.items()}
