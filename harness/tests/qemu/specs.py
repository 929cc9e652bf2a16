"""Complete specs for tests; their files do not exist unless a test gives others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.qemu.argv import MachinePaths
from harness.qemu.binary import QemuInstall
from harness.qemu.machine_types import MACHINE_TYPES
from harness.qemu.spec import Boot, MachineSpec, Share

INSTALL = QemuInstall(name="7.2", binary=Path("/q/qemu"), command=("/q/qemu",), arguments=("-L", "/q/bios"))
PATHS = MachinePaths(
    qmp=Path("/r/m/qmp.sock"),
    console=Path("/r/m/console.sock"),
    guestfwd=Path("/r/m/guestfwd.sock"),
    disk=Path("/r/m/disk.qcow2"),
    kernel_log=Path("/a/guest-kernel.log"),
    console_log=Path("/a/console.log"),
)


def share(slot: int = 0, path: Path = Path("/r/share0"), **changes: Any) -> Share:
    return replace(Share(id=f"share{slot}", path=path, mount_tag=f"tag{slot}", slot=slot), **changes)


def spec(machine: str = "pc", **changes: Any) -> MachineSpec:
    made = MachineSpec(
        name="source",
        qemu=INSTALL,
        machine_type=MACHINE_TYPES[machine],
        accel="tcg",
        boot=Boot(Path("/c/vmlinuz"), Path("/c/initrd"), "console=ttyS0 panic=0", Path("/c/bzImage")),
        disk=Path("/c/empty.qcow2"),
        shares=(share(),),
    )
    return replace(made, **changes)
