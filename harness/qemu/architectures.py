"""The architectures of guests: which program emulates one, and what Debian calls it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Architecture:
    """An architecture of guests.

    :param name: as ``uname -m`` prints it in a guest.
    :param debian: Debian's name (``dpkg --print-architecture``).
    :param triplet: what Debian's library folders are called (``/usr/lib/TRIPLET``).
    :param firmware: a file of QEMU's ``pc-bios`` that shows where its firmware is.
    :param cpu: the plainest model on which two QEMUs agree (``-cpu``).
    :param byte_order: ``little`` or ``big``, as :data:`sys.byteorder`.
    """

    name: str
    debian: str
    triplet: str
    firmware: str
    cpu: str
    byte_order: str = "little"

    @property
    def program(self) -> str:
        """The system emulator of this architecture."""
        return f"qemu-system-{self.name}"


#: Without RDRAND the guest's sshd waits a second for entropy.
X86_64 = Architecture("x86_64", "amd64", "x86_64-linux-gnu", "bios-256k.bin", "qemu64,+rdrand")
#: ``qemu`` is what TCG implements, and depends on the version of the machine type.
S390X = Architecture("s390x", "s390x", "s390x-linux-gnu", "s390-ccw.img", "qemu", "big")
#: The ROM image of virtio-net is the only file of the folder that a machine with a kernel needs.
AARCH64 = Architecture("aarch64", "arm64", "aarch64-linux-gnu", "efi-virtio.rom", "cortex-a57")

#: By name; the first is the default.
ARCHITECTURES: Mapping[str, Architecture] = {a.name: a for a in (X86_64, S390X, AARCH64)}

#: Architectures that were tried and cannot be used: why, as the rest of an error's line.
UNUSABLE: Mapping[str, str] = {
    # Seen with sid's kernel, on QEMU 7.2 and 11.1: the guest boots and is restored; of a plug on virt it sees
    # nothing, even after a rescan of the bus.
    "riscv64": "Debian's kernel is built without PCI hotplug (7.2.13: CONFIG_HOTPLUG_PCI is not set)",
    # A kernel of pseries leaves PCI devices to these programs (QEMU: docs/specs/ppc-spapr-hotplug.rst).
    "ppc64le": "a guest of pseries plugs PCI devices by the daemon rtas_errd and drmgr, which no image has",
}
