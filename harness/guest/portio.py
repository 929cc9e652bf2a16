"""Port writes from the guest's user space, of the width that a device insists on.

The kernel's ``/dev/port`` writes bytes only, and QEMU's ACPI PCI hotplug registers take 4-byte accesses
(QEMU: ``hw/acpi/pcihp.c``, ``acpi_pcihp_io_ops``). So a program of its own does it: a hundred bytes of x86-64
code, put together here; no compiler is needed on either side.
"""

from __future__ import annotations

import struct

from harness.guest import elf
from harness.guest.guest import Guest

_SYS_IOPL, _SYS_EXIT = 172, 60


def install(guest: Guest, *writes: tuple[int, int]) -> str:
    """Put a program into the guest that writes each ``(port, 32-bit value)`` in order; returns its command.

    It needs root, for ``iopl(3)`` (``man 2 iopl``), and exits with 1 where the kernel does not allow that.
    """
    guest.succeed("cat > /tmp/outl && chmod +x /tmp/outl", stdin=program(list(writes)))
    return "/tmp/outl"


def program(writes: list[tuple[int, int]]) -> bytes:
    """A static ELF program that makes ``writes`` and exits with 0, or with 1 when ``iopl`` is refused."""
    code = b"\xbf" + struct.pack("<I", 3)  # mov edi, 3
    code += b"\xb8" + struct.pack("<I", _SYS_IOPL) + b"\x0f\x05"  # mov eax, iopl; syscall
    code += b"\x85\xc0\xbf" + struct.pack("<I", 1)  # test eax, eax; mov edi, 1
    body = b"".join(
        b"\xba" + struct.pack("<I", port) + b"\xb8" + struct.pack("<I", value) + b"\xef"  # out dx, eax
        for port, value in writes
    )
    body += b"\x31\xff"  # xor edi, edi
    code += b"\x0f\x85" + struct.pack("<i", len(body)) + body  # jnz past the body
    code += b"\xb8" + struct.pack("<I", _SYS_EXIT) + b"\x0f\x05"  # mov eax, exit; syscall
    return elf.executable(code)
